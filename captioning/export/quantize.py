"""Weights of an ONNX file in 8 bits: a quarter of the size, computed with in float32 as before.

onnxruntime's own dynamic quantization has no kernels for a GRU or a vanilla RNN, and with its convolutions in integers an encoder is
six times slower on a CPU and much worse; docs/export.md has the numbers.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

LEAST = 2**16  # numbers in a weight worth it: the small ones are an encoder's first layers, whose errors all others inherit


def quantize(file: Path) -> None:
    """Each large weight becomes whole numbers from -127 to 127 and a scale for every output channel, in the same file."""
    model = onnx.load(file)
    graph, restored = model.graph, []
    readers = {name: (node, place) for node in graph.node for place, name in enumerate(node.input)}
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < LEAST or weight.name not in readers:
            continue
        axis = channels(*readers[weight.name], values.ndim)
        others = tuple(place for place in range(values.ndim) if place != axis)
        scale = np.maximum(np.abs(values).max(axis=others, keepdims=True) / 127, np.finfo(np.float32).tiny)
        graph.initializer.remove(weight)
        whole, scales = f"{weight.name}_int8", f"{weight.name}_scale"
        graph.initializer.append(numpy_helper.from_array(np.round(values / scale).astype(np.int8), whole))
        graph.initializer.append(numpy_helper.from_array(scale.ravel(), scales))
        restored.append(helper.make_node("DequantizeLinear", [whole, scales], [weight.name], axis=axis))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*restored, *nodes])
    onnx.save(model, file)


def channels(node: NodeProto, place: int, dimensions: int) -> int:
    """The dimension of a weight that counts output channels, where its reader says it; for word vectors, the words."""
    if node.op_type == "MatMul" and place == 1:
        return dimensions - 1
    if node.op_type == "Gemm" and place == 1:
        return 0 if any(its.name == "transB" and its.i for its in node.attribute) else 1
    return 1 if node.op_type in ("GRU", "LSTM", "RNN") else 0

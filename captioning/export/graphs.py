"""A trained model as two graphs without Python: from pictures to the state before the first word, and from a word to the next state.

B images and K hypotheses of each are dimensions of their own here, and both are free: a product of them cannot be taken apart again
by a graph that does not know either.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from captioning.errors import UserError
from captioning.models.caption_model import CaptionModel
from captioning.models.decoders.base import Decoder, State
from captioning.models.encoders import Encoder

BEGIN, STEP = "begin", "step"


class Graphs(NamedTuple):
    begin: ExportedProgram  # images (B, 3, size, size) -> memory (B, ...), moving (B, ...)
    step: ExportedProgram  # token (B, K), memory (B, ...), moving (B, K, ...) -> logits (B, K, V), moving (B, K, ...)
    memory: list[str]  # the names of a state's parts: what an image's hypotheses share,
    moving: list[str]  # and what each has of its own
    axes: dict[str, Any]  # of each graph: which dimensions of its inputs are free, by their letters


class Begin(nn.Module):
    """Encoder and `init_state`, the state laid out flat."""

    def __init__(self, encoder: Encoder, decoder: Decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        memory, *moving = self.decoder.init_state(self.encoder(images))
        return *memory, *filled(moving)


class Step(nn.Module):
    """`step` on the state laid out flat, with an image's hypotheses in a dimension of their own."""

    def __init__(self, decoder: Decoder, state: State):
        super().__init__()
        self.decoder, self.state = decoder, type(state)
        self.memory, self.shapes = len(state[0]), [part.shape[1:] for part in state[1:]]

    def forward(self, token: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        memory, given = parts[: self.memory], iter(parts[self.memory :])
        rows = token.shape[0] * token.shape[1]
        moving = [next(given).flatten(0, 1) if all(shape) else parts[-1].new_zeros(rows, *shape) for shape in self.shapes]
        logits, (_, *moving) = self.decoder.step(token.flatten(), self.state(memory, *moving))
        return tuple(part.unflatten(0, token.shape) for part in (logits, *filled(moving)))


def filled(parts: list[Tensor]) -> list[Tensor]:
    """Without those of no width (a GRU's cell), which are nothing to a graph."""
    return [part for part in parts if all(part.shape[1:])]


@torch.no_grad()
def trace(model: CaptionModel, size: int) -> Graphs:
    """The graphs of a model in eval mode on a CPU, for square pictures of `size` pixels."""
    images, B, K = torch.zeros(2, 3, size, size), Dim("B", min=1), Dim("K", min=1)
    state = model.decoder.init_state(model.encoder(images))
    memory, *moving = state
    names = [name for name, part in zip(state._fields[1:], moving) if all(part.shape[1:])]
    spread = [part[:, None].repeat_interleave(3, dim=1) for part in filled(moving)]  # two images of three: neither is 1, nor are they equal
    shared, own = {0: B}, {0: B, 1: K}
    axes = {BEGIN: (shared,), STEP: (own, (shared,) * len(memory) + (own,) * len(spread))}
    with readable("traced"):
        begin = torch.export.export(Begin(model.encoder, model.decoder).eval(), (images,), dynamic_shapes=axes[BEGIN], strict=True)
        given = (torch.ones(2, 3, dtype=torch.long), *memory, *spread)
        step = torch.export.export(Step(model.decoder, state).eval(), given, dynamic_shapes=axes[STEP], strict=True)
    return Graphs(begin, step, [f"memory_{place}" for place in range(len(memory))], names, axes)


def names_of(graphs: Graphs) -> dict[str, tuple[list[str], list[str]]]:
    """Each graph's inputs and outputs, in order."""
    after = [f"{name}_after" for name in graphs.moving]
    return {
        BEGIN: (["images"], [*graphs.memory, *graphs.moving]),
        STEP: (["token", *graphs.memory, *graphs.moving], ["logits", *after]),
    }


def save_onnx(graphs: Graphs, folder: Path) -> None:
    import onnx

    for name, (inputs, outputs) in names_of(graphs).items():
        with readable("made into ONNX"):
            program = torch.onnx.export(
                getattr(graphs, name),
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=graphs.axes[name],
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            model = program.model_proto
            forget_sources(model)
            onnx.save(model, folder / f"{name}.onnx")


def forget_sources(message: Any) -> None:
    """Of an ONNX model and all its parts: an exporter notes for each node where in which file of this machine it came from."""
    for name in {"metadata_props", "doc_string"}.intersection(message.DESCRIPTOR.fields_by_name):
        message.ClearField(name)
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if isinstance(value, Iterable) else [value]:
                forget_sources(part)


def save_torch(graphs: Graphs, folder: Path) -> None:
    for name in (BEGIN, STEP):
        program: ExportedProgram = getattr(graphs, name)
        taken = {its.target for its in program.graph_signature.input_specs}
        for weight in [weight for weight in program.state_dict if weight not in taken]:
            del program.state_dict[weight]  # of the decoder's other half
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, GraphModule) else ():
                node.meta.pop("stack_trace", None)  # names of files of this machine
        with readable("saved"):
            torch.export.save(program, folder / f"{name}.pt2")


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Exporters fail in many ways, with pages of text: the first line says what matters."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, UserError):
        raise
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"this model cannot be {what}: {first[0]} (CAPTIONING_DEBUG=1 shows where)") from error

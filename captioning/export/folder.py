"""What an exported folder holds: the graphs, one JSON file about them, and the few files of this package that caption with them."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

import captioning
from captioning.data.transforms import Transform
from captioning.data.vocabulary import Vocabulary
from captioning.export.graphs import BEGIN, STEP, Graphs, names_of, save_onnx, save_torch
from captioning.export.portable import FORMAT
from captioning.models.weights import sha256
from captioning.search import Beam

PARTS = ["__init__.py", "errors.py", "data/__init__.py", "data/formats.py", "data/images.py", "export/__init__.py", "export/portable.py"]
RUNTIME = {"onnx": "onnxruntime", "torch": "torch"}
ENDING = {"onnx": "onnx", "torch": "pt2"}
CAPTION = '''"""python caption.py IMAGE...: captions image files. --help shows the settings of the search."""

from pathlib import Path

from captioning.export.portable import main

main(Path(__file__).parent)
'''


class Trained(NamedTuple):
    """What there is to know of a run beside its graphs."""

    name: str
    checkpoint: str | None  # its digest, as in metrics.json
    vocabulary: Vocabulary
    transform: Transform
    search: Beam


def write(folder: Path, graphs: Graphs, run: Trained, *, kind: str, int8: bool) -> None:
    """Fill an empty folder. kind: `onnx` or `torch`. int8: ONNX's weights in 8 bits."""
    (save_onnx if kind == "onnx" else save_torch)(graphs, folder)
    if int8:
        from captioning.export.quantize import quantize

        for name in (BEGIN, STEP):
            quantize(folder / f"{name}.onnx")
    source = Path(captioning.__file__).parent
    for part in PARTS:
        (folder / "captioning" / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / part, folder / "captioning" / part)
    (folder / "caption.py").write_text(CAPTION)
    (folder / "requirements.txt").write_text(requirements(kind))
    (folder / "export.json").write_text(json.dumps(about(folder, graphs, run, kind, int8), indent=1, ensure_ascii=False), encoding="utf-8")


def requirements(kind: str) -> str:
    """The versions it was made with, as the least."""
    from importlib.metadata import version

    return "".join(f"{name}>={version(name).partition('+')[0]}\n" for name in ("numpy", "pillow", RUNTIME[kind]))


def about(folder: Path, graphs: Graphs, run: Trained, kind: str, int8: bool) -> dict[str, Any]:
    files = {name: f"{name}.{ENDING[kind]}" for name in (BEGIN, STEP)}
    return {
        "format": FORMAT,
        "kind": kind,
        "int8": int8,
        "captioning": captioning.__version__,
        "run": run.name,
        "checkpoint": run.checkpoint,
        "files": {file: sha256(folder / file) for file in files.values()},
        "state": {"memory": graphs.memory, "moving": graphs.moving},
        **{name: {"file": files[name]} | described(graphs, name) for name in files},
        "transform": settings_of(run.transform),
        "search": asdict(run.search),
        "vocabulary": run.vocabulary.words[len(Vocabulary.SPECIAL) :],
    }


def settings_of(transform: Transform) -> dict[str, Any]:
    """Those that decide on what the encoder sees when nothing is random."""
    return {name: getattr(transform, name) for name in ("size", "fit", "mean", "std", "least")}


def described(graphs: Graphs, name: str) -> dict[str, Any]:
    """Names, types and shapes: B images, K hypotheses of each."""
    program = getattr(graphs, name)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}

    def one(its: str, value: Tensor) -> dict[str, Any]:
        shape = [size if isinstance(size, int) else "BK"[place] for place, size in enumerate(value.shape)]
        return {"name": its, "type": str(value.dtype).removeprefix("torch."), "shape": shape}

    signature = program.graph_signature
    sides = zip(("inputs", "outputs"), names_of(graphs)[name], (signature.user_inputs, signature.user_outputs))
    return {side: [one(its, values[node]) for its, node in zip(names, nodes)] for side, names, nodes in sides}

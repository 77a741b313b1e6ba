"""What `captioning export` does: a run's graphs into a folder that captions without this package, checked before it is put in its place."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from captioning.build.evaluation import digest_of
from captioning.build.objects import make
from captioning.build.runs import load_run
from captioning.errors import UserError
from captioning.export.portable import Captioner, read_about
from captioning.search import Beam


def export(path: Path, out: Path | None, *, kind: str, int8: bool) -> Iterator[str]:
    """Write the folder, and say line by line what came of it. kind: `onnx` or `torch`."""
    if int8 and kind != "onnx":
        raise UserError(f"--int8: is for --format onnx, not for {kind}")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if kind == "onnx" and not find_spec(name)]
    if missing:
        raise UserError(f"--format onnx: needs {', '.join(missing)}, which pip install 'captioning[export]' brings")
    out = out or path / f"export-{kind}"
    run = load_run(path, torch.device("cpu"))
    refuse_foreign(out)
    from captioning.export.check import compare, latency, speaks
    from captioning.export.folder import Trained, write
    from captioning.export.graphs import readable, trace

    node = run.config["search"]
    search = make("search", node) if node["_target_"] == "captioning.search.Beam" else Beam()
    trained = Trained(path.absolute().name, digest_of(path), run.vocabulary, run.transform, search)
    graphs = trace(run.model, run.transform.size)
    with new_folder(out) as folder:
        write(folder, graphs, trained, kind=kind, int8=int8)
        with readable("run as graphs"):
            captioner = Captioner(folder, threads=torch.get_num_threads())
            parity = compare(run.model, run.transform, run.vocabulary, captioner, search)
        if not (parity.holds or int8):
            raise UserError(
                f"{out}: not written, as the graphs are not what {path} is: {parity.same} of {parity.pictures} captions are the same, "
                f"and log p differs by {parity.worst:.2g}"
            )
        if not speaks(folder, captioner):
            raise UserError(f"{out}: not written, as its caption.py does not caption by itself, or otherwise than here")
    yield f"{out}: {', '.join(f'{file} {(out / file).stat().st_size / 1e6:.1f} MB' for file in captioner.about['files'])}"
    yield f"the same caption for {parity.same} of {parity.pictures} pictures; log p differs by at most {parity.worst:.1g}"
    for batch in (1, 32):
        its = latency(run.model, captioner, search, batch)
        yield (
            f"batch {batch}: {its.exported:.1f} ms an image, {its.eager:.1f} in PyTorch (x{its.exported / its.eager:.2f}), "
            f"beam {search.beam_size}, {torch.get_num_threads()} threads"
        )
    yield f"python {out / 'caption.py'} IMAGE"


def refuse_foreign(out: Path) -> None:
    """A folder that holds something else than an export is not replaced."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; a folder is needed")
    if Path.cwd().is_relative_to(out.resolve()):
        raise UserError(f"--out {out}: is the folder that the command runs in, which cannot be replaced; give another folder")
    if out.is_dir() and any(out.iterdir()):
        try:
            read_about(out)
        except UserError:
            raise UserError(f"--out {out}: holds something else than an export; give another folder") from None


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to be filled, which takes the place of `out` when all went well; else nothing is left of it.

    It and the one before lie in a folder that is made here and has no other's name. Of a link the folder it leads to is replaced."""
    place = out.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as aside:
            new, before = Path(aside, "new"), Path(aside, "before")
            new.mkdir()
            yield new
            if place.exists():
                os.replace(place, before)
            try:
                os.replace(new, place)
            finally:
                if before.exists() and not place.exists():
                    os.replace(before, place)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from None

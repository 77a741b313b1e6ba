"""What `captioning demo` does: opens runs and pictures, and hands them to the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioning.build.objects import make
from captioning.build.runs import read_config
from captioning.build.serving import open_captioner
from captioning.data.formats import SUFFIXES
from captioning.errors import UserError
from captioning.serving.captioner import Captioner
from captioning.serving.demo import Model, serve

EXAMPLES = 12


def show(runs: Sequence[Path], examples: Path | None, *, host: str, port: int, device: str) -> None:
    """All runs are opened at the start: a damaged one is refused here, not when a visitor chooses it."""
    models: dict[str, Model] = {}
    for place, path in enumerate(runs, 1):
        if path.resolve() in [other.resolve() for other in runs[: place - 1]]:
            raise UserError(f"--run {path}: is the same run twice")
        captioner, about = open_captioner(path, device)
        name = about["name"] if about["name"] not in models else f"{about['name']} ({place})"  # visitors see no path of this machine
        models[name] = Model(captioner, about)
    title = "Captions" if len(models) > 1 else f"Captions by {next(iter(models))}"
    captioner = next(iter(models.values())).captioner
    files = pictures_in(examples) if examples else pictures_of(runs[0])
    serve(models, [file for file in files if is_readable(captioner, file)][:EXAMPLES], title, host=host, port=port)


def is_readable(captioner: Captioner, file: Path) -> bool:
    try:
        captioner.read(file)
        return True
    except UserError:
        return False


def pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--examples {folder}: no such folder")
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"--examples {folder}: holds no picture ({', '.join(SUFFIXES)})")
    return found[:EXAMPLES]


def pictures_of(run: Path) -> list[Path]:
    """A few of the test images, where the run's data is on this machine; nothing is drawn or downloaded for it."""
    node = read_config(run)["data"]
    if not Path(node["root"]).is_dir() or not are_there(node["reader"]):
        return []
    try:
        return [record.path for record in make("data", node).reader().get("test", [])[: EXAMPLES // 2]]
    except UserError:
        return []


def are_there(reader: dict[str, Any]) -> bool:
    """Not so drawings that were never drawn: their reader would do it now."""
    if not reader["_target_"].endswith(".shapes"):
        return True
    return (Path(reader["root"]) / "{train}-{val}-{test}-{size}px-s{seed}".format(**reader)).is_dir()

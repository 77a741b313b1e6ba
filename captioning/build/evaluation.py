"""What eval.py does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from captioning.build.compose import as_dict
from captioning.build.schema import check
from captioning.errors import UserError

if TYPE_CHECKING:
    from captioning.analysis import results
    from captioning.cache.survey import Broken

NEEDED = ("search", "run", "split", "device", "features", "precision", "out", "show", "java")


def evaluate(config: DictConfig) -> None:
    """Caption a split with a trained run, score it, and write metrics.json and captions.json."""
    settings = as_dict(config)
    check(settings, needed=NEEDED)
    import torch

    from captioning.analysis import results
    from captioning.analysis.samples import captioned_pictures
    from captioning.build.features import evaluated_run
    from captioning.build.members import FAILURE
    from captioning.build.objects import make
    from captioning.build.pictures import read_splits
    from captioning.build.runs import read_config
    from captioning.data.dataset import ReferenceBatches, ReferenceImages
    from captioning.training.console import progress, say
    from captioning.training.distributed import World, find_device
    from captioning.training.evaluate import Evaluator, warning_of_collapse, with_more
    from captioning.training.memory import keep_freed_memory
    from captioning.training.settings import autocast

    keep_freed_memory()
    search = make("search", settings["search"])
    if settings["out"] and Path(settings["out"]).is_file():
        raise UserError(f"out={settings['out']}: is a file; a folder is needed")
    device, path = find_device(settings["device"]), Path(settings["run"])
    trained = read_config(path)
    changes = {key: value for key, value in (settings.get("data") or {}).items() if value is not None}
    node = trained["data"] | changes
    if "root" in changes and "root" in node["reader"]:
        node["reader"] = node["reader"] | {"root": changes["root"]}
    kept = trained["cache"] | {key: value for key, value in (settings.get("cache") or {}).items() if value is not None}
    check({"data": node, "cache": kept})
    data = make("data", node)
    cache, world = make("cache", kept), World(device)
    splits, broken = read_splits(data, cache, world, settings["split"])
    records = splits[settings["split"]]
    run, source = evaluated_run(path, records, data, cache, settings["features"], world)
    images = ReferenceImages(records, run.vocabulary, data.max_length, source)
    evaluator = Evaluator(
        ReferenceBatches(images, data.batch_size, workers=data.workers),
        vocabulary=run.vocabulary,
        search=search,
        world=world,
        autocast=lambda: autocast(device, settings["precision"]),
    )
    with progress(f"captioning {settings['split']}", len(records)) as advance:
        evaluation = evaluator(run.model, advance)
    evaluation, notes = with_more(evaluation, evaluator.prepared, splits.get("train", []), settings["java"])
    folder = Path(settings["out"] or run.path)
    about = {"images": len(records)} | broken_images(broken.get(settings["split"])) | evaluation_of(settings, path)
    results.write(folder, evaluation, evaluator.references, about)
    (folder / FAILURE["eval"]).unlink(missing_ok=True)
    if settings["show"]:
        with torch.inference_mode():
            page, lines = captioned_pictures(run.model, images, settings["show"], data.transform, run.vocabulary, search)
        say("\n".join(lines))
        page.save(folder / "samples.png")
        say(f"\n{folder / 'samples.png'} shows them{' and where attention looked' if run.model.decoder.attends else ''}\n")
    for name, value in evaluation.metrics.items():
        say(f"{name:18} {value:.4f}" if isinstance(value, float) else f"{name:18} {value}")
    say(f"\n{denominator(len(records), settings['split'], broken)}; written to {folder / 'metrics.json'} and {folder / 'captions.json'}")
    for note in notes:
        say(f"note: {note}")
    if warning := warning_of_collapse(evaluation.captions):
        say(f"warning: {warning}")


def broken_images(broken: "Broken | None") -> dict[str, Any]:
    """Beside the metrics: which images they are not about, or of which the model saw nothing."""
    return {} if broken is None else {"skipped_images" if broken.policy == "skip" else "replaced_images": list(broken.reasons)}


def denominator(images: int, split: str, broken: "Mapping[str, Broken]") -> str:
    """`998 of 1000 images of test (2 cannot be read: data.broken=skip)`: what the metrics are about."""
    if not (its := broken.get(split)) or not its.reasons:
        return f"{images} images of {split}"
    return f"{images} of {its.images} images of {split} ({len(its.reasons)} cannot be read: data.broken={its.policy})"


def digest_of(run: Path) -> str | None:
    """Of the checkpoint that an evaluation takes."""
    from captioning.training import checkpoint

    folder = checkpoint.chosen(run)
    return checkpoint.sha256(folder / "manifest.json")[:16] if folder and (folder / "manifest.json").exists() else None


def read_evaluated(run: Path, folder: Path | None = None) -> "results.Evaluated":
    """folder: that evaluation of the run, if not the one in the run itself. UserError where the run was not evaluated, or was trained on
    since."""
    from captioning.analysis import results

    command = f"python eval.py run={run}" + (f" out={folder}, with the search that it is of" if folder else "")
    evaluated = results.read(folder or run, command)
    if evaluated.metrics.get("checkpoint") != digest_of(run):
        its = f"{folder}: the checkpoint of {run}" if folder else f"{run}: its checkpoint"
        raise UserError(f"{its} is another than the one evaluated: {command}")
    return evaluated


def run_of(path: Path) -> Path:
    """The run that a folder in it is another evaluation of (`eval.py run=RUN out=RUN/beam1`); anything else is taken for a run itself."""
    if (path / "config.yaml").is_file() or not any((path / name).is_file() for name in ("metrics.json", "captions.json")):
        return path
    if not (path.parent / "config.yaml").is_file():
        raise UserError(f"{path}: an evaluation, and {path.parent} is not its run: python eval.py run=RUN out=RUN/{path.name}")
    return path.parent


def evaluation_of(settings: dict[str, Any], run: Path) -> dict[str, Any]:
    """What decides on the numbers of an evaluation: it stands in metrics.json beside them."""
    import captioning

    return {
        **{key: settings[key] for key in ("split", "search", "precision", "features", "java")},
        "data": {key: value for key, value in (settings.get("data") or {}).items() if value is not None and key != "workers"},
        "checkpoint": digest_of(run),
        "captioning": captioning.__version__,
    }


def evaluated(config: DictConfig) -> tuple[Path, bool]:
    """Where the evaluation goes, and whether it is there: of the same checkpoint, split and settings."""
    from captioning.build.runs import read_config

    settings = as_dict(config)
    check(settings, needed=NEEDED)
    run = Path(settings["run"])
    read_config(run)
    folder, about = Path(settings["out"] or run), evaluation_of(settings, run)
    try:
        before = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return folder, False
    return folder, (folder / "scores.json").is_file() and all(before.get(key) == value for key, value in about.items())

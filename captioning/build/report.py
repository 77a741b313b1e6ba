"""What `captioning report` does: opens runs, their data and their models, and hands them to the page."""

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from safetensors import safe_open

from captioning.analysis import page, results
from captioning.analysis.cards import Pictures, Subject
from captioning.analysis.report import report
from captioning.analysis.samples import looked
from captioning.build.evaluation import read_evaluated
from captioning.build.objects import make
from captioning.build.runs import flat, load_run, read_config, read_env
from captioning.data.records import Splits
from captioning.errors import UserError
from captioning.training import checkpoint
from captioning.training.distributed import find_device

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm: kept with the parameters, and none


def write_report(path: Path, other: Path | None, *, out: Path | None, data_root: Path | None, device: str, examples: int) -> Path:
    """The file. Models are loaded only where a decoder attends, and see only the pictures whose attention is drawn."""
    where = find_device(device)
    if other is not None and other.resolve() == path.resolve():
        raise UserError(f"{other}: is the same run twice; OTHER must be another")
    paths = [path] if other is None else [path, other]
    configs = [read_config(its) for its in paths]
    evaluated = [read_evaluated(its) for its in paths]  # before anything slow: it may not be there
    pictures = find_pictures(configs[0], evaluated[0], data_root)
    names = [its.resolve().name for its in paths]
    names = names if len(set(names)) == len(names) else [str(its) for its in paths]
    subjects = [subject(*its, where) for its in zip(names, paths, configs, evaluated)]
    file = out or path / "report.html"
    page.write(file, report(subjects[0], subjects[1] if other is not None else None, pictures, examples))
    return file


def find_pictures(config: dict[str, Any], evaluated: results.Evaluated, data_root: Path | None) -> Pictures:
    """Of the images that were evaluated, where the data still is and has the same references."""
    there = evaluated.metrics.get("data", {}).get("root")  # evaluated elsewhere than trained
    splits, problem = read_data(config["data"], data_root or (Path(there) if there else None))
    records, wanted = splits.get(evaluated.metrics["split"], []), evaluated.references
    its = [record for record in records if record.captions == wanted.get(record.image_id)]
    if records and not its:
        problem = f"the data in {data_root or there or config['data']['root']} has other references than were evaluated"
    return Pictures({record.image_id: record.path for record in its}, problem)


def read_data(node: dict[str, Any], root: Path | None) -> tuple[Splits, str]:
    """The splits, or none and the reason: a report does without pictures, and never draws shapes anew."""
    if root is not None:
        node = node | {"root": str(root)}
        if "root" in node["reader"]:
            node["reader"] = node["reader"] | {"root": str(root)}
    try:
        if not Path(node["root"]).is_dir():
            raise UserError(f"data.root={node['root']}: no such folder")
        return make("data", node).reader(), ""
    except UserError as error:
        return {}, str(error)


def subject(name: str, path: Path, config: dict[str, Any], evaluated: results.Evaluated, device: torch.device) -> Subject:
    last, best = (checkpoint.find(path / kind) for kind in ("last", "best"))
    progress = checkpoint.load_state(last).get("progress", {}) if last else {}
    return Subject(
        name,
        facts(path, config, evaluated, progress, last),
        flat(config),
        progress.get("history", []),
        checkpoint.load_state(best)["step"] if best else None,
        config["trainer"]["monitor"],
        evaluated,
        partial(look, path, device, {}) if get_class(config["decoder"]["_target_"]).attends else None,
    )


def look(path: Path, device: torch.device, kept: dict[str, Any], picture: Path, caption: str) -> Any:
    """kept: the run, once it is loaded; the first picture does that."""
    if not kept:
        kept["run"] = load_run(path, device)
    run = kept["run"]
    return looked(run.model, run.transform, run.vocabulary, picture, caption)


def facts(path: Path, config: dict[str, Any], evaluated: results.Evaluated, progress: dict[str, Any], last: Path | None) -> dict[str, str]:
    env, trainer, data = read_env(path), config["trainer"], config["data"]
    metrics, sizes = evaluated.metrics, parameters(path)
    words = len(json.loads((path / "vocabulary.json").read_text(encoding="utf-8")))
    limit = f" (at most {trainer['max_steps']:,} steps)" if trainer["max_steps"] else ""
    steps, epochs, seconds = (progress.get(key, 0) for key in ("step", "epoch", "seconds"))
    more = f" x {trainer['accumulate']} accumulated" if trainer["accumulate"] > 1 else ""
    return {
        "Data": f"{node_in_words(data['reader'])}; pictures {data['transform']['size']} px",
        "Encoder": node_in_words(config["encoder"]) + (f"; {sizes['frozen']:,} frozen parameters" if sizes["frozen"] else ""),
        "Decoder": node_in_words(config["decoder"]),
        "Parameters trained": f"{sizes['trained']:,}",
        "Vocabulary": f"{words:,} words (those with {data['min_count']} or more occurrences in the training captions)",
        "Loss": node_in_words(config["loss"]),
        "Optimizer": f"{node_in_words(config['optimizer'])}; {node_in_words(config['scheduler'])}",
        "Batch": f"{data['batch_size']} captions{more}; {trainer['precision']}",
        "Seed": str(config["seed"]),
        "Trained": f"{steps:,} steps, {epochs} of {trainer['epochs']} epochs{limit}, {in_minutes(seconds)}",
        "Last checkpoint": date_of(last / "state.json") if last else "–",
        "Command": env.get("command") or "–",
        "Evaluated": f"{metrics.get('images', '?')} images of {metrics['split']}; {node_in_words(metrics['search'])}",
        "Software": f"captioning {env.get('captioning')}, torch {env.get('torch')}, {env.get('cuda') or 'CPU'}, "
        f"commit {(env.get('commit') or '–')[:12]}",
    }


def node_in_words(node: dict[str, Any]) -> str:
    """`Beam: beam_size 3, max_length 30`: the name of what it makes, and its plain settings that say something."""
    settings = {key: value for key, value in node.items() if not key.startswith("_") and value not in (None, False, 0, [], {})}
    said = ", ".join(f"{key} {value}" for key, value in settings.items() if not isinstance(value, dict | list))
    name = node["_target_"].rpartition(".")[2]
    return f"{name}: {said}" if said else name


def parameters(path: Path) -> dict[str, int]:
    """Numbers in the checkpoint, and in the frozen encoder's file, from the headers alone."""
    folder = checkpoint.chosen(path)
    files = {"trained": folder / "model.safetensors" if folder else None, "frozen": path / "encoder.safetensors"}
    return {kind: numbers_in(file) if file and file.is_file() else 0 for kind, file in files.items()}


def numbers_in(file: Path) -> int:
    with safe_open(file, "pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in list(tensors.keys()) if not name.endswith(STATISTICS)]
    return sum(int(torch.Size(shape).numel()) for shape in shapes)


def date_of(file: Path) -> str:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")


def in_minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"

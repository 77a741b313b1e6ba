"""Runs, and evaluations in folders of theirs, to what `captioning compare` compares: settings, captions' scores, and models to be timed."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from captioning.analysis.compare import Comparison
from captioning.analysis.cost import Captioner, Cost, cost_of, timed
from captioning.analysis.grouping import SEARCH, WEIGHTS, Group, Member
from captioning.build.evaluation import read_evaluated, run_of
from captioning.build.help import CONFIGS
from captioning.build.objects import make_data
from captioning.build.runs import MAY_CHANGE, flat, load_run, read_config, read_env
from captioning.errors import UserError
from captioning.models.encoders import Encoder, GivenFeatures
from captioning.training import checkpoint

HOW_LONG = {"trainer.epochs", "trainer.max_steps", "trainer.patience"}  # may change in one run, and yet makes two of them different ones
NOT_COMPARED = (MAY_CHANGE | {"seed"}) - HOW_LONG
FILES = {"encoder.weights", "vectors"}  # whose folder does not matter
PICTURES = 10


def read_members(paths: Sequence[Path]) -> list[Member]:
    """UserError for what is neither a whole, evaluated run nor an evaluation of one."""
    return [read_member(path) for path in dict.fromkeys(map(Path, paths))]


def read_member(path: Path) -> Member:
    run = run_of(path)
    config, env = read_config(run), read_env(run)
    if checkpoint.find(run / "best") is None:
        raise UserError(f"{run}: not trained to a first validation yet (no best checkpoint): train it on with the command that began it")
    evaluated = read_evaluated(run, path if path != run else None)
    last = checkpoint.find(run / "last")
    progress = checkpoint.load_state(last)["progress"] if last else {}
    settings, usual = settings_of(config), {}
    if env["encoder"] and config["encoder"].get("weights") not in (None, "none", "imagenet"):
        settings[WEIGHTS] = env["encoder"][:8]  # files and folders of one name need not be one
    for node, its in config.items():
        if isinstance(its, dict):
            settings[node], choice = choice_of(node, its)
            usual |= {f"{node}.{key}": value for key, value in choice.items()}
    search = evaluated.metrics["search"]
    settings |= {f"{SEARCH}.{key}": value for key, value in flat(search).items()}
    settings[SEARCH], choice = choice_of("search", search)
    usual |= {f"{SEARCH}.{key}": value for key, value in choice.items()}
    machine = str(env.get("cuda") or env.get("platform"))
    return Member(str(path), str(run.resolve()), config["seed"], settings, usual, evaluated, progress, machine)


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a run another one than others, by key; without its seed, its place, and what may change between equal runs."""
    compared = {
        key: value
        for key, value in flat(config).items()
        if not any(key == name or key.startswith(f"{name}.") for name in NOT_COMPARED) and not key.endswith("_partial_")
    }
    if compared.get("start"):  # runs/xe-s1 and runs/xe-s2 are seeds of one start
        compared["start"] = re.sub(r"-?s?\d+$", "", Path(compared["start"]).name)
    return {key: Path(value).name if key in FILES and isinstance(value, str) else value for key, value in compared.items()}


def choice_of(node: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The file of configs/NODE/ of this class that these settings are nearest to, and what stands in it: a config does not remember its
    choices. A class without a file goes by its own name."""
    mine, best = flat(settings), (settings.get("_target_", "").rpartition(".")[2], {})
    least = len(mine) + 1
    for name, content in choices(node).items():
        if any(mine.get(key) != value for key, value in content.items() if key.endswith("_target_")):
            continue  # a class or reader of another kind
        apart = sum(mine.get(key) != value for key, value in content.items() if not str(value).startswith("${"))
        if apart < least:
            least, best = apart, (name, content)
    return best


@cache
def choices(node: str) -> dict[str, dict[str, Any]]:
    if node == "cache":  # it stands in train.yaml itself
        whole = OmegaConf.to_container(OmegaConf.load(CONFIGS / "train.yaml"), resolve=False)
        return {"cache": flat(whole["cache"])} if isinstance(whole, dict) else {}
    files = sorted((CONFIGS / node).glob("*.yaml"))
    return {file.stem: flat(OmegaConf.to_container(OmegaConf.load(file), resolve=False)) for file in files}


def costs_of(groups: Sequence[Group], device: torch.device, timing: bool) -> tuple[dict[str, Cost], str]:
    """What each group's first run costs, and in words what times were taken of and where (empty without timing)."""
    encoders: dict[str, Encoder] = {}
    runs = {group.name: group.members[0].run for group in groups}  # groups of other searches may have one in common
    captioners = {run: captioner_of(Path(run), encoders) for run in dict.fromkeys(runs.values())}
    costs = {}
    for group in groups:
        words = float(np.mean([member.evaluated.metrics["length"] for member in group.members]))
        costs[group.name] = cost_of(captioners[runs[group.name]], words, [member.progress for member in group.members])
    if not timing:
        return costs, ""
    pictures, which = pictures_for(groups[0].members[0])
    for captioner in captioners.values():
        captioner.model.to(device)
    times = timed(captioners, pictures)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads of this CPU"
    about = f"ms an image: from {which} to its caption, one at a time, medians of rounds in turn on {where}; they hold for this machine"
    return {name: cost._replace(**times[runs[name]]) for name, cost in costs.items()}, about


def captioner_of(path: Path, encoders: dict[str, Encoder]) -> Captioner:
    """Runs with the same frozen encoder share it: a dozen times VGG would not fit every memory."""
    env, settings = read_env(path), read_config(path)["encoder"]
    key = repr((env["encoder"], {name: value for name, value in settings.items() if name != "weights"}))
    shared = encoders.get(key) if env["encoder"] else None
    run = load_run(path, torch.device("cpu"), GivenFeatures(shared.dims) if shared else None)
    if shared:
        run.model.encoder = shared
    encoders[key] = run.model.encoder
    return Captioner(run.model, run.transform, run.vocabulary)


def pictures_for(member: Member) -> tuple[list[Image.Image], str]:
    """The first test pictures where they still are, or else noise."""
    config = read_config(Path(member.run))
    split = member.evaluated.metrics["split"]
    try:
        data = make_data(config)
        records = data.reader()[split][:PICTURES]
        return [data.transform.read(record.path).copy() for record in records], f"a picture of {split} (read already)"
    except (UserError, KeyError, OSError):
        draws = np.random.default_rng(0)
        noise = [Image.fromarray(draws.integers(0, 256, (256, 256, 3), dtype=np.uint8)) for _ in range(PICTURES)]
        return noise, "noise (the test pictures are not where they were in training)"


def unfinished(comparison: Comparison) -> list[str]:
    """Runs that stopped before the epochs that their config asks for, without having been told to."""
    found = []
    for member in {member.run: member for group in comparison.groups for member in group.members}.values():
        epochs, patience, steps = (member.settings.get(f"trainer.{key}") for key in ("epochs", "patience", "max_steps"))
        at = member.progress
        if at and not patience and at.get("epoch", 0) < (epochs or 0) and not (steps and at.get("step", 0) >= steps):
            found.append(f"{member.path}: stopped at epoch {at.get('epoch')} of {epochs}; train it to its end")
    return found

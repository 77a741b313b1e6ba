"""A run directory: all that is needed to go on, to caption, to serve and to report."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file
from yaml import YAMLError

import captioning
from captioning.build.objects import make, make_encoder, make_model
from captioning.build.schema import TRAINING, check, check_targets
from captioning.cache.survey import Broken
from captioning.data.records import Splits
from captioning.data.transforms import Transform
from captioning.data.vocabulary import Vocabulary
from captioning.errors import UserError
from captioning.models.caption_model import CaptionModel
from captioning.models.encoders import Encoder, GivenFeatures
from captioning.training import checkpoint
from captioning.training.settings import Progress, Settings, ended_by

FORMAT = 4  # of a run directory; raised when an older program could misread a newer one
MAY_CHANGE = {  # between a run's start and its going on
    "run", "device", "features", "cache.dir", "cache.memory", "logger", "data.root", "data.reader.root", "data.workers",
    "trainer.epochs", "trainer.max_steps", "trainer.patience", "trainer.checkpoint_every", "trainer.checkpoint_minutes",
    "trainer.log_every", "trainer.samples",
}  # fmt: skip


class Run(NamedTuple):
    path: Path
    config: dict[str, Any]
    model: CaptionModel  # in eval mode
    vocabulary: Vocabulary
    transform: Transform


def default_directory(choices: dict[str, str], overrides: list[str], seed: int) -> Path:
    """`runs/<data>-<encoder>-<decoder>[-<key>=<value>...]-s<seed>`: without a time stamp, so that the same command finds it again.

    Every setting given on the command line that decides what is trained is part of the name, so members of a sweep have directories of
    their own; how long and where (MAY_CHANGE) is not.
    """
    parts = [choices["data"], choices["encoder"], choices["decoder"]]
    given = sorted(override.lstrip("+~") for override in overrides)
    given = [word for word in given if word.partition("=")[0] not in MAY_CHANGE | {"seed", "data", "encoder", "decoder"}]
    parts += [f"{key.rpartition('.')[2]}={Path(value).name}" for key, _, value in (word.partition("=") for word in given)]
    name = "".join(letter if letter.isalnum() or letter in "-_=.," else "_" for letter in "-".join(parts))
    if len(name) > 180 or any("/" in word for word in given):  # what is cut off still tells them apart
        name = f"{name[:180]}-{hashlib.sha256(repr(given).encode()).hexdigest()[:6]}"
    return Path("runs") / f"{name}-s{seed}"


def flat(node: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {path: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{path}.{name}" if path else name).items()}


def identity_of(config: dict[str, Any], vocabulary: Vocabulary, weights: str | None) -> dict[str, Any]:
    """What a checkpoint is of, as it keeps it itself: folders get copied. weights: what tells a frozen encoder's weights from others."""
    words = f"{len(vocabulary)} words, {vocabulary.digest[:12]}"
    about = {"format": FORMAT, "vocabulary": words, "encoder weights": weights, "optimizer": config["optimizer"]["_target_"]}
    return about | flat({key: config[key] for key in ("encoder", "decoder")})


def prepare(
    path: Path,
    config: dict[str, Any],
    splits: Splits,
    vocabulary: Vocabulary,
    weights: str | None,
    save_encoder: Callable[[Path], None] | None,
    broken: Mapping[str, Broken] = MappingProxyType({}),
) -> None:
    """Write what does not change in training. A frozen encoder's weights are kept here once, not in every checkpoint.

    weights: what tells a frozen encoder's weights from others. save_encoder: writes them into a file. broken: what `data.broken` did.
    """
    used = [(record.image_id, record.captions) for split in ("train", "val") for record in splits.get(split, [])] + stand_ins(broken)
    data = hashlib.sha256(repr(used).encode()).hexdigest()
    if (path / "config.yaml").exists():
        before = read_env(path)
        if before["data"] != data:
            root = config["data"]["root"]
            raise UserError(f"data.root={root}: {path} was trained with other images or captions: give another run=DIR")
        if before["encoder"] != weights:
            raise UserError(f"encoder.weights={config['encoder'].get('weights')}: {path} was trained with others: give another run=DIR")
        write_config(path, config)  # what may change has changed: more epochs, say
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        if save_encoder:
            (path / "encoder.safetensors").unlink(missing_ok=True)
            save_encoder(path / "encoder.safetensors")
        vocabulary.save(path / "vocabulary.json")
        files = [file for file in (path / "encoder.safetensors", path / "vocabulary.json") if file.exists()]
        about = environment() | {"data": data, "encoder": weights, "files": {file.name: checkpoint.sha256(file) for file in files}}
        about["broken"] = {split: its._asdict() for split, its in broken.items()}
        (path / "env.json").write_text(json.dumps(about, indent=1) + "\n")
        for file in (*files, path / "env.json"):
            checkpoint.flush(file)
    except OSError as error:
        raise UserError(f"run={path}: cannot be written ({error.strerror or error})") from None
    write_config(path, config)  # last: what has a config is a run


def stand_ins(broken: Mapping[str, Broken]) -> list[str]:
    """Images that are shown as a grey picture: the data is another."""
    return [image_id for its in broken.values() if its.policy == "replace" for image_id in its.reasons]


def write_config(path: Path, config: dict[str, Any]) -> None:
    try:
        OmegaConf.save(OmegaConf.create(config), path / "config.yaml.new")
        checkpoint.flush(path / "config.yaml.new")
        (path / "config.yaml.new").rename(path / "config.yaml")
        checkpoint.flush(path)
    except OSError as error:
        raise UserError(f"run={path}: cannot be written ({error.strerror})") from None


def save_weights(encoder: Encoder, file: Path) -> None:
    checkpoint.write_tensors(encoder.state_dict(), file)


def refuse_another(path: Path, config: dict[str, Any]) -> None:
    """The same directory may only go on with the same settings. Raises UserError naming the first that differ."""
    if path.exists() and not path.is_dir():
        raise UserError(f"run={path}: is a file; a folder is needed")
    if not (path / "config.yaml").exists():
        return
    before, now = flat(read_config(path)), flat(config)
    refuse_other_batches(path, before["data.batch_size"], now["data.batch_size"])
    changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)} - {"data.batch_size"}
    changed = sorted(key for key in changed if not any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE))
    if changed:
        key = changed[0]
        more = f" (and {', '.join(changed[1:4])})" if changed[1:] else ""
        raise UserError(f"{path} was trained with {key}={before.get(key)}, this is {key}={now.get(key)}{more}: give another run=DIR")


def refuse_other_batches(path: Path, before: int, now: int) -> None:
    """Another number of processes may go on, if their batches together are what a step saw before."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        together = checkpoint.load_state(checkpoint.find(path / "last") or path / "last")["together"]
    except (UserError, KeyError, TypeError):
        together = before * processes  # nothing was trained yet; or it is damaged, which will be said
    if now * processes != together:
        right = f"data.batch_size={together // processes} does it" if together % processes == 0 else f"{processes} processes cannot"
        raise UserError(
            f"{path} was trained with {together} captions a step, this is data.batch_size={now} on {processes} "
            f"process{'es' if processes > 1 else ''}: {right}, or give another run=DIR"
        )


def ending(path: Path, settings: Settings) -> tuple[Progress, str | None]:
    """Where the run is, by its last checkpoint, and the setting that ended it: None if it is not over."""
    folder = checkpoint.find(path / "last")
    try:
        at = Progress(**checkpoint.load_state(folder)["progress"]) if folder else Progress()
    except (UserError, KeyError, TypeError):
        return Progress(), None  # damaged: who goes on from it will say so
    return at, ended_by(settings, at)


@contextmanager
def alone(lock: Path, refusal: str) -> Iterator[None]:
    """One process a folder: a sweep that was killed may have left others at work. The system frees the lock when its owner dies."""
    file = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file.acquire(timeout=0)
    except Timeout:
        raise UserError(refusal) from None
    except OSError as error:
        raise UserError(f"{lock.parent}: cannot be written ({error.strerror})") from None
    try:
        yield
    finally:
        if [path.name for path in lock.parent.iterdir()] == [lock.name]:  # refused: nothing is left behind
            shutil.rmtree(lock.parent, ignore_errors=True)
        file.release()


def environment() -> dict[str, Any]:
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return {
        "format": FORMAT,
        "captioning": captioning.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": git.stdout.strip() or None,
        "command": " ".join(sys.argv),
    }


def read_env(path: Path) -> dict[str, Any]:
    try:
        about = json.loads((path / "env.json").read_text())
        version, _, _, _ = about["format"], about["data"], about["files"], about["encoder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"run={path}: not a whole run directory (env.json: {error})") from None
    if version != FORMAT:
        raise UserError(f"run={path}: a run directory of format {version}; captioning {captioning.__version__} reads format {FORMAT}")
    return about


def read_config(path: Path) -> dict[str, Any]:
    """The config of a run directory, of this format. Raises UserError where it is not one, or names what may not be built."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"run={path}: not a run directory (no config.yaml there); train.py makes one")
    read_env(path)
    try:
        config = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"run={path}: not a whole run directory ({reason})") from None
    if not isinstance(config, dict):
        raise UserError(f"run={path}: config.yaml holds no settings")
    settings = {str(key): value for key, value in config.items()}
    check_targets(settings)
    check(settings, needed=TRAINING)
    return settings


def load_run(path: Path, device: torch.device, features: GivenFeatures | None = None) -> Run:
    """The trained model of a run, from the directory alone: the best checkpoint, or the last where none is best yet.

    features: stands for a frozen encoder, which is then not built.
    """
    config = read_config(path)
    for name, digest in read_env(path)["files"].items():
        if not (path / name).is_file() or checkpoint.sha256(path / name) != digest:
            raise UserError(f"{path / name}: {'damaged since it was written' if (path / name).exists() else 'missing'}")
    folder = checkpoint.chosen(path)
    if folder is None:
        raise UserError(f"run={path}: has no checkpoint yet")
    checkpoint.verify(folder, "model")
    vocabulary = Vocabulary.load(path / "vocabulary.json")
    about = checkpoint.load_state(folder).get("of", {})
    checkpoint.refuse_another(folder, about, identity_of(config, vocabulary, read_env(path)["encoder"]))
    weightless = {"weights": "none"} if "weights" in config["encoder"] else {}
    encoder = features or make_encoder({"encoder": config["encoder"] | weightless}, seed=0)
    model = make_model(config, encoder, vocabulary, seed=0)
    weights = checkpoint.load_tensors(folder, "model")
    if (path / "encoder.safetensors").exists() and not features:
        encoder.load_state_dict(load_file(path / "encoder.safetensors"))
    checkpoint.load_weights(model, weights, folder)
    return Run(path, config, model.to(device).eval(), vocabulary, make("data.transform", config["data"]["transform"]))

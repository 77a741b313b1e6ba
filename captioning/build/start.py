"""A run that begins with another's weights and vocabulary: what fits, and what is taken."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from captioning.build.runs import flat, load_run, read_config, read_env
from captioning.errors import UserError
from captioning.models.caption_model import CaptionModel
from captioning.models.encoders import GivenFeatures
from captioning.training import checkpoint

MAY_DIFFER = {  # settings that decide on no weight's shape; encoder.weights is compared by content
    "decoder.dropout", "encoder.weights", "encoder.finetune", "encoder.finetune_lr", "encoder.finetune_epoch",
}  # fmt: skip


@contextmanager
def naming_start(path: Path) -> Iterator[None]:
    """Errors of a run directory name the key by which this one was given."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(f"run={path}:", f"start={path}:")) from None


def check_start(path: Path, config: dict[str, Any]) -> None:
    """It has a checkpoint, and its encoder and decoder are those of this config. Raises UserError naming the first that differs."""
    with naming_start(path):
        theirs = read_config(path)
    if checkpoint.chosen(path) is None:
        raise UserError(f"start={path}: has no checkpoint yet")
    if config["vectors"] is not None:
        raise UserError(f"vectors={config['vectors']}: the embeddings come from start={path}; allowed with it: null")
    before, now = (flat({part: its[part] for part in ("encoder", "decoder")}) for its in (theirs, config))
    for key in sorted(before.keys() | now.keys(), key=lambda key: ("_target_" not in key, key)):  # another class first
        if before.get(key) != now.get(key) and key not in MAY_DIFFER:
            raise UserError(f"start={path}: was trained with {key}={before.get(key)}, this is {key}={now.get(key)}: take the same")


def check_frozen(path: Path, weights: str | None) -> None:
    """weights: what tells this run's frozen encoder from others; None: it is trained, and begins with theirs."""
    with naming_start(path):
        theirs = read_env(path)["encoder"]
    if weights is not None and theirs is None:
        raise UserError(f"start={path}: has an encoder that was trained there: train it here too, with its encoder.finetune")
    if weights not in (None, theirs):
        raise UserError(f"start={path}: was trained with other encoder weights: give its encoder.weights (and its seed, if they are none)")


def take_weights(path: Path, model: CaptionModel) -> dict[str, Any]:
    """The best checkpoint's, into a model of the same shapes. -> Where that run was, and its metrics."""
    features = model.encoder if isinstance(model.encoder, GivenFeatures) else None
    with naming_start(path):
        model.load_state_dict(load_run(path, torch.device("cpu"), features).model.state_dict())
    folder = checkpoint.chosen(path)
    assert folder is not None  # load_run has read it
    state = checkpoint.load_state(folder)
    return state.get("progress", state)

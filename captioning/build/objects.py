"""Nodes of a config to the objects they name."""

from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from captioning.data.settings import Data
from captioning.data.vocabulary import Vocabulary
from captioning.errors import UserError, did_you_mean
from captioning.models.caption_model import CaptionModel
from captioning.models.encoders import Encoder
from captioning.randomness import seed_for
from captioning.training.evaluate import measure
from captioning.training.settings import Settings


def make(path: str, node: dict[str, Any], **given: Any) -> Any:
    """What the node's `_target_` makes of its values and of the objects given. A constructor's ValueError is the user's to mend."""
    try:
        return instantiate(node, _convert_="all", _partial_=True)(**given)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(f"{path}: {error.__cause__ or error}") from error


def make_data(config: dict[str, Any]) -> Data:
    return make("data", config["data"])


def make_settings(config: dict[str, Any]) -> Settings:
    settings = make("trainer", config["trainer"])
    known = [*measure({"": ""}, {"": [""]}), "loss"]
    if settings.monitor not in known:
        raise UserError(f"trainer.monitor={settings.monitor}: no such metric.{did_you_mean(settings.monitor, known)}")
    return settings


def make_optimizer(config: dict[str, Any], model: CaptionModel | None) -> torch.optim.Optimizer:
    """What is fine-tuned of the encoder is a group of its own, with its own learning rate. Without a model: a trial of the settings."""
    if model is None:
        return make("optimizer", config["optimizer"], params=[torch.zeros(1, requires_grad=True)])
    groups: list[dict[str, Any]] = [{"params": [p for p in model.decoder.parameters() if p.requires_grad]}]
    if moving := [p for p in model.encoder.parameters() if p.requires_grad]:
        own = {} if model.encoder.finetune_lr is None else {"lr": model.encoder.finetune_lr}
        groups.append({"params": moving} | own)
    return make("optimizer", config["optimizer"], params=groups)


def make_encoder(config: dict[str, Any], seed: int) -> Encoder:
    torch.manual_seed(seed_for(seed, "encoder"))
    return make("encoder", config["encoder"])


def make_model(config: dict[str, Any], encoder: Encoder, vocabulary: Vocabulary, seed: int) -> CaptionModel:
    """The decoder's first weights depend on the seed alone, not on how the encoder was built."""
    torch.manual_seed(seed_for(seed, "decoder"))
    decoder: nn.Module = make("decoder", config["decoder"], feature_dims=encoder.dims, vocab_size=len(vocabulary))
    return CaptionModel(encoder, decoder)  # type: ignore[arg-type]

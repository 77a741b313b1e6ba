"""Hydra's side: find the configs, compose them, and say in plain words what was mistyped."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioning.build.help import CONFIGS
from captioning.errors import UserError, did_you_mean, plain_errors

LAUNCHERS = ["basic", "joblib", "submitit_local", "submitit_slurm"]


def composed(name: str, overrides: list[str]) -> DictConfig:
    """The config that `python train.py OVERRIDES` (name `train`) or `python eval.py OVERRIDES` (`eval`) would have."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"), plain_hydra_errors(name, overrides):
        return compose(name, overrides)


def as_dict(config: DictConfig) -> dict[str, Any]:
    """Plain and resolved. Raises UserError for a value that must be given and was not."""
    try:
        content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: must be given, as in {error.full_key}=...") from None
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key != "hydra"}


def as_given(overrides: Any) -> list[str]:
    """Hydra's list of overrides; to go through it as it is would put in what `${...}` stands for now."""
    words = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(words, list)
    return words


@contextmanager
def entry_point(name: str) -> Iterator[None]:
    """Every mistake of the user's is one line and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to here instead of printing and exiting with 1
    with plain_errors(), plain_hydra_errors(name, sys.argv[1:]):
        yield


@contextmanager
def plain_hydra_errors(name: str, overrides: list[str]) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(in_plain_words(error, name, overrides)) from error
    except ValueError as error:
        if "can be specified" in str(error):  # -m and --cfg, say
            raise UserError(str(error)) from error
        if "Config group override" not in str(error):
            raise
        empty = ", ".join(word for word in overrides if word.endswith(("=null", "=")))
        raise UserError(f"{empty}: must be one of the choices in configs/{empty.partition('=')[0]}/") from error


def in_plain_words(error: Exception, name: str, overrides: list[str]) -> str:
    text = str(error)
    groups = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
    if match := re.search(r"Could not find '([\w/]+)/([^'/]+)'", text):
        if match[1] == "hydra/launcher" and match[2] in LAUNCHERS:
            return f'hydra/launcher={match[2]}: its package is not installed; pip install "captioning[sweep]"'
        options = LAUNCHERS if match[1] == "hydra/launcher" else [path.stem for path in (CONFIGS / match[1]).glob("*.yaml")]
        return f"{match[1]}={match[2]}: no such choice.{did_you_mean(match[2], options)}"
    if match := re.search(r"Could not (?:override|append to config)[^']*'([^']+)'", text):
        key = match[1].split("@")[0]
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(composed(name, choices_in(overrides, groups)), parent) if parent else None
        known = list(node) if isinstance(node, DictConfig) else [*groups, *composed(name, [])]
        known = list(dict.fromkeys(str(word) for word in known if not str(word).startswith("_") and word != "hydra"))
        return f"{key}: no such key{f' in {parent}' if isinstance(node, DictConfig) else ''}.{did_you_mean(last, known)}"
    if "grammar" in type(error).__module__ or "OverrideParse" in type(error).__name__:
        wrong = next((word for word in overrides if word in text), text.splitlines()[0])
        return f"{wrong}: cannot be read as key=value; quote a value with spaces, commas, brackets or =, as in 'key=\"a, b\"'"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def choices_in(overrides: list[str], groups: list[str]) -> list[str]:
    """Only those overrides that choose from a group, and so decide which keys there are."""
    pairs = [word.partition("=") for word in overrides]
    return [f"{key}={value}" for key, _, value in pairs if key in groups and (CONFIGS / key / f"{value}.yaml").exists()]

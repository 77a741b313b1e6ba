"""Are these values what the constructors take? The signature of a `_target_` is the schema of its node."""

import importlib
import inspect
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from captioning.errors import UserError, did_you_mean
from captioning.kinds import Fraction, Number, Positive, Whole

TOP = {  # keys of train.yaml and eval.yaml themselves
    "seed": Whole,
    "device": str,
    "features": Literal["on", "off", "auto"],
    "run": str | None,
    "vectors": str | None,
    "start": str | None,
    "split": Literal["train", "val", "test"],
    "precision": Literal["fp32", "bf16", "fp16"],
    "out": str | None,
    "show": Whole,
    "java": bool,
}
OPTIMIZER = {"lr": Positive, "weight_decay": Number, "momentum": Fraction}  # torch's own hints know no ranges
TRAINING = (  # what a run needs
    "data", "encoder", "decoder", "search", "loss", "optimizer", "scheduler", "trainer", "logger",
    "cache", "seed", "device", "features", "run", "vectors",
)  # fmt: skip
HYDRA_KEYS = {"_target_", "_partial_"}


def check(config: dict[str, Any], needed: tuple[str, ...] = ()) -> None:
    """Refuse a value of the wrong kind or range, or a key the constructor does not have, before anything is read."""
    for name in needed:
        if name in TOP:
            if name not in config:
                raise UserError(f"{name}: must be given, as in {name}=...")
        elif not (isinstance(config.get(name), dict) and "_target_" in config[name]):
            allowed = f"one of the choices in configs/{name}/" if name != "cache" else "as in configs/train.yaml"
            raise UserError(f"{name}={config.get(name)}: must be {allowed}")
    for key in TOP.keys() & config.keys():
        check_value(key, config[key], TOP[key])
    for key, node in config.items():
        if isinstance(node, dict):
            check_node(key, node)


def check_node(path: str, node: dict[str, Any]) -> None:
    if "_target_" not in node:
        return
    target = locate(node["_target_"], f"{path}._target_")
    signature = inspect.signature(target)
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    except NameError:  # optuna's: they name what is imported for type checkers alone
        hints = {}
    hints |= OPTIMIZER if target.__module__.startswith("torch.optim") else {}
    for key, value in node.items():
        if key in HYDRA_KEYS:
            continue
        if key not in signature.parameters:
            raise UserError(f"{path}.{key}={value}: {path} has no such key.{did_you_mean(key, signature.parameters)}")
        if isinstance(value, dict) and "_target_" in value:
            check_node(f"{path}.{key}", value)
        elif key in hints:
            check_value(f"{path}.{key}", value, hints[key])


def check_value(path: str, value: Any, kind: Any) -> None:
    settings = None if isinstance(kind, type) and hasattr(kind, "__pydantic_config__") else ConfigDict(arbitrary_types_allowed=True)
    try:
        TypeAdapter(kind, config=settings).validate_python(value)
    except ValidationError as error:
        reasons = {str(item["msg"]).removeprefix("Input ") for item in error.errors() if item["type"] != "is_instance_of"}
        raise UserError(f"{path}={value}: {' or '.join(sorted(reasons))}") from None


def locate(name: str, path: str) -> Any:
    """The class or function of a dotted name."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"{path}={name}: no such class or function") from None


def why_closed(config: dict[str, Any]) -> str | None:
    """Why nothing would open the run directory of this config, known before hours are spent on it."""
    try:
        check_targets(config)
    except UserError as error:
        return str(error)


def check_targets(node: Any, path: str = "") -> None:
    """A config that came from a run directory may build this package's own things and torch's optimizers, and nothing else.

    The object found must itself be of there: `captioning.x.os.system` would pass by its name alone.
    """
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        here = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            allowed = isinstance(value, str) and value.startswith(("captioning.", "torch.optim."))
            home = getattr(locate(value, here), "__module__", "") if allowed else ""
            if not f"{home}.".startswith(("captioning.", "torch.optim.")):
                raise UserError(f"{here}={value}: a run directory may name only targets under captioning. and torch.optim.")
        elif isinstance(key, str) and key.startswith("_") and key not in HYDRA_KEYS:
            raise UserError(f"{here}={value}: not allowed in a run directory's config")
        check_targets(value, here)

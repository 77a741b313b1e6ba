"""Checkpoints: a folder written aside, made safe, checked by SHA-256 and moved into place. Tensors and JSON: nothing in it can run code."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from captioning.errors import UserError
from captioning.models.weights import sha256

# Writing


def save(folder: Path, *, tensors: Mapping[str, dict[str, Tensor]], state: dict[str, Any], keep_before: bool = False) -> None:
    """Write `NAME.safetensors` for each group of tensors and `state.json` into `folder`, all at once or not at all.

    At every moment there is a whole checkpoint, here or in `FOLDER.before`; with keep_before the last but one stays there.
    Raises UserError where it cannot be written (full, read-only, damaged disk).
    """
    new, before = beside(folder)
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name, group in tensors.items():
            write_tensors(group, new / f"{name}.safetensors")
        (new / "state.json").write_text(json.dumps(state, indent=1))
        (new / "manifest.json").write_text(manifest_text({file.name: sha256(file) for file in sorted(new.iterdir())}))
        for path in (*new.iterdir(), new):
            flush(path)
        if folder.exists():  # else the one before is the only one there is
            shutil.rmtree(before, ignore_errors=True)
            folder.rename(before)
        new.rename(folder)
        flush(folder.parent)
        tidy(folder, keep_before=keep_before)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        left = find(folder)
        kept = f"the one before it is in {left}" if left else "there was none before"
        raise UserError(f"{folder}: the checkpoint cannot be written ({error.strerror or error}); {kept}") from None


def beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.before")


def tidy(folder: Path, *, keep_before: bool) -> None:
    """Remove what a save that was killed has left."""
    new, before = beside(folder)
    shutil.rmtree(new, ignore_errors=True)
    if folder.exists() and not keep_before:
        shutil.rmtree(before, ignore_errors=True)


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """With the permissions that new files have here: safetensors would let nobody else read it."""
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(apart(tensors), file)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    file.chmod(mode)


def manifest_text(manifest: dict[str, str]) -> str:
    return json.dumps(manifest, indent=1)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and tied weights twice: safetensors refuses two names for one memory."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        result[name] = tensor.detach().to("cpu").contiguous()
        if tensor.data_ptr() in seen:
            result[name] = result[name].clone()
        seen.add(tensor.data_ptr())
    return result


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Finding


def find(folder: Path) -> Path | None:
    """The checkpoint: in place, or the one before it, should a save have died between the two."""
    return next((path for path in (folder, beside(folder)[1]) if (path / "manifest.json").exists()), None)


def chosen(run: Path) -> Path | None:
    """What a run is judged and used by: `best`, or `last` where there is none yet. A damaged `best` is nobody's `last`."""
    best = run / "best"
    return find(best) or (best if best.exists() else find(run / "last"))


def verify(folder: Path, *names: str) -> None:
    """Every file is what was written, and these tensors are there: a flipped byte would otherwise load silently."""
    try:
        text = (folder / "manifest.json").read_text()
        manifest = json.loads(text)
        damaged = [name for name, digest in manifest.items() if sha256(folder / name) != digest]
        damaged += [] if text == manifest_text(manifest) else ["manifest.json"]
        absent = sorted({"state.json", *(f"{name}.safetensors" for name in names)} - manifest.keys())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{folder}: not a whole checkpoint ({error})") from None
    if damaged:
        raise UserError(f"{folder}: damaged since it was written: {', '.join(damaged)}")
    if absent:
        raise UserError(f"{folder}: not a whole checkpoint (without {', '.join(absent)})")


def newest_whole(folder: Path, *names: str) -> tuple[Path | None, str]:
    """What to go on from, and what is wrong with a newer one that is passed over. Raises UserError where all are damaged."""
    problem = ""
    for path in filter(Path.exists, (folder, beside(folder)[1])):
        try:
            verify(path, *names)
            return path, problem
        except UserError as error:
            problem = problem or str(error)
    if problem:
        raise UserError(problem)
    return None, ""


# Reading


def load_state(folder: Path) -> dict[str, Any]:
    """Also of a checkpoint that nobody has verified: to be finished, say, must be no flipped bit. Raises UserError."""
    try:
        content = (folder / "state.json").read_bytes()
        state, written = json.loads(content), json.loads((folder / "manifest.json").read_text())["state.json"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a whole checkpoint ({error})") from None
    if hashlib.sha256(content).hexdigest() != written:
        raise UserError(f"{folder}: damaged since it was written: state.json")
    return state


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(folder / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / name}.safetensors: holds no tensors ({error})") from None


def refuse_another(folder: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """What they are of: the format, and settings of the encoder, the decoder and the vocabulary. Raises UserError with both names."""
    for key in sorted(theirs.keys() | ours.keys(), key=lambda key: (key != "format", "_target_" not in key, key)):
        if theirs.get(key) != ours.get(key):
            raise UserError(f"{folder}: is a checkpoint of {key}={theirs.get(key)}, this run is of {key}={ours.get(key)}")


def load_weights(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Everything but a frozen encoder's must be there. Raises UserError for a checkpoint of another model."""
    try:
        absent, strange = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"{folder}: is of another model ({str(error).splitlines()[-1].strip()})") from None
    if strange or any(not name.startswith("encoder.") for name in absent):
        raise UserError(f"{folder}: is of another model (it lacks {absent[:3]} and has {strange[:3]})")


# The optimizer: its tensors, and the rest of its state


def taken_apart(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `NUMBER.NAME` of parameter and memory, and what is left: plain numbers and words."""
    whole = optimizer.state_dict()
    tensors, plain = {}, {}
    for number, memory in whole["state"].items():
        tensors |= {f"{number}.{name}": value for name, value in memory.items() if isinstance(value, Tensor)}
        plain[str(number)] = {name: value for name, value in memory.items() if not isinstance(value, Tensor)}
    return tensors, {"state": plain, "param_groups": whole["param_groups"]}


def put_together(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {int(number): dict(memory) for number, memory in plain["state"].items()}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state[int(number)][name] = value
    optimizer.load_state_dict({"state": state, "param_groups": plain["param_groups"]})
    for parameter, memory in optimizer.state.items():  # a fused kernel walks through memory: its order must be the parameter's
        for name, value in memory.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                memory[name] = torch.empty_like(parameter).copy_(value)

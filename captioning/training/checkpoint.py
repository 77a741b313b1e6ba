"""Checkpoints: a folder written aside, checked by SHA-256 and moved into place. No pickled object is ever loaded."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from captioning.errors import UserError
from captioning.models.weights import sha256


def save(folder: Path, *, tensors: dict[str, dict[str, Tensor]], optimizer: dict[str, Any] | None, state: dict[str, Any]) -> None:
    """Write `NAME.safetensors` for each group of tensors, `optimizer.pt` and `state.json`, then put the folder in place at once."""
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, group in tensors.items():
        save_file(apart(group), new / f"{name}.safetensors")
    if optimizer is not None:
        torch.save(optimizer, new / "optimizer.pt")
    (new / "state.json").write_text(json.dumps(state, indent=1))
    manifest = {file.name: sha256(file) for file in sorted(new.iterdir())}
    (new / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for file in (*new.iterdir(), new):
        flush(file)
    if folder.exists():  # else `old` is the only one there is
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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


def find(folder: Path) -> Path | None:
    """The checkpoint: in place, or set aside by a save that did not end."""
    for path in (folder, folder.with_name(f"{folder.name}.old")):
        if (path / "manifest.json").exists():
            return path
    return None


def verify(folder: Path) -> None:
    """Every file is what was written: a flipped byte in a tensor file would otherwise load silently."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        damaged = [name for name, digest in manifest.items() if sha256(folder / name) != digest]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a whole checkpoint ({error})") from None
    if damaged:
        raise UserError(f"{folder}: damaged since it was written: {', '.join(damaged)}")


def load_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state.json").read_text())


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors")


def load_optimizer(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)


def load_weights(model: nn.Module, weights: dict[str, Tensor], run: Path) -> None:
    """Everything but a frozen encoder's must be there. Raises UserError for a checkpoint of another model."""
    try:
        absent, strange = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"run={run}: its checkpoint is of another model ({str(error).splitlines()[-1].strip()})") from None
    if strange or any(not name.startswith("encoder.") for name in absent):
        raise UserError(f"run={run}: its checkpoint is of another model (it lacks {absent[:3]} and has {strange[:3]})")

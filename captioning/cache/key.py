"""What cached features depend on, and the key that follows from it: another weights file, layer, transform or image never hits."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from captioning.data.records import Record
from captioning.data.transforms import Transform
from captioning.kinds import Fraction

FORMAT = 4  # of a store; raised when its layout, or how pictures are read, changes
NOT_CONTENT = {"weights", "finetune", "finetune_lr", "finetune_epoch"}  # weights: their hash stands for their path


@dataclass(frozen=True)
class CacheSettings:
    """
    dir: where features are kept.
    dtype: how they are stored. fp16 has 11 bits of precision and ends at 65504, bf16 has 8 bits.
    precision: of the encoder's arithmetic in extraction. bf16 is 2-3 times faster on CPUs that have it, and about 1% off.
    memory: held in the memory of the device where they take at most this share of what is free there; else read from disk as needed.
    """

    dir: str = "cache"
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    memory: Fraction = 0.5


def recipe_of(
    encoder: dict[str, Any], weights: str, transform: Transform, records: Sequence[Record], settings: CacheSettings
) -> dict[str, Any]:
    """Everything that the features of these images depend on.

    encoder: its settings. weights: what tells them from all others. An image is known by name, size in bytes and time of change.
    """
    manifest = hashlib.sha256()
    for record in records:
        stat = record.path.stat()
        manifest.update(repr((record.image_id, stat.st_size, stat.st_mtime_ns)).encode())
    return {
        "format": FORMAT,
        "encoder": {name: value for name, value in encoder.items() if name not in NOT_CONTENT},
        "weights": weights,
        "transform": repr(replace(transform, flip=0.0)),  # what is kept is never augmented; zoom decides on how large a JPEG is read
        "dtype": settings.dtype,
        "precision": settings.precision,
        "images": manifest.hexdigest(),
    }


def key_of(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:20]


def folder_of(recipe: dict[str, Any], settings: CacheSettings) -> Path:
    return Path(settings.dir) / "features" / key_of(recipe)

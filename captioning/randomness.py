"""Randomness is a function of position: whoever knows (seed, epoch, index) draws the same numbers, on any worker, after any restart."""

import hashlib

import torch


def seed_for(*position: int | str) -> int:
    """A 63-bit seed that depends on every part of the position and on nothing else."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(*position: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(*position))

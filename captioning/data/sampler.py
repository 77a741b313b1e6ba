"""Which captions make which batch, as a function of (seed, epoch). Knows lengths and numbers, no images."""

from collections.abc import Sequence

import torch

from captioning.randomness import generator_for

POOL = 50  # batches: captions are sorted by length within pools of so many batches


def batches(lengths: Sequence[int], together: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """This rank's batches of caption numbers for one epoch, each of captions of like length, in a random order.

    Every rank gets the same number of batches, and the ranks' batches of one step are one batch of `together`:
    two processes of 32 see what one process of 64 sees. Grouping by length keeps padding
    under 4% (random batches waste about half).
    """
    order = torch.randperm(len(lengths), generator=generator_for(seed, "order", epoch)).tolist()
    pools = [order[start : start + POOL * together] for start in range(0, len(order), POOL * together)]
    grouped = [sorted(pool, key=lambda index: lengths[index]) for pool in pools]
    joint = [pool[start : start + together] for pool in grouped for start in range(0, len(pool), together)]
    joint = [batch for batch in joint if len(batch) >= world]  # no rank may be left without a caption
    shuffled = torch.randperm(len(joint), generator=generator_for(seed, "batches", epoch)).tolist()
    return [joint[index][rank::world] for index in shuffled]

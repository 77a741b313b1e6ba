"""Memory of a run: the C library's allocator is told to keep what was freed for the next step; and the most that was ever used."""

import ctypes
import resource
import sys

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep_freed_memory() -> None:
    """A step on the CPU frees hundreds of megabytes and takes them again. Left alone, glibc gives them back to the system, which has to
    clear every page anew: a tenth to a quarter of an attention step. Elsewhere than on Linux nothing is done."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):  # musl has none
            library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
            library.mallopt(MMAP_THRESHOLD, 2**25)  # the largest it takes


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on the GPU, or this process on the CPU, so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

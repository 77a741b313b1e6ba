"""Memory of a run: the C library's allocator is told to keep what was freed for the next step; and the most that was ever used."""

import ctypes
import gc
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

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


def forget_peak(device: torch.device) -> None:
    """From now on `peak_memory` counts: what a process did before (another run of a sweep, an extraction) is not this run's."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)  # what is free, and only kept, is nobody's
        with suppress(OSError):  # where it is not allowed, the whole process's peak stands
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on the GPU, or this process on the CPU, since `forget_peak` (elsewhere than on Linux, ever)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux" and (match := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())):
        return 1024 * int(match[1])
    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

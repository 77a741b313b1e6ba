"""The C library's allocator, told to keep what was freed for the next step."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep_freed_memory() -> None:
    """A step on the CPU frees hundreds of megabytes and takes them again. Left alone, glibc gives them back to the system, which has to
    clear every page anew: a tenth to a quarter of an attention step. Elsewhere than on Linux nothing is done."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):  # musl has none
            library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
            library.mallopt(MMAP_THRESHOLD, 2**25)  # the largest it takes

"""Memory that the process gets from the operating system."""

import ctypes
import gc
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_LARGE, _LARGEST_OF_OLD = 2**30, 2**25


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step instead of giving them back.

    A step frees and allocates gradients of tens of MB; given back, each page is faulted in and
    zeroed anew, a fifth of a small step. Does nothing where the C library is not glibc.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            if not mallopt(_MMAP_THRESHOLD, _LARGE):  # glibc before 2.35 allows no more than this
                mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD)
            mallopt(_TRIM_THRESHOLD, _LARGE)


def return_freed_memory() -> None:
    """Give the operating system back what glibc keeps after large objects were freed.

    Loading an LM leaves hundreds of MB behind. Does nothing where the C library is not glibc.
    """
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)

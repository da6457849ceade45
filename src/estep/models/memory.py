"""What sampling and training both do about memory: keep the freed on a CPU, give back the unused on a GPU."""

import ctypes
import functools
import gc
import platform
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_UP_TO = (1 << 30, 32 << 20)
"""The threshold in bytes, and the highest that older versions of glibc take."""


@functools.cache
def keep_freed_memory() -> None:
    """Let freed tensors be used again instead of going back to the operating system.

    glibc maps every large tensor afresh and gives it back when it is freed, so that each one costs a page fault for
    every 4 KiB. Kept memory saves that (measured in docs/log.md). The process's memory then stays at its peak.
    Does nothing where the C library is another.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    any(mallopt(_M_MMAP_THRESHOLD, threshold) for threshold in _KEEP_UP_TO)  # until one is taken


def return_freed_memory() -> None:
    """Give what `keep_freed_memory` kept back to the operating system, between one run and the next: the free places
    that one left would not all fit the other, and a long study would grow."""
    gc.collect()
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def free_memory(device: Any) -> None:
    """Free what nothing refers to any more, and a GPU's memory that torch holds for later.

    Args:
        device: a torch device.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

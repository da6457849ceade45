"""Memory settings for sampling and training: reuse freed memory on a CPU, release unused memory on a GPU."""

import ctypes
import functools
import gc
import platform
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_UP_TO = (1 << 30, 32 << 20)
"""The threshold in bytes, then the highest that older versions of glibc accept."""


@functools.cache
def keep_freed_memory() -> None:
    """Reuse the memory of freed tensors instead of returning it to the operating system.

    By default glibc maps every large tensor anew and unmaps it when it is freed, which costs a page fault per 4 KiB.
    Keeping the memory avoids that (measured in docs/log.md), but the process's memory then stays at its peak. Does
    nothing with other C libraries.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    any(mallopt(_M_MMAP_THRESHOLD, threshold) for threshold in _KEEP_UP_TO)  # until one is accepted


def return_freed_memory() -> None:
    """Return the memory that `keep_freed_memory` kept to the operating system.

    Call it between runs: fragmentation would otherwise make a long study grow.
    """
    gc.collect()
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def free_memory(device: Any) -> None:
    """Collect garbage, and release GPU memory that torch has cached.

    Args:
        device: a torch device.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

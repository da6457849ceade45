"""The global random generators, which libraries use and reseed."""

import contextlib
import random
from collections.abc import Iterator


@contextlib.contextmanager
def preserve_rng_state(seed: int | None = None) -> Iterator[None]:
    """Restore the generators of python, numpy and torch after the block.

    Args:
        seed: seeds them for the block; None to leave them as they are.
    """
    import numpy
    import torch
    from transformers import set_seed

    python_state, numpy_state = random.getstate(), numpy.random.get_state()  # noqa: NPY002
    # Asking for CUDA's generators would initialize CUDA, and vLLM could not fork afterwards.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            if seed is not None:
                set_seed(seed % 2**32)
            yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)  # noqa: NPY002

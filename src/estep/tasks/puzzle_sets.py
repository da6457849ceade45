"""The data sets of reasoning-gym."""

import functools
from typing import Any

from estep.errors import ConfigError, nearest


@functools.cache
def verifier(name: str) -> Any:
    """The data set that scores answers."""
    return data_set(name, size=1, seed=0)


def data_set(name: str, **settings: Any) -> Any:
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError("puzzles come from reasoning-gym: pip install 'estep[gym]'") from error
    if name not in DATASETS:
        raise ConfigError(f"reasoning-gym has no data set '{name}'; {nearest(name, DATASETS)}")
    return create_dataset(name, **settings)

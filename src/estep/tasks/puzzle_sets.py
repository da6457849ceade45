"""The data sets of reasoning-gym, and which of their verifiers may judge what a model says.

For one version of reasoning-gym, `puzzle_sets.json` lists the data sets whose verifiers evaluate no text as code, give
their own answers the full score and gave it to no wrong answer that was tried (`verified`). It also lists those whose
puzzles have one answer in one form, so that equality judges (`exact`). All others are refused: a verifier that nobody
has looked at may run what a model writes.
"""

import functools
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from estep.errors import ConfigError, nearest

_LIST = Path(__file__).with_name("puzzle_sets.json")


@functools.cache
def _listed() -> dict[str, Any]:
    listed: dict[str, Any] = json.loads(_LIST.read_text(encoding="utf-8"))
    return listed


def allowed_sets() -> tuple[str, ...]:
    """The data sets whose puzzles may be judged."""
    return tuple(sorted([*_listed()["verified"], *_listed()["exact"]]))


def has_verifier(name: str) -> bool:
    """Whether the verifier of a data set may judge answers. Without it, only the puzzle's own answer is right."""
    return name in _listed()["verified"]


@functools.cache
def require_safe(name: str) -> None:
    """Refuse a data set that may not judge answers.

    Raises:
        ConfigError: it is not on the list, or another version of reasoning-gym is installed than the list is for.
    """
    listed = _listed()
    if name not in allowed_sets():
        reason = next((why for why, names in listed["refused"].items() if name in names), "its verifier is not known")
        raise ConfigError(
            f"answer.dataset: {name} may not judge answers: {reason}; allowed are {', '.join(allowed_sets())}"
        )
    try:
        installed = importlib.metadata.version("reasoning-gym")
    except importlib.metadata.PackageNotFoundError:
        return  # whatever needs it says so
    if installed != listed["version"]:
        raise ConfigError(
            f"the verifiers of reasoning-gym {listed['version']} are known to run no text of a model, and "
            f"{installed} is installed: pip install 'reasoning-gym=={listed['version']}'"
        )


@functools.cache
def verifier(name: str) -> Any:
    """The data set that scores answers.

    Raises:
        ConfigError: it may not judge them, or reasoning-gym does not know it.
    """
    require_safe(name)
    if not has_verifier(name):
        raise ConfigError(f"{name}: its verifier gives the full score to wrong answers; only equality judges")
    return data_set(name, size=1, seed=0)


def known_sets() -> tuple[str, ...]:
    """The names of all data sets of reasoning-gym, which this imports.

    Raises:
        ConfigError: reasoning-gym is not installed.
    """
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError("puzzles come from reasoning-gym: pip install 'estep[gym]'") from error
    return tuple(DATASETS)


def data_set(name: str, **settings: Any) -> Any:
    """A data set of reasoning-gym.

    Raises:
        ConfigError: reasoning-gym is not installed, or does not know it.
    """
    known = known_sets()
    if name not in known:
        raise ConfigError(f"reasoning-gym has no data set '{name}'; {nearest(name, known)}")
    from reasoning_gym import create_dataset

    return create_dataset(name, **settings)

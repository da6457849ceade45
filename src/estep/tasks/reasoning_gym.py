"""Puzzles without end, and their verifiers, from reasoning-gym (Stojanovski et al., 2025, arXiv 2505.24760)."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from estep.errors import ConfigError
from estep.tasks.judge_process import ask
from estep.tasks.puzzle_sets import data_set, require_safe


def made_rows(name: str, size: int, seed: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows with `question`, `answer` and `metadata`, as JSON holds them.

    Args:
        name: of a data set of reasoning-gym.
        size: how many.
        seed: the rows depend on it and on the settings alone.
        settings: of the data set.

    Raises:
        ConfigError: reasoning-gym is not installed, or knows no such data set or setting.
    """
    try:
        entries = list(data_set(name, size=size, seed=seed, **settings))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"data.generator: {name} with {dict(settings)}: {error}") from error
    return [json.loads(json.dumps(entry, default=str)) for entry in entries]


@functools.lru_cache(maxsize=65536)
def _scored(name: str, stated: str, row: str) -> bool:
    return ask("score", name, stated, json.loads(row))


def full_score(name: str, stated: str, row: Mapping[str, Any]) -> bool:
    """Whether a stated answer is the one that came with a puzzle, or gets its data set's full score.

    Args:
        name: of the data set.
        stated: the answer.
        row: of `made_rows`.

    Raises:
        ConfigError: the data set may not judge answers.
    """
    require_safe(name)
    return stated == row["answer"] or _scored(name, stated, json.dumps(row, sort_keys=True, default=str))

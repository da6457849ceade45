"""Generated puzzles and their verifiers, from reasoning-gym (Stojanovski et al., 2025, arXiv 2505.24760)."""

import functools
import json
from collections.abc import Mapping
from decimal import localcontext
from typing import Any

from estep.errors import ConfigError
from estep.tasks.judge_process import ask
from estep.tasks.puzzle_sets import data_set, has_verifier, require_safe


def generated_rows(name: str, size: int, seed: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows with `question`, `answer` and `metadata`, as plain JSON data.

    Args:
        name: the name of a reasoning-gym data set.
        size: the number of rows.
        seed: the rows depend only on the seed and the settings.
        settings: settings of the data set.

    Raises:
        ConfigError: reasoning-gym is not installed, or has no such data set or setting.
    """
    try:
        with localcontext():  # some data sets change the precision of all decimals
            entries = list(data_set(name, size=size, seed=seed, **settings))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"data.generator: {name} with {dict(settings)}: {error}") from error
    return [json.loads(json.dumps(entry, default=str)) for entry in entries]


@functools.lru_cache(maxsize=65536)
def _scored(name: str, stated: str, row: str) -> bool:
    return ask("score", name, stated, json.loads(row))


def full_score(name: str, stated: str, row: Mapping[str, Any]) -> bool:
    """Whether a stated answer equals the puzzle's answer, or gets the full score from a verifier that may judge.

    Args:
        name: the name of the data set.
        stated: the answer to judge.
        row: the puzzle, a row of `generated_rows`.

    Raises:
        ConfigError: answers must not be judged with this data set's verifier.
    """
    require_safe(name)
    if stated == row["answer"]:
        return True
    return has_verifier(name) and _scored(name, stated, json.dumps(row, sort_keys=True, default=str))

"""An iteration's metrics and a run's configuration as flat names and values, as trackers take them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from estep.metrics import IterationMetrics, metrics_to_json

_MOST_ANSWERS = 20
_BY_ANSWER = ("predicted", "accepted_answers", "data_answers")


def figures(metrics: IterationMetrics) -> dict[str, float]:
    """All defined metrics of an iteration by name, such as `evaluation/accuracy` or `e_step/status/correct`.

    Counts by answer are among them for up to 20 different answers. `diagnostics/warnings` is the number of warnings.
    """
    return {name: float(value) for name, value in _figures(metrics_to_json(metrics)) if name != "iteration"}


def _figures(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key in _BY_ANSWER:
            yield from _by_answer(value, f"{name}/")
        elif key == "warnings":
            yield name, len(value)
        elif isinstance(value, dict) and key != "gold":  # which is the same in every iteration
            yield from _figures(value, f"{name}/")
        elif isinstance(value, int | float):
            yield name, value


def _by_answer(counts: Mapping[str, int], prefix: str) -> Iterator[tuple[str, float]]:
    """Counts with names that all trackers allow; nothing if there are many answers or two would get the same name."""
    names = [re.sub(r"[^A-Za-z0-9_-]", "_", answer) or "_" for answer in counts]
    if len(names) <= _MOST_ANSWERS and len(set(names)) == len(names):
        yield from ((prefix + name, count) for name, count in zip(names, counts.values(), strict=True))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration with dotted keys; lists are text, as in YAML.

    >>> flat({"m_step": {"learning_rate": [1e-06, 1e-07]}, "cluster": None})
    {'m_step.learning_rate': '[1e-06, 1e-07]', 'cluster': 'null'}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            plain = "null" if value is None else value
            found[f"{prefix}{key}"] = str(plain) if isinstance(plain, list) else plain
    return found

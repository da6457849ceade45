"""Sums to be added up step by step, in any number and without a download: a task whose rationales can be checked.

Every row has its partial sums as a worked solution, so a rationale is either a list of known facts or wrong
(`tasks/steps` reads which).
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from estep.errors import ConfigError
from estep.tasks.file import SumsGenerator

_QUESTION = re.compile(r"\s*[0-9]+(?:\s*\+\s*[0-9]+)+\s*")


def generated_sums(generator: SumsGenerator, shown: Iterable[str]) -> list[dict[str, Any]]:
    """Distinct random sums; each length in `terms` is drawn with the same probability, each number as well.

    Rows depend on the settings and the seed alone, in every version of Python: the numbers come from `random()` of a
    `random.Random` seeded with a text, which Python promises not to change. A larger `size` begins with the same rows.

    Args:
        shown: the questions of the few-shot examples. No sum of the same numbers is drawn, in whatever order.

    Returns:
        Rows with `id`, `question` (`7 + 5 + 9`), `numbers` (the sorted numbers, `5 7 9`), `terms`, `sum`, and
        `solution` (the partial sums, `7 + 5 = 12, 12 + 9 = 21`).

    Raises:
        ConfigError: there are fewer such sums than `size`.
    """
    given = {tuple(sorted(map(int, text.split("+")))) for text in shown if _QUESTION.fullmatch(text)}
    available = _available(generator, given)
    if generator.size > available:
        raise ConfigError(
            f"data.generator: size={generator.size}, but there are {available} sums of "
            f"{' or '.join(map(str, generator.lengths))} numbers from {generator.smallest} to {generator.largest}"
            + (" apart from those of the examples" if given else "")
        )
    source = random.Random(f"{generator.seed}-{','.join(map(str, generator.lengths))}")

    def below(count: int) -> int:
        return int(source.random() * count)

    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < generator.size:
        terms = generator.lengths[below(len(generator.lengths))]
        width = generator.largest - generator.smallest + 1
        numbers = tuple(generator.smallest + below(width) for _ in range(terms))
        if tuple(sorted(numbers)) not in given:
            drawn[numbers] = None
    return [_row(index, numbers) for index, numbers in enumerate(drawn)]


def _row(index: int, numbers: Sequence[int]) -> dict[str, Any]:
    totals = list(itertools.accumulate(numbers))
    steps = [f"{before} + {n} = {before + n}" for before, n in zip(totals, numbers[1:], strict=False)]
    return {
        "id": f"s{index}",
        "question": " + ".join(map(str, numbers)),
        "numbers": " ".join(map(str, sorted(numbers))),
        "terms": len(numbers),
        "sum": totals[-1],
        "solution": ", ".join(steps),
    }


def _available(generator: SumsGenerator, given: Iterable[tuple[int, ...]]) -> int:
    """The number of distinct rows: all sequences of numbers, without every order of the given ones."""
    width = generator.largest - generator.smallest + 1
    left_out = [
        math.factorial(len(numbers)) // math.prod(map(math.factorial, Counter(numbers).values()))
        for numbers in given
        if len(numbers) in generator.lengths and generator.smallest <= numbers[0] and numbers[-1] <= generator.largest
    ]
    return sum(width**terms for terms in generator.lengths) - sum(left_out)

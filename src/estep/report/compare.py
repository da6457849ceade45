"""Compares predictions of any tool with those of a reference, question by question."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from estep.errors import ConfigError, DataError, nearest
from estep.metrics import mean
from estep.report.predictions import Answer, Arm, integer, listed_fields
from estep.report.stats import (
    Interval,
    holm,
    paired_bootstrap,
    paired_kappa_bootstrap,
    paired_sign_test,
    quadratic_kappa_by_value,
    wilson,
)

_SEED = 257


class Measures(NamedTuple):
    """An arm on the shared questions."""

    name: str
    source: str
    rows: int
    """Distinct ids that the arm answers; the comparison uses those that all arms share."""
    questions: int
    accuracy: float
    interval: Interval
    """Wilson's 95 % interval of the accuracy."""
    unparsed: int
    """Questions without a prediction; where answers are ordinal, also those whose prediction is no integer. They count
    as wrong."""
    kappa: float
    """Quadratic kappa over the other questions; NaN unless answers are ordinal."""
    mae: float
    """Mean absolute error over the same questions."""


class Versus(NamedTuple):
    """An arm against the reference."""

    name: str
    difference: float
    """The arm's accuracy minus the reference's."""
    interval: Interval
    """Its paired bootstrap interval, 95 %."""
    wins: int
    """Questions that only the arm answers correctly."""
    losses: int
    """Questions that only the reference answers correctly."""
    p: float
    """McNemar's test in its exact form, two-sided."""
    holm: float
    """`p`, corrected for all comparisons."""
    kappa_difference: float
    """The arm's kappa minus the reference's."""
    kappa_interval: Interval
    """Its bootstrap interval, 95 %."""


@dataclass(frozen=True)
class Comparison:
    """Arms on the questions that all of them answer."""

    questions: int
    reference: str
    ordinal: bool
    why: str
    """Why the answers are taken for ordinal or not."""
    arms: tuple[Measures, ...]
    comparisons: tuple[Versus, ...]
    notes: tuple[str, ...]
    """What a reader must know of these figures, in sentences."""

    def as_json(self) -> dict[str, Any]:
        """Plain data, with None for NaN."""
        content = {**asdict(self), "notes": list(self.notes)}
        for key, records in (("arms", self.arms), ("comparisons", self.comparisons)):
            content[key] = [{name: _plain(value) for name, value in one._asdict().items()} for one in records]
        return content


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return [_plain(bound) for bound in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def compare(arms: Sequence[Arm], reference: str | None = None, ordinal: bool | None = None) -> Comparison:
    """Compare arms with a reference on the questions that all of them answer.

    Args:
        reference: the name of an arm; None for the first.
        ordinal: whether answers are ordered integers; None if they are as soon as every answer is an integer.

    Raises:
        ConfigError: no such arm, or a gold answer that is no integer where answers are said to be ordinal.
        DataError: the arms share no id, a question's gold answers differ, or there is none.
    """
    names = [arm.name for arm in arms]
    if reference is not None and reference not in names:
        raise ConfigError(f"--reference: got '{reference}'; {nearest(reference, names)}")
    shared = _shared(arms)
    gold = _gold(arms, shared)
    ordinal, why = _ordinal(arms, shared, gold, ordinal)
    first = next(arm for arm in arms if arm.name == (reference or names[0]))
    graded = {arm.name: _Graded.of(arm, shared, gold, ordinal) for arm in arms}
    scale = [float(gold[key]) for key in shared] if ordinal else []
    others = [_versus(arm.name, graded[first.name], graded[arm.name], scale) for arm in arms if arm is not first]
    corrected = holm([one.p for one in others])
    return Comparison(
        len(shared),
        first.name,
        ordinal,
        why,
        tuple(_measures(arm, graded[arm.name], scale) for arm in arms),
        tuple(one._replace(holm=p) for one, p in zip(others, corrected, strict=True)),
        tuple(_notes(arms, shared, gold, graded)),
    )


def _shared(arms: Sequence[Arm]) -> list[str]:
    """The ids that all arms have, in the first one's order."""
    shared = [key for key in arms[0].answers if all(key in arm.answers for arm in arms)]
    if not shared:
        ids = "; ".join(f"{arm.name} has {', '.join(map(repr, list(arm.answers)[:3]))}, ..." for arm in arms)
        raise DataError(f"no id is in all {len(arms)} sets of predictions: {ids} (--id NAME names the column)")
    return shared


def _gold(arms: Sequence[Arm], shared: Sequence[str]) -> dict[str, str]:
    """The gold answers of the shared questions, from whichever arms have them; those that no arm has are left out.

    Raises:
        DataError: two arms differ, or a question without a verdict has no gold answer.
    """
    gold: dict[str, str] = {}
    for key in shared:
        found = {arm.name: answer for arm in arms if (answer := arm.answers[key].gold) is not None}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{_short(answer)} in {name}" for name, answer in found.items())
            raise DataError(f"the gold answer of '{key}' is {listed}; they must agree")
        if found:
            gold[key] = next(iter(found.values()))
        elif not all(arm.judged for arm in arms):
            raise DataError(
                f"no gold answer for '{key}': {listed_fields(arms)} (--gold NAME names the column, in any of the files)"
            )
    return gold


def _ordinal(
    arms: Sequence[Arm], shared: Sequence[str], gold: Mapping[str, str], asked: bool | None
) -> tuple[bool, str]:
    """Whether answers are ordinal, and why."""
    strange = next(
        (f"the gold answer of '{key}' is {_short(gold[key])}" for key in gold if integer(gold[key]) is None), None
    )
    if strange is None and len(gold) < len(shared):
        strange = f"{len(shared) - len(gold)} questions have no gold answer"
    if asked is not None:
        if asked and strange is not None:
            raise ConfigError(f"--ordinal needs gold answers that are integers, but {strange}")
        return asked, "as asked"
    given = ((arm.name, key, arm.answers[key].prediction) for arm in arms for key in shared)
    strange = strange or next(
        (
            f"the prediction of {name} for '{key}' is {_short(text)}"
            for name, key, text in given
            if text is not None and integer(text) is None
        ),
        None,
    )
    return (True, "every answer is an integer") if strange is None else (False, strange)


class _Graded(NamedTuple):
    """An arm's answers to the shared questions."""

    right: list[bool]
    values: list[float]
    """Predictions as numbers, if answers are ordinal; NaN for none."""
    unparsed: int

    @classmethod
    def of(cls, arm: Arm, shared: Sequence[str], gold: Mapping[str, str], ordinal: bool) -> "_Graded":
        answers = [arm.answers[key] for key in shared]
        right = [_right(answer, gold.get(key)) for key, answer in zip(shared, answers, strict=True)]
        numbers = [integer(answer.prediction) if ordinal and answer.prediction else None for answer in answers]
        strange = [ordinal and bool(a.prediction) and n is None for a, n in zip(answers, numbers, strict=True)]
        unparsed = sum(a.missing or one for a, one in zip(answers, strange, strict=True))
        return cls(right, [math.nan if n is None else float(n) for n in numbers], unparsed)


def _notes(
    arms: Sequence[Arm], shared: Sequence[str], gold: Mapping[str, str], graded: Mapping[str, _Graded]
) -> Iterator[str]:
    judged = [arm.name for arm in arms if arm.judged]
    if judged:
        rest = " The others are compared with the gold answers." if len(judged) < len(arms) else ""
        yield f"{', '.join(judged)}: right and wrong as the tool judged.{rest}"
    if any(one.unparsed and not all(map(math.isnan, one.values)) for one in graded.values()):
        yield "Kappa and MAE leave out unparsed predictions: an arm with many of them may look better than it is."
    for arm in arms:
        given = next((key for key in shared if not arm.answers[key].missing), None)
        if given is not None and not arm.judged and not any(graded[arm.name].right):
            yield (
                f"{arm.name}: no prediction equals its gold answer, such as {_short(arm.answers[given].prediction)} "
                f"and {_short(gold[given])}. To read the tool's own verdict, name its column with --correct."
            )


def _short(text: str | None) -> str:
    return repr(text if text is None or len(text) <= _SHOWN else f"…{text[-_SHOWN:]}")


_SHOWN = 40
"""Characters of an answer in a message."""


def _right(answer: Answer, gold: str | None) -> bool:
    if answer.missing:
        return False
    return answer.prediction == gold if answer.correct is None else answer.correct


def _measures(arm: Arm, graded: _Graded, scale: Sequence[float]) -> Measures:
    count, correct = len(graded.right), sum(graded.right)
    errors = [abs(g - p) for g, p in zip(scale, graded.values, strict=False) if not math.isnan(p)]
    return Measures(
        arm.name,
        arm.source,
        len(arm.answers),
        count,
        mean(graded.right),
        wilson(correct, count),
        graded.unparsed,
        quadratic_kappa_by_value(scale, graded.values) if errors else math.nan,
        mean(errors),
    )


def _versus(name: str, reference: _Graded, arm: _Graded, scale: Sequence[float]) -> Versus:
    difference = paired_bootstrap(reference.right, arm.right, _SEED)
    pairs = list(zip(reference.right, arm.right, strict=True))
    wins, losses = pairs.count((False, True)), pairs.count((True, False))
    kappa, interval = math.nan, Interval(math.nan, math.nan)
    if scale:
        before, after = (quadratic_kappa_by_value(scale, one.values) for one in (reference, arm))
        kappa, interval = after - before, paired_kappa_bootstrap(scale, reference.values, arm.values, _SEED)
    bounds = Interval(difference.low, difference.high)
    p = paired_sign_test(wins, losses)
    return Versus(name, difference.mean, bounds, wins, losses, p, math.nan, kappa, interval)

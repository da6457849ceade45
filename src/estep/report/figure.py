"""Figures: the paper's three panels (Figure 2: test accuracy, data utilization and reasoning length by iteration), the
accuracies of all arms, and their confusion matrices."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estep.config.names import BASE
from estep.errors import EstepError, writing
from estep.metrics import IterationMetrics, mean, standard_error
from estep.report.comparisons import base, final, highest
from estep.report.judge import Confusion, Judge, Judges
from estep.report.probabilities import reliability_of
from estep.report.results import Results, Setting
from estep.report.stats import wilson
from estep.report.tables import accuracy, confidence

_GRAY = "#8a8a8a"
_COLORS = ("#2f7fd0", "#d55e00", "#009e73", "#c2559d", "#a87a00", "#2f93b0", "#7f5fb0", "#8c6d31")
"""Each has a contrast of at least 3 against the page's light and dark backgrounds. Arms also differ by marker, for
readers who cannot tell the colors apart."""
_MARKERS = "osD^vPX*"

CELL_COLOR, CELL_STRENGTH = _COLORS[0], 0.75
"""A heat map's color and its strongest opacity: the page's text color can be read on it, light or dark."""
_LARGEST_CELL, _LARGEST_MAP = 0.42, 4.6
"""The sides of its cells and of the whole map in inches, at most: two maps fit beside each other."""

INK = "#1b1b1f"
"""The color of text and axes. The page replaces it in each SVG with its own text color."""


FEWEST_IN_A_BIN = 5
"""A reliability diagram leaves out bins with fewer predictions: their shares say little."""
NO_CEILINGS: Mapping[Setting, float] = {}


@dataclass(frozen=True)
class Line:
    """An arm's results over iterations."""

    label: str
    runs: tuple[Sequence[IterationMetrics], ...]
    """One sequence per seed."""


def draw_run(iterations: Sequence[IterationMetrics], title: str, out: Path, ceiling: float | None = None) -> Path:
    """Draw the three panels of one run, with Wilson's 95 % interval of the accuracy.

    Args:
        iterations: the base model (iteration 0), then each iteration.
        out: a `.png` or `.svg` file.
        ceiling: the accuracy of a single rater; None for a task without raters.

    Raises:
        EstepError: matplotlib is not installed.
    """
    with _style(out):
        return _save(_three_panels([Line("policy", (iterations,))], title, ceiling), out)


def draw_setting(results: Results, setting: Setting, out: Path, ceiling: float | None = None) -> Path:
    """Draw all arms of a setting: means over seeds, with bands of one standard error.

    Args:
        ceiling: the accuracy of a single rater; None for a task without raters.

    Raises:
        EstepError: matplotlib is not installed.
    """
    lines = [
        Line(arm, tuple(run.iterations for run in runs)) for arm in results.arms if (runs := results.of(setting, arm))
    ]
    with _style(out):
        return _save(_three_panels(lines, setting.words, ceiling), out)


def draw_accuracies(results: Results, out: Path, ceilings: Mapping[Setting, float] = NO_CEILINGS) -> Path:
    """Draw each arm's final accuracy with Wilson's 95 % interval, and its highest accuracy over iterations.

    Args:
        ceilings: the accuracy of a single rater in each setting whose task has raters.

    Raises:
        EstepError: matplotlib is not installed.
    """
    with _style(out):
        return _save(_accuracies(results, ceilings), out)


def draw_confusions(judges: Judges, out: Path) -> Path:
    """Draw the confusion matrix of each arm of a setting as a heat map with numbers.

    Raises:
        EstepError: matplotlib is not installed.
    """
    with _style(out):
        return _save(_confusions(judges), out)


def has_reliability(judges: Sequence[Judge]) -> bool:
    """Whether `draw_reliability` has anything to draw: a bin with enough predictions."""
    return any(one.predictions >= FEWEST_IN_A_BIN for judge in judges for one in reliability_of(judge))


def draw_reliability(judges: Sequence[Judge], title: str, out: Path) -> Path:
    """Draw a reliability diagram: the share of predictions that is right by the probability of their answer.

    Args:
        judges: those with probabilities, see `has_reliability`; one named `base` is drawn in gray.

    Raises:
        EstepError: matplotlib is not installed.
    """
    with _style(out):
        return _save(_reliability(judges, title), out)


def _reliability(judges: Sequence[Judge], title: str) -> Any:
    figure = _figure((3.8, 4.4))
    figure.suptitle(title, fontsize=11)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color=_GRAY, ls="--", lw=1)
    arms = [judge.name for judge in judges if judge.name != BASE]
    for judge in judges:
        index = arms.index(judge.name) if judge.name in arms else 0
        color = _COLORS[index % len(_COLORS)] if judge.name in arms else _GRAY
        marker = _MARKERS[(index + index // len(_COLORS)) % len(_MARKERS)] if judge.name in arms else "x"
        bins = [one for one in reliability_of(judge) if one.predictions >= FEWEST_IN_A_BIN]
        if not bins:
            continue
        whole = sum(one.predictions for one in bins)
        sizes = [20 + 180 * one.predictions / whole for one in bins]
        places, shares = [one.confidence for one in bins], [one.right for one in bins]
        panel.plot(places, shares, color=color, lw=1.2, alpha=0.6)
        panel.scatter(places, shares, s=sizes, color=color, marker=marker, label=judge.name, clip_on=False, zorder=3)
    panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the answer", ylabel="right", aspect="equal")
    panel.xaxis.set_major_formatter(_percent())
    panel.yaxis.set_major_formatter(_percent())
    _plain_axes(panel, "both")
    names = figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    for handle in names.legend_handles:
        handle.set_sizes([36])
    return figure


def _accuracies(results: Results, ceilings: Mapping[Setting, float]) -> Any:
    names = [BASE, *results.arms]
    settings = results.settings
    across = min(3, len(settings))
    down = math.ceil(len(settings) / across)
    figure = _figure((1.6 + 3.8 * across, 0.9 + (0.6 + 0.3 * len(names)) * down))
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(settings) :]:
        panel.set_visible(False)
    for panel in panels.flat[max(0, len(settings) - across) : len(settings)]:
        panel.tick_params(labelbottom=True)  # the lowest panel of its column
    for panel, setting in zip(panels.flat, settings, strict=False):
        bases = results.bases(setting)
        majority = mean([base(run).evaluation.majority_accuracy for run in bases])
        panel.axvline(majority, color=_GRAY, ls="--", lw=1)
        if setting in ceilings:
            panel.axvline(ceilings[setting], color=INK, ls=":", lw=1.2)
        for index, name in enumerate(names):
            runs = bases if name == BASE else results.of(setting, name)
            if not runs:
                continue
            pick = base if name == BASE else final
            low, high = confidence(runs, pick)
            color = _GRAY if name == BASE else _COLORS[(index - 1) % len(_COLORS)]
            panel.plot([low, high], [index, index], color=color, lw=2, alpha=0.5)
            panel.plot(accuracy(runs, pick).mean, index, "o", color=color)
            if name != BASE:
                panel.plot(accuracy(runs, highest).mean, index, "|", color=color, ms=11, mew=2)
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_title(results.name_of(setting), fontsize=10)
        panel.xaxis.set_major_formatter(_percent())
        _plain_axes(panel, "x")
    figure.supxlabel("test accuracy", fontsize=10)
    return figure


def _three_panels(lines: Sequence[Line], title: str, ceiling: float | None) -> Any:
    from matplotlib.ticker import MaxNLocator

    alone = len(lines) == 1
    figure = _figure((11, 3.6 if alone else 4.2))
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1, 3)
    measures: list[tuple[str, Callable[[IterationMetrics], float]]] = [
        ("Test accuracy", lambda metrics: metrics.evaluation.accuracy),
        ("Data utilization", lambda metrics: metrics.e_step.data_utilization if metrics.e_step else math.nan),
        ("Reasoning length (words)", lambda metrics: metrics.evaluation.reasoning_words),
    ]
    for panel, (name, measure) in zip(panels, measures, strict=True):
        for index, line in enumerate(lines):
            _draw_line(panel, line, measure, index, intervals=alone and name == "Test accuracy" and len(line.runs) == 1)
        panel.set(title=name, xlabel="iteration", ylim=(0, None if "words" in name else 1))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain_axes(panel, "y")
    for panel in panels[:2]:
        panel.yaxis.set_major_formatter(_percent())
    runs = [run for line in lines for run in line.runs]
    majority = mean([run[0].evaluation.majority_accuracy for run in runs])
    panels[0].axhline(majority, color=_GRAY, ls="--", lw=1, label="most frequent answer")
    if ceiling is not None:
        panels[0].axhline(ceiling, color=INK, ls=":", lw=1.2, label="a single rater")
    if alone:
        panels[0].legend(frameon=False, fontsize=9)
    else:
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _draw_line(
    panel: Any, line: Line, measure: Callable[[IterationMetrics], float], index: int, intervals: bool
) -> None:
    """Draw a line with its band: one standard error over seeds, or Wilson's interval for a single run."""
    color, marker = _COLORS[index % len(_COLORS)], _MARKERS[(index + index // len(_COLORS)) % len(_MARKERS)]
    length = min(len(run) for run in line.runs)
    values = [[measure(run[k]) for run in line.runs] for k in range(length)]
    known = [k for k in range(length) if not any(math.isnan(value) for value in values[k])]
    means = [mean(values[k]) for k in known]
    panel.plot(known, means, color=color, marker=marker, ms=5, lw=1.6, clip_on=False, label=line.label)
    if intervals:
        evaluations = [line.runs[0][k].evaluation for k in known]
        bands = [tuple(wilson(round(e.accuracy * e.questions), e.questions)) for e in evaluations]
    else:
        errors = [standard_error(values[k]) for k in known]
        bands = [(value - error, value + error) for value, error in zip(means, errors, strict=True)]
    panel.fill_between(known, [low for low, _ in bands], [high for _, high in bands], color=color, alpha=0.15, lw=0)


def _confusions(judges: Judges) -> Any:
    arms, answers = judges.arms, judges.answers
    cell = min(_LARGEST_CELL, _LARGEST_MAP / (len(answers) + 1.2))
    wide = max(cell * (len(answers) + 1.2), 0.09 * max(len(arm.name) for arm in arms)) + 0.6
    high = cell * len(answers) + 0.7
    across = min(len(arms), max(1, int(10.6 / wide)))
    down = math.ceil(len(arms) / across)
    title = judges.setting.words
    figure = _figure((max(wide * across, 0.1 * len(title)) + 0.3, high * down + 0.6))
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(down, across, squeeze=False)
    for panel in panels.flat[len(arms) :]:
        panel.set_visible(False)
    for index, (panel, arm) in enumerate(zip(panels.flat, arms, strict=False)):
        _heat_map(panel, Confusion.of(arm.predictions, answers))
        panel.set_title(arm.name, fontsize=10)
        if index % across == 0:
            panel.set_ylabel("correct", fontsize=10)
        if index + across >= len(arms):  # the lowest panel of its column
            panel.set_xlabel("predicted", fontsize=10)
    return figure


def _heat_map(panel: Any, confusion: Confusion) -> None:
    """Draw counts as cells: the larger a cell's share of its row, the stronger. Correct ones have a frame."""
    from matplotlib.patches import Rectangle

    answers = confusion.answers
    places = [*range(len(answers)), len(answers) + 0.2]
    for row, gold in enumerate(answers):
        for column, (x, count) in enumerate(zip(places, confusion.row(gold), strict=True)):
            corner = (x - 0.47, row - 0.47)
            if count:
                strength = CELL_STRENGTH * count / confusion.gold(gold)
                panel.add_patch(Rectangle(corner, 0.94, 0.94, color=CELL_COLOR, alpha=strength, lw=0))
            if row == column:
                panel.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=_GRAY, lw=1))
            look = {"fontsize": 9 if count < 1000 else 7, "color": INK if count else _GRAY}
            panel.text(x, row, str(count), ha="center", va="center", **look)
    panel.set_xticks(places, [*answers, "none"], fontsize=9)
    panel.set_yticks(range(len(answers)), answers, fontsize=9)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set(xlim=(-0.5, len(answers) + 0.7), ylim=(len(answers) - 0.5, -0.5), aspect="equal")


@contextmanager
def _style(out: Path) -> Iterator[None]:
    """Matplotlib settings under which the same data give the same bytes."""
    try:
        from matplotlib import rc_context
    except ImportError:
        raise EstepError("figures need matplotlib: pip install 'estep[report]'") from None
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with rc_context(
        {"svg.hashsalt": out.stem, "svg.fonttype": "none", "text.parse_math": False, **dict.fromkeys(ink, INK)}
    ):
        yield


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=0)


def _plain_axes(panel: Any, grid: str) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis=grid, alpha=0.25)


def _save(figure: Any, out: Path) -> Path:
    svg = out.suffix == ".svg"
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=160, transparent=svg, metadata={"Date": None} if svg else {"Software": None})
    return out

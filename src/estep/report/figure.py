"""The paper's three panels (Figure 2) for one run: test accuracy, data utilisation, reasoning length."""

import math
from collections.abc import Sequence
from pathlib import Path

from estep.errors import EstepError, writing
from estep.metrics import IterationMetrics

_BLUE, _GREY = "#1f5fa8", "#8a8a8a"


def draw_run(iterations: Sequence[IterationMetrics], title: str, out: Path) -> Path:
    """Draw a run's three panels.

    Args:
        iterations: the base model (0), then each iteration.
        out: a `.png` or `.svg` file.

    Raises:
        EstepError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, PercentFormatter
    except ImportError:
        raise EstepError("figures need matplotlib: pip install 'estep[report]'") from None
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    accuracy, utilisation, words = figure.subplots(1, 3)
    numbers = [metrics.iteration for metrics in iterations]
    trained = [metrics for metrics in iterations if metrics.e_step is not None]

    accuracy.plot(
        numbers, [m.evaluation.accuracy for m in iterations], "o-", color=_BLUE, clip_on=False, label="policy"
    )
    bands = [wilson(m.evaluation.accuracy, m.evaluation.predictions) for m in iterations]
    accuracy.fill_between(
        numbers, [low for low, _ in bands], [high for _, high in bands], color=_BLUE, alpha=0.15, lw=0
    )
    majority = iterations[0].evaluation.majority_accuracy
    accuracy.axhline(majority, color=_GREY, ls="--", lw=1, label="majority class")
    accuracy.set(title="Test accuracy", ylim=(0, 1))
    accuracy.legend(frameon=False, fontsize=9)

    utilisation.plot(
        [m.iteration for m in trained], [m.e_step.data_utilisation for m in trained if m.e_step], "o-", color=_BLUE
    )
    utilisation.set(title="Data utilisation", ylim=(0, 1))

    words.plot(numbers, [m.evaluation.reasoning_words for m in iterations], "o-", color=_BLUE)
    words.set(title="Reasoning length (words)", ylim=(0, None))

    for panel in (accuracy, utilisation, words):
        panel.set(xlabel="iteration", xlim=(-0.2, max(numbers) + 0.2))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
    for panel in (accuracy, utilisation):
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=160)
    return out


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` trials (Wilson, 1927)."""
    if count == 0 or math.isnan(share):
        return math.nan, math.nan
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half

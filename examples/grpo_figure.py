"""Draws test accuracy against seconds of training: runs of `examples/grpo.py`, and of `estep train`.

    python examples/grpo_figure.py accuracy.png plain-*.json half-*.json runs/rejection-* runs/pps-*

The seconds of an iteration of filtered EM are those of its E-step, of its M-step, and of loading the new weights. A
faint line is one seed. The strong one is the mean over an arm's seeds of the accuracy that was measured last, which a
run that has ended keeps.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import NamedTuple

from estep.store.run import RunStore

COLORS = ("#2f7fd0", "#d55e00", "#009e73", "#c2559d", "#a87a00", "#7f5fb0")


class Curve(NamedTuple):
    """One run."""

    arm: str
    seconds: list[float]
    accuracy: list[float]


def read_curve(path: Path) -> Curve:
    """The accuracy against seconds of a JSON file of `grpo.py`, or of a run folder."""
    if path.is_dir():
        store = RunStore(path)
        metrics = [step.metrics() for step in store.committed()]
        phases = [sum(of.seconds.get(phase, 0.0) for phase in ("e_step", "m_step", "load")) for of in metrics[1:]]
        config = store.config()
        arm = f"filtered EM, {config.name or config.proposal.type}"
        return Curve(arm, list(itertools.accumulate(phases, initial=0.0)), [of.evaluation.accuracy for of in metrics])
    content = json.loads(path.read_text(encoding="utf-8"))
    options, points = content["options"], content["points"]
    arm = f"GRPO, {options['hinted']:.0%} hinted" if options["hinted"] else "GRPO"
    if options["hinted"] and options["correction"] != "sequence_truncate":
        arm += f", correction {options['correction']}"
    return Curve(arm, [point["seconds"] for point in points], [point["accuracy"] for point in points])


def mean_curve(curves: list[Curve]) -> Curve:
    """The mean of the accuracies that were measured last, at every time at which one of the runs was tested."""
    times = sorted({second for curve in curves for second in curve.seconds})
    means = [sum(_last(curve, time) for curve in curves) / len(curves) for time in times]
    return Curve(curves[0].arm, times, means)


def _last(curve: Curve, time: float) -> float:
    return [right for second, right in zip(curve.seconds, curve.accuracy, strict=True) if second <= time][-1]


def draw(curves: list[Curve], out: Path) -> None:
    """Write the figure."""
    from matplotlib.figure import Figure

    figure = Figure((6.4, 4.0), layout="constrained", dpi=150)
    axes = figure.subplots()
    for arm, color in zip(dict.fromkeys(curve.arm for curve in curves), itertools.cycle(COLORS), strict=False):
        of_arm = [curve for curve in curves if curve.arm == arm]
        for curve in of_arm:
            axes.step(curve.seconds, curve.accuracy, color=color, alpha=0.35, linewidth=1, marker=".", where="post")
        mean = mean_curve(of_arm)
        label = f"{arm} ({len(of_arm)} seed{'s' if len(of_arm) > 1 else ''})"
        axes.step(mean.seconds, mean.accuracy, color=color, linewidth=2, where="post", label=label)
    axes.set(xlabel="seconds of training", ylabel="test accuracy", ylim=(0, 1))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=2)
    figure.savefig(out)


def main(arguments: list[str] | None = None) -> None:
    """Read the runs, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a .png file")
    parser.add_argument("runs", type=Path, nargs="+", help="JSON files of grpo.py, and run folders")
    options = parser.parse_args(arguments)
    draw([read_curve(path) for path in options.runs], options.out)


if __name__ == "__main__":
    main()

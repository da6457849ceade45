"""How often the warnings of diagnostics are right: on finished runs, by whether a run learned anything.

    python scripts/calibrate_diagnostics.py runs/study-cpu

A run failed if it ends no better than always giving the most frequent answer. A warning is right if it was given in
some iteration of a failed run; `scarce_answer` is right if the model that a run ends in gives some answer less than
half as often as it is correct. Figures from samples are computed from the run's records, so runs without diagnostics
will do; those that need scores are read from `metrics.json` where they are.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from estep.diagnostics.alarms import CHECKS, alarms
from estep.diagnostics.samples import from_rationales
from estep.metrics import Evaluation, IterationMetrics
from estep.store.files import JsonlFile
from estep.store.run import IterationStore, RunStore
from estep.tasks import parse_task


class Outcome(NamedTuple):
    """A run, its warnings by iteration, and its metrics."""

    name: str
    warnings: list[tuple[str, ...]]
    figures: list[IterationMetrics]

    @property
    def last(self) -> Evaluation:
        return self.figures[-1].evaluation

    @property
    def failed(self) -> bool:
        return self.last.accuracy <= self.last.majority_accuracy


def with_figures(step: IterationStore, examples: Sequence[str]) -> IterationMetrics:
    """An iteration's metrics with the diagnostics that its records give."""
    metrics = step.metrics()
    if metrics.diagnostics is not None:
        return metrics
    responses = [str(row["rationale"]) for row in step.eval.read()]
    said = {row["draw_id"]: row["rationale"] for row in JsonlFile(step.folder / "verdicts.jsonl").read()}
    accepted = [said[row["draw_id"]] for row in JsonlFile(step.folder / "pairs.jsonl").read()]
    return replace(metrics, diagnostics=from_rationales(accepted, responses, examples))


def outcome(folder: Path) -> Outcome:
    """The warnings of a finished run, with the present thresholds."""
    store = RunStore(folder)
    task = parse_task((folder / "task.yaml").read_text(encoding="utf-8"), str(folder / "task.yaml"))
    examples = [example.rationale for example in task.examples]
    iterations = [with_figures(step, examples) for step in store.committed()]
    warnings = [tuple(alarm.name for alarm in alarms(iterations[: k + 1])) for k in range(1, len(iterations))]
    return Outcome(folder.name, warnings, iterations)


def finished(folder: Path) -> bool:
    store = RunStore(folder)
    return (folder / "config.yaml").is_file() and len(store.committed()) > store.config().iterations


def main() -> None:
    """Print each run's warnings, and how often each warning was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a study's folder")
    options = parser.parse_args()
    outcomes = [outcome(folder) for folder in sorted((options.study / "runs").iterdir()) if finished(folder)]
    columns = ("run", "accuracy", "most frequent", "used", "shift", "distinct", "commonest", "copied", "warnings")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for one in outcomes:
        print(row(one))
    print(f"\n{len(outcomes)} runs, of which {sum(one.failed for one in outcomes)} failed.\n")
    print("| warning | given in runs | right | runs that it missed |\n|---|---|---|---|")
    for name in CHECKS:
        right = rarely_given if name == "scarce_answer" else attrgetter("failed")
        given = [one for one in outcomes if any(name in found for found in one.warnings)]
        missed = [one for one in outcomes if right(one) and one not in given]
        print(f"| `{name}` | {len(given)} | {sum(map(right, given))} | {len(missed)} |")


def rarely_given(one: Outcome) -> bool:
    """Whether the final policy gives an answer less than half as often as it is correct."""
    return any(2 * one.last.predicted.get(answer, 0) < count for answer, count in one.last.gold.items())


def row(one: Outcome) -> str:
    """A run's figures by iteration, in percent."""

    def percents(values: Sequence[float]) -> str:
        return ", ".join("–" if math.isnan(value) else f"{100 * value:.0f}" for value in values)

    steps = [metrics.e_step for metrics in one.figures if metrics.e_step is not None]
    inside = [metrics.diagnostics for metrics in one.figures[1:] if metrics.diagnostics is not None]
    cells = [
        one.name,
        f"{one.last.accuracy:.1%}",
        f"{one.last.majority_accuracy:.1%}",
        percents([step.data_utilization for step in steps]),
        percents([step.answer_shift for step in steps]),
        percents([step.distinct_rationales for step in steps]),
        percents([figures.commonest_rationale for figures in inside]),
        percents([figures.example_overlap for figures in inside]),
        "; ".join(" ".join(found) or "–" for found in one.warnings),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

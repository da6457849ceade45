"""A run's or a study's report: tables, figures and one page, from what its folder holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from estep.errors import ConfigError, writing
from estep.report.comparisons import over_cells, within_cells
from estep.report.figure import draw_accuracies, draw_setting
from estep.report.page import page
from estep.report.results import Results, Setting, read_results
from estep.report.sheets import (
    Sheet,
    accuracy_sheet,
    highest,
    measures_sheet,
    over_sheet,
    paper_sheet,
    selected,
    within_sheet,
)
from estep.report.texts import csv_of, iterations_csv, latex, markdown
from estep.report.verdict import verdicts

_EXAMPLES_OF_A_RUN, _EXAMPLES_OF_A_STUDY = 200, 24


class Report(NamedTuple):
    """What was written."""

    folder: Path
    page: Path
    sentences: tuple[str, ...]
    """What it says first."""


def write_report(
    source: Path, out: Path | None = None, reference: str | None = None, examples: int | None = None
) -> Report:
    """Write the report of a run folder or a study folder.

        index.html                the page
        report.md                 what it says first, and all tables
        tables/                   each table as .md, .tex and .csv; iterations.csv
        figures/                  each figure as .png and .svg

    Args:
        out: where to; None for `report/` within the source.
        reference: the arm that the others are compared with; None for `pps`, or else the first one.
        examples: test questions that the page shows of each run; None for 200 of a single run and 24 of a study's.

    Raises:
        StoreError: the folder holds neither a run nor a study, or nothing in it is finished.
        ConfigError: no such arm.
    """
    results = read_results(source)
    reference = _reference(results, reference)
    ending = ending_of(results)
    folder = out or source / "report"
    sheets = _sheets(results, reference, ending)
    sentences = tuple(verdicts(results, ending))
    _write_tables(folder / "tables", sheets, results)
    figures = _draw(results, folder / "figures", ending)
    title = f"{'Run' if results.study is None else 'Study'} {results.name}"
    if examples is None:
        examples = _EXAMPLES_OF_A_RUN if results.study is None else _EXAMPLES_OF_A_STUDY
    _write(folder / "report.md", _overview(title, sentences, sheets, figures, folder))
    html = page(results, title, sentences, figures, sheets, examples)
    _write(folder / "index.html", html)
    return Report(folder, folder / "index.html", sentences)


def ending_of(results: Results) -> str:
    """Which iteration the runs end in, in words."""
    selects = {run.config.select for run in results.runs}
    if selects == {"last"}:
        return "the last iteration"
    return "the iteration that validation chose" if selects == {"validation"} else "the iteration that the run ends in"


def _reference(results: Results, asked: str | None) -> str:
    if asked is None:
        return "pps" if "pps" in results.variants else results.variants[0]
    if asked not in results.variants:
        raise ConfigError(f"--reference: the arms are {', '.join(results.variants)}; got '{asked}'")
    return asked


def _sheets(results: Results, reference: str, ending: str) -> list[Sheet]:
    seeds = "Mean over seeds and one standard error, in percent of the test questions. "
    flattery = seeds + "Picked by the test questions themselves, as the paper reports it, which flatters every arm."
    honest = seeds + ("Nothing was picked." if ending == "the last iteration" else "Test questions picked nothing.")
    sheets = [
        accuracy_sheet(results, highest, "highest", "Highest accuracy over iterations", flattery),
        accuracy_sheet(results, selected, "selected", f"Accuracy of {ending}", honest),
    ]
    sheets += [measures_sheet(results, setting, ending) for setting in results.settings]
    sheets.append(within_sheet(within_cells(results, reference), reference, ending))
    sheets.append(over_sheet(over_cells(results, reference), reference, ending))
    beside = paper_sheet(results)
    return [*sheets, *([beside] if beside is not None else [])]


def _write_tables(folder: Path, sheets: Sequence[Sheet], results: Results) -> None:
    for sheet in sheets:
        _write(folder / f"{sheet.name}.md", markdown(sheet))
        _write(folder / f"{sheet.name}.tex", latex(sheet))
        _write(folder / f"{sheet.name}.csv", csv_of(sheet.columns, sheet.rows))
    _write(folder / "iterations.csv", iterations_csv(results))


def _draw(results: Results, folder: Path, ending: str) -> dict[Path, str]:
    """Draw every figure twice; returns the SVG files with their captions."""
    captions = {}
    for kind in ("png", "svg"):
        path = draw_accuracies(results, folder / f"accuracy.{kind}")
    captions[path] = (
        f"Test accuracy of {ending} (dots) with Wilson's 95 % interval of all seeds' answers; ticks: the highest over "
        "iterations; dashed: always giving the most frequent answer."
    )
    for setting in results.settings:
        for kind in ("png", "svg"):
            path = draw_setting(results, setting, folder / f"{_file_name(setting)}.{kind}")
        several = len({run.config.seed for run in results.runs}) > 1
        bands = "Bands are one standard error over seeds." if several else "One seed, so there are no bands."
        captions[path] = f"{setting.task} with {setting.model} by iteration; iteration 0 is the base model. {bands}"
    return captions


def _file_name(setting: Setting) -> str:
    return "-".join(setting).replace("/", "-")


def _overview(
    title: str, sentences: Sequence[str], sheets: Sequence[Sheet], figures: dict[Path, str], folder: Path
) -> str:
    pictures = [
        f"![{path.stem}]({path.relative_to(folder).with_suffix('.png')})\n\n{caption}"
        for path, caption in figures.items()
    ]
    parts = [f"# {title}", *(f"- {sentence}" for sentence in sentences), *pictures, *map(markdown, sheets)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

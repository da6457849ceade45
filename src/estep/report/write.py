"""A run's or a study's report: tables, figures and one page, from what its folder holds."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from estep.config.names import file_name
from estep.errors import writing
from estep.report.comparisons import WithinSetting, highest, over_settings, selected, within_settings
from estep.report.conclusions import verdicts
from estep.report.figure import draw_accuracies, draw_setting
from estep.report.formats import comparisons_csv, csv_of, iterations_csv, latex, markdown, plain
from estep.report.page import page
from estep.report.results import Results, Setting, read_results
from estep.report.tables import Sheet, accuracy_sheet, measures_sheet, over_sheet, paper_sheet, within_sheet

_ALL_EXAMPLES, _MOST_EXAMPLES, _FEWEST_EXAMPLES = 1000, 200, 4
"""Test questions on a page: of all runs, and of one."""


class Report(NamedTuple):
    """What was written."""

    folder: Path
    page: Path
    sentences: tuple[str, ...]
    """What it says first: one for each setting, and a note on what they mean."""


def write_report(
    source: Path, out: Path | None = None, reference: str | None = None, examples: int | None = None
) -> Report:
    """Write the report of a run folder or a study folder.

        index.html                the page
        report.md                 what it says first, and all tables
        tables/                   each table as .md, .tex and .csv; iterations.csv and comparisons.csv as numbers
        figures/                  each figure as .png and .svg

    Args:
        out: where to; None for `report/` within the source.
        reference: the arm that the others are compared with; None for the first that begins with `pps`, or else the
            first.
        examples: test questions that the page shows of each run; None for 200 at most, and fewer of many
            runs.

    Raises:
        StoreError: the folder holds neither a run nor a study, or nothing in it is finished.
        ConfigError: no such arm.
        EstepError: matplotlib is not installed, or the disk is full.
    """
    results = read_results(source, reference)
    ending = ending_of(results)
    folder = out or source / "report"
    if out is None:  # what an earlier report told of may be gone
        for part in ("tables", "figures"):
            shutil.rmtree(folder / part, ignore_errors=True)
    compared = within_settings(results)
    sheets = _sheets(results, compared, ending)
    said = verdicts(results, ending)
    sentences = tuple(filter(None, (*said.sentences, said.note)))
    _write_tables(folder / "tables", sheets)
    _write(folder / "tables" / "iterations.csv", iterations_csv(results))
    _write(folder / "tables" / "comparisons.csv", comparisons_csv(compared, results.reference))
    figures = _draw(results, folder / "figures", ending)
    title = f"{'Run' if results.study is None else 'Study'} {results.name}"
    if examples is None:
        examples = max(_FEWEST_EXAMPLES, min(_MOST_EXAMPLES, _ALL_EXAMPLES // len(results.runs)))
    _write(folder / "report.md", _overview(results, title, sentences, sheets, figures, folder))
    html = page(results, title, said, figures, sheets, examples)
    _write(folder / "index.html", html)
    return Report(folder, folder / "index.html", sentences)


def ending_of(results: Results) -> str:
    """Which iteration the runs end in, in words."""
    selects = {run.config.select for run in results.runs}
    if selects == {"last"}:
        return "the last iteration"
    return "the iteration that validation chose" if selects == {"validation"} else "the iteration that the run ends in"


def _sheets(results: Results, compared: Sequence[WithinSetting], ending: str) -> list[Sheet]:
    seeds = "Mean over seeds and one standard error, in percent of the test questions. "
    flattery = seeds + "Picked by the test questions themselves, as the paper reports it, which flatters every arm."
    honest = seeds + ("Nothing was picked." if ending == "the last iteration" else "Test questions picked nothing.")
    sheets = [
        accuracy_sheet(results, highest, "highest", "Highest accuracy over iterations", flattery),
        accuracy_sheet(results, selected, "selected", f"Accuracy of {ending}", honest),
    ]
    sheets += [measures_sheet(results, setting, ending) for setting in results.settings]
    sheets.append(within_sheet(compared, results.reference, ending))
    if len(results.settings) > 1:
        sheets.append(over_sheet(over_settings(results), results.reference, ending))
    beside = paper_sheet(results)
    return [*sheets, *([beside] if beside is not None else [])]


def _write_tables(folder: Path, sheets: Sequence[Sheet]) -> None:
    for sheet in sheets:
        _write(folder / f"{sheet.name}.md", markdown(sheet))
        _write(folder / f"{sheet.name}.tex", latex(sheet))
        _write(folder / f"{sheet.name}.csv", csv_of(sheet.columns, sheet.rows))


def _draw(results: Results, folder: Path, ending: str) -> dict[Path, str]:
    """Draw every figure twice; returns the SVG files with their captions."""
    captions = {}
    for kind in ("png", "svg"):
        path = draw_accuracies(results, folder / f"accuracy.{kind}")
    captions[path] = (
        f"Test accuracy of {ending} (dots) with Wilson's 95 % interval, each question counted once; ticks: the highest "
        "over iterations; dashed: always giving the most frequent answer."
    )
    for setting in results.settings:
        for kind in ("png", "svg"):
            path = draw_setting(results, setting, folder / f"{file_name(setting.words)}.{kind}")
        captions[path] = f"{setting.words} by iteration; iteration 0 is the base model. {_bands(results, setting)}"
    return captions


def _bands(results: Results, setting: Setting) -> str:
    runs = [run for run in results.runs if run.setting == setting]
    if len(runs) == 1:
        return "The band of the accuracy is Wilson's 95 % interval."
    several = len({run.config.seed for run in runs}) > 1
    return "Bands are one standard error over seeds." if several else "One seed, so there are no bands."


def _overview(
    results: Results,
    title: str,
    sentences: Sequence[str],
    sheets: Sequence[Sheet],
    figures: dict[Path, str],
    folder: Path,
) -> str:
    pictures = [
        f"![{path.stem}]({path.relative_to(folder).with_suffix('.png').as_posix()})\n\n{plain(caption)}"
        for path, caption in figures.items()
    ]
    said = "\n".join(f"- {plain(sentence)}" for sentence in sentences)
    waiting = "\n".join(["Not finished:", "", *(f"- {plain(line)}" for line in results.unfinished)])
    parts = [f"# {plain(title)}", said, *([waiting] if results.unfinished else []), *pictures, *map(markdown, sheets)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

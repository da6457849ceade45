"""Writing the report of a run or a study: tables, figures and one page."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from estep.config.names import file_name
from estep.errors import writing
from estep.report.comparisons import WithinSetting, final, highest, over_settings, within_settings
from estep.report.conclusions import conclusions
from estep.report.figure import (
    FEWEST_IN_A_BIN,
    draw_accuracies,
    draw_confusions,
    draw_reliability,
    draw_setting,
    has_reliability,
)
from estep.report.formats import comparisons_csv, csv_of, iterations_csv, latex, markdown, plain
from estep.report.inside import costs_table, diagnostics_table
from estep.report.judge import read_judges
from estep.report.judge_tables import has_few_answers, judge_tables
from estep.report.page import Part, page
from estep.report.probabilities import judges_with_probabilities
from estep.report.probability_tables import probability_tables
from estep.report.rater_tables import rater_sentence, rater_tables
from estep.report.raters import Rated, read_rated
from estep.report.results import Results, Setting, read_results
from estep.report.tables import ReportTable, accuracy_table, measures_table, over_table, paper_table, within_table

_ALL_EXAMPLES, _MOST_EXAMPLES, _FEWEST_EXAMPLES = 1000, 200, 4
"""How many test questions a page shows: over all runs, and the most and fewest per run."""


class Report(NamedTuple):
    """A report that was written."""

    folder: Path
    page: Path
    sentences: tuple[str, ...]
    """Its opening: a sentence per setting, and a note on what they mean."""


def write_report(
    source: Path, out: Path | None = None, reference: str | None = None, examples: int | None = None
) -> Report:
    """Write the report of a run folder or a study folder.

        index.html                the page
        report.md                 the opening sentences and all tables
        tables/                   each table as .md, .tex and .csv; iterations.csv and comparisons.csv as numbers
        figures/                  each figure as .png and .svg

    Args:
        out: the folder to write to; None for `report/` within the source.
        reference: the arm that all others are compared with; None for the first whose name begins with `pps`, or the
            first arm if there is none.
        examples: how many test questions the page shows per run; None for up to 200, and fewer if there are many runs.

    Raises:
        StoreError: the folder is neither a run nor a study, or nothing in it is finished.
        ConfigError: no such arm.
        EstepError: matplotlib is not installed, or the disk is full.
    """
    results = read_results(source, reference)
    ending = ending_of(results)
    folder = out or source / "report"
    if out is None:  # an earlier report may hold settings that are gone
        for part in ("tables", "figures"):
            shutil.rmtree(folder / part, ignore_errors=True)
    compared = within_settings(results)
    rated = [found for setting in results.settings if (found := read_rated(results, setting)) is not None]
    ceilings = {one.setting: one.single_rater().accuracy.value for one in rated}
    main = Part(_draw(results, folder / "figures", ending, ceilings), _tables(results, compared, ending))
    judge = _judge_part(results, folder / "figures", ending, rated)
    opening = conclusions(results, ending)
    opening = opening._replace(sentences=[*opening.sentences, *map(rater_sentence, rated)])
    sentences = tuple(filter(None, (*opening.sentences, opening.note)))
    _write_tables(folder / "tables", [*main.tables, *judge.tables])
    _write(folder / "tables" / "iterations.csv", iterations_csv(results))
    _write(folder / "tables" / "comparisons.csv", comparisons_csv(compared, results.reference))
    title = f"{'Run' if results.study is None else 'Study'} {results.name}"
    if examples is None:
        examples = max(_FEWEST_EXAMPLES, min(_MOST_EXAMPLES, _ALL_EXAMPLES // len(results.runs)))
    _write(folder / "report.md", _overview(results, title, sentences, main, judge, folder))
    html = page(results, title, opening, main, judge, examples)
    _write(folder / "index.html", html)
    return Report(folder, folder / "index.html", sentences)


def ending_of(results: Results) -> str:
    """The iteration that the runs end in, in words."""
    selects = {run.config.select for run in results.runs}
    if selects == {"last"}:
        return "the last iteration"
    return "the iteration chosen by validation" if selects == {"validation"} else "the iteration that the run ends in"


def _tables(results: Results, compared: Sequence[WithinSetting], ending: str) -> list[ReportTable]:
    optimistic = (
        "The mean over seeds of each run's highest accuracy, with one standard error, in percent of the test "
        "questions. The test questions themselves choose the iteration, separately in each run. This overstates every "
        "arm, and most of all an arm whose accuracy scatters widely between iterations or seeds. The paper, too, "
        "reports the highest accuracy."
    )
    honest = "Mean over seeds and one standard error, in percent of the test questions. " + (
        "No iteration was chosen."
        if ending == "the last iteration"
        else "The test questions did not choose the iteration."
    )
    tables = [
        accuracy_table(results, highest, "highest", "Highest accuracy over iterations", optimistic),
        accuracy_table(results, final, "selected", f"Accuracy in {ending}", honest),
    ]
    tables += [measures_table(results, setting, ending) for setting in results.settings]
    tables += [costs_table(results, setting, ending) for setting in results.settings]
    inside = (diagnostics_table(results, setting) for setting in results.settings)
    tables += [table for table in inside if table is not None]
    tables.append(within_table(compared, results.reference, ending))
    if len(results.settings) > 1:
        tables.append(over_table(over_settings(results), results.reference, ending))
    beside = paper_table(results)
    return [*tables, *([beside] if beside is not None else [])]


def _write_tables(folder: Path, tables: Sequence[ReportTable]) -> None:
    for table in tables:
        _write(folder / f"{table.name}.md", markdown(table))
        _write(folder / f"{table.name}.tex", latex(table))
        _write(folder / f"{table.name}.csv", csv_of(table.columns, table.rows))


def _draw(results: Results, folder: Path, ending: str, ceilings: Mapping[Setting, float]) -> dict[Path, str]:
    """Draw each figure as PNG and SVG; returns the SVG files with their captions.

    Args:
        ceilings: the accuracy of a single rater in each setting with raters.
    """
    captions = {}
    dotted = (
        " Dotted: a single rater against the other raters; the table of the human ceiling measures the models against "
        "the same answers."
        if ceilings
        else ""
    )
    for kind in ("png", "svg"):
        path = draw_accuracies(results, folder / f"accuracy.{kind}", ceilings)
    captions[path] = (
        f"Test accuracy in {ending} (dots) with Wilson's 95 % interval, each question counted once. Ticks: the highest "
        f"accuracy over iterations, averaged over seeds. Dashed: always giving the most frequent answer.{dotted}"
    )
    for setting in results.settings:
        for kind in ("png", "svg"):
            path = draw_setting(results, setting, folder / f"{file_name(setting.words)}.{kind}", ceilings.get(setting))
        captions[path] = f"{setting.words} by iteration; iteration 0 is the base model. {_bands(results, setting)}"
    return captions


def _judge_part(results: Results, folder: Path, ending: str, rated: Sequence[Rated]) -> Part:
    """How people judge, for settings with raters, and each arm, for settings whose task has a fixed set of answers."""
    captions, tables = {}, []
    for setting in results.settings:
        tables += [table for one in rated if one.setting == setting for table in rater_tables(one, ending)]
        judges = read_judges(results, setting)
        if judges is None:
            continue
        tables += [*judge_tables(judges, ending), *probability_tables(judges, ending)]
        calibrated = judges_with_probabilities(judges)
        if has_reliability(calibrated):
            for kind in ("png", "svg"):
                path = draw_reliability(
                    calibrated, setting.words, folder / f"{file_name(f'calibration-{setting.words}')}.{kind}"
                )
            captions[path] = (
                f"Calibration on {setting.words}, in {ending}: the predictions of all seeds by the probability of "
                "their answer, and the share of them that is right. Larger dots stand for more predictions, and bins "
                f"with fewer than {FEWEST_IN_A_BIN} are left out. Below the dashed line, a model is overconfident."
            )
        if has_few_answers(judges):
            for kind in ("png", "svg"):
                path = draw_confusions(judges, folder / f"{file_name(f'confusion-{setting.words}')}.{kind}")
            captions[path] = (
                f"Confusion matrix of each arm on {setting.words}: predictions in {ending}, over all seeds. The "
                "stronger the color, the larger the share of the row; predictions in a frame are right. None: no "
                "allowed answer was found."
            )
    return Part(captions, tables)


def _bands(results: Results, setting: Setting) -> str:
    runs = [run for run in results.runs if run.setting == setting]
    if len(runs) == 1:
        return "The band around the accuracy is Wilson's 95 % interval."
    several = len({run.config.seed for run in runs}) > 1
    return "Bands are one standard error over seeds." if several else "One seed, so there are no bands."


def _overview(
    results: Results,
    title: str,
    sentences: Sequence[str],
    main: Part,
    judge: Part,
    folder: Path,
) -> str:
    opening = "\n".join(f"- {plain(sentence)}" for sentence in sentences)
    waiting = "\n".join(["Unfinished:", "", *(f"- {plain(line)}" for line in results.unfinished)])
    parts = [
        f"# {plain(title)}",
        opening,
        *([waiting] if results.unfinished else []),
        *_shown(main, folder),
        *(["## Judge report", *_shown(judge, folder)] if judge.tables else []),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _shown(part: Part, folder: Path) -> list[str]:
    pictures = [
        f"![{path.stem}]({path.relative_to(folder).with_suffix('.png').as_posix()})\n\n{plain(caption)}"
        for path, caption in part.figures.items()
    ]
    return [*pictures, *map(markdown, part.tables)]


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

"""A table as Markdown, LaTeX or CSV; and every iteration's measures as one long CSV table."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from estep.report.comparisons import WithinSetting
from estep.report.results import Results
from estep.report.tables import Sheet

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "–": "--",
}


def markdown(sheet: Sheet) -> str:
    """A pipe table below its title, with the note below it."""
    rows = [
        [f"**{cell}**" if (row, column) in sheet.best else cell for column, cell in enumerate(cells)]
        for row, cells in enumerate(sheet.rows)
    ]
    left = sheet.text_columns
    lines = [
        _piped(sheet.columns),
        "|" + "|".join("---" if column in left else "---:" for column in range(len(sheet.columns))) + "|",
        *(_piped(row) for row in rows),
    ]
    return "\n".join([f"### {plain(sheet.title)}", "", *lines, *(["", plain(sheet.note)] if sheet.note else [])]) + "\n"


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |"


def plain(text: str) -> str:
    """Names of people's own files must not act as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def latex(sheet: Sheet) -> str:
    """A `tabular` with booktabs' rules, in a floating table."""
    left = sheet.text_columns
    form = "".join("l" if column in left else "r" for column in range(len(sheet.columns)))
    rows = [
        " & ".join(
            rf"\textbf{{{_tex(cell)}}}" if (row, column) in sheet.best else _tex(cell)
            for column, cell in enumerate(cells)
        )
        + r" \\"
        for row, cells in enumerate(sheet.rows)
    ]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(sheet.title)}. {_tex(sheet.note)}}}",
        rf"\begin{{tabular}}{{{form}}}",
        r"\toprule",
        " & ".join(map(_tex, sheet.columns)) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def csv_of(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Comma-separated values; an undefined one is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if isinstance(value, float) and math.isnan(value) else value for value in row])
    return out.getvalue()


_EVALUATION = (
    "accuracy",
    "majority_accuracy",
    "parse_rate",
    "kappa",
    "mae",
    "reasoning_words",
    "distinct_rationales",
    "hint_mentioned",
)
_E_STEP = ("draws", "accepted", "data_utilization", "tokens_per_pair", "hinted_share", "answer_shift")


def iterations_csv(results: Results) -> str:
    """A line an iteration of every run, for analyses of one's own. Times are left out: they differ from machine to
    machine, and the run folders hold them."""
    columns = ["run", "task", "model", "setting", "arm", "seed", "train_size", "iteration", "selected", "questions"]
    columns += ["predictions", *_EVALUATION, "validation_accuracy", *_E_STEP, "pairs_trained", "mean_loss", "tokens"]
    rows = []
    for run in results.runs:
        config = run.config
        for metrics in run.iterations:
            evaluation = asdict(metrics.evaluation)
            e_step = asdict(metrics.e_step) if metrics.e_step is not None else {}
            rows.append(
                [
                    run.name,
                    run.setting.task,
                    run.setting.model,
                    run.setting.also,
                    run.arm,
                    config.seed,
                    config.train_size,
                    metrics.iteration,
                    int(metrics.iteration == run.selected.iteration),
                    evaluation["questions"],
                    evaluation["predictions"],
                    *(evaluation[name] for name in _EVALUATION),
                    metrics.validation.accuracy if metrics.validation else math.nan,
                    *(e_step.get(name, math.nan) for name in _E_STEP),
                    metrics.m_step.pairs if metrics.m_step else 0,
                    metrics.m_step.mean_loss if metrics.m_step else math.nan,
                    sum(metrics.tokens.values()),
                ]
            )
    return csv_of(columns, rows)


def comparisons_csv(compared: Sequence[WithinSetting], reference: str) -> str:
    """The reference against the others as numbers: shares, not percent. McNemar's test is empty where several
    samples of a question count."""
    columns = [
        "task",
        "model",
        "setting",
        "reference",
        "against",
        "answers",
        "difference",
        "low",
        "high",
        "p_bootstrap",
    ]
    columns += ["only_reference", "only_against", "p_mcnemar", "p_holm"]
    rows = [
        [
            *one.setting,
            reference,
            one.other,
            one.questions,
            *one.difference,
            *(("", "") if math.isnan(one.mcnemar) else (one.only_reference, one.only_other)),
            one.mcnemar,
            one.holm,
        ]
        for one in compared
    ]
    return csv_of(columns, rows)

"""Tables as Markdown, LaTeX or CSV, and the measures of every iteration as one long CSV table."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from estep.metrics import Diagnostics
from estep.report.comparisons import WithinSetting
from estep.report.results import Results
from estep.report.tables import ReportTable

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


def markdown(table: ReportTable) -> str:
    """A pipe table between its title and its note."""
    rows = [
        [f"**{cell}**" if (row, column) in table.best else cell for column, cell in enumerate(cells)]
        for row, cells in enumerate(table.rows)
    ]
    left = table.text_columns
    lines = [
        _piped(table.columns),
        "|" + "|".join("---" if column in left else "---:" for column in range(len(table.columns))) + "|",
        *(_piped(row) for row in rows),
    ]
    return "\n".join([f"### {plain(table.title)}", "", *lines, *(["", plain(table.note)] if table.note else [])]) + "\n"


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |"


def plain(text: str) -> str:
    """Text with HTML's special characters escaped, since names of files and models may contain them."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def latex(table: ReportTable) -> str:
    """A floating `table` around a `tabular` with the rules of booktabs."""
    left = table.text_columns
    form = "".join("l" if column in left else "r" for column in range(len(table.columns)))
    rows = [
        " & ".join(
            rf"\textbf{{{_tex(cell)}}}" if (row, column) in table.best else _tex(cell)
            for column, cell in enumerate(cells)
        )
        + r" \\"
        for row, cells in enumerate(table.rows)
    ]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}. {_tex(table.note)}}}",
        rf"\begin{{tabular}}{{{form}}}",
        r"\toprule",
        " & ".join(map(_tex, table.columns)) + r" \\",
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
    """Comma-separated values; NaN becomes an empty cell."""
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
_DIAGNOSTICS = tuple(one.name for one in fields(Diagnostics) if one.name != "warnings")


def iterations_csv(results: Results) -> str:
    """One line per iteration of every run, for analysis elsewhere.

    Times are left out because they depend on the machine; the run folders hold them.
    """
    columns = ["run", "task", "model", "setting", "arm", "seed", "train_size", "iteration", "selected", "questions"]
    columns += ["predictions", *_EVALUATION, "validation_accuracy", *_E_STEP, "pairs_trained", "mean_loss", "tokens"]
    columns += [*_DIAGNOSTICS, "warnings"]
    rows = []
    for run in results.runs:
        config = run.config
        for metrics in run.iterations:
            evaluation = asdict(metrics.evaluation)
            e_step = asdict(metrics.e_step) if metrics.e_step is not None else {}
            inside = asdict(metrics.diagnostics) if metrics.diagnostics is not None else {}
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
                    int(metrics.iteration == run.final.iteration),
                    evaluation["questions"],
                    evaluation["predictions"],
                    *(evaluation[name] for name in _EVALUATION),
                    metrics.validation.accuracy if metrics.validation else math.nan,
                    *(e_step.get(name, math.nan) for name in _E_STEP),
                    metrics.m_step.pairs if metrics.m_step else 0,
                    metrics.m_step.mean_loss if metrics.m_step else math.nan,
                    sum(metrics.tokens.values()),
                    *(inside.get(name, math.nan) for name in _DIAGNOSTICS),
                    " ".join(inside.get("warnings", ())),
                ]
            )
    return csv_of(columns, rows)


def comparisons_csv(compared: Sequence[WithinSetting], reference: str) -> str:
    """The comparisons with the reference as numbers: accuracies are shares, not percent.

    `p_holm` corrects the larger of `p_bootstrap` and `p_sign_test`.
    """
    columns = ["task", "model", "setting", "reference", "against", "questions", "answers"]
    columns += ["difference", "low", "high", "p_bootstrap", "wins", "losses", "p_sign_test", "p_holm"]
    rows = [
        [
            *one.setting,
            reference,
            one.other,
            one.questions,
            one.answers,
            *one.difference,
            one.wins,
            one.losses,
            one.sign_test,
            one.holm,
        ]
        for one in compared
    ]
    return csv_of(columns, rows)

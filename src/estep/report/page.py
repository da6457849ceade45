"""The report as one self-contained HTML page: it loads no other file and needs no network.

Texts from models and data reach the page as escaped HTML, or as JSON that a script shows as plain text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from markupsafe import Markup, escape

from estep.report.conclusions import Conclusions
from estep.report.examples import examples_of
from estep.report.figure import INK
from estep.report.results import Results, Run, Setting
from estep.report.tables import ReportTable

TEMPLATE = Path(__file__).with_name("page.html.jinja")


class Picture(NamedTuple):
    """A figure on the page."""

    svg: Markup
    caption: str


class Part(NamedTuple):
    """What a report shows together."""

    figures: Mapping[Path, str]
    """SVG files and their captions."""
    tables: Sequence[ReportTable]


def page(results: Results, title: str, opening: Conclusions, main: Part, judge: Part, examples: int) -> str:
    """The page's HTML.

    Args:
        opening: the sentences that the page begins with.
        judge: how each arm judges; without tables, the page has no such section.
        examples: how many test questions to show per run, and about how many samples.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    contents = [("short", "Summary"), ("figures", "Figures"), ("tables", "Tables")]
    contents += [("judge", "Judge report")] if judge.tables else []
    contents += [("rationales", "Rationales"), ("samples", "Samples"), ("provenance", "Provenance")]
    return template.render(
        title=title,
        subtitle=_subtitle(results),
        contents=contents,
        opening=opening,
        unfinished=results.unfinished,
        figures=_pictures(main.figures, "f"),
        tables=main.tables,
        judge_figures=_pictures(judge.figures, "j"),
        judge_tables=judge.tables,
        provenance=provenance(results),
        environments=environments(results),
        documents=documents(results),
        data=embedded({"first": _first(results), "runs": [_texts(run, examples) for run in results.runs]}),
    )


def _pictures(figures: Mapping[Path, str], name: str) -> list[Picture]:
    return [
        Picture(inline(path.read_text(encoding="utf-8"), f"{name}{number}", caption), caption)
        for number, (path, caption) in enumerate(figures.items())
    ]


def inline(svg: str, name: str, caption: str) -> Markup:
    """An SVG file's drawing as part of the page, in the page's text color.

    matplotlib has escaped the text within the drawing.

    Args:
        name: a prefix for the drawing's ids, which must be unique on the page.
        caption: the text for screen readers.
    """
    drawing = svg[svg.index("<svg") :].replace(INK, "currentColor")
    drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", drawing)
    return Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1))


def embedded(content: Any) -> Markup:
    """Plain data for a script element, escaped so that no text in it can end the element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _subtitle(results: Results) -> str:
    seeds = sorted({run.config.seed for run in results.runs})
    runs = "one run" if len(results.runs) == 1 else f"{len(results.runs)} runs"
    return f"{runs}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; tasks: " + ", ".join(
        dict.fromkeys(setting.task for setting in results.settings)
    )


def _first(results: Results) -> int:
    """The index of the run whose texts are shown at first: the reference's first run."""
    return next((index for index, run in enumerate(results.runs) if run.arm == results.reference), 0)


def _texts(run: Run, examples: int) -> dict[str, Any]:
    return {"name": run.name, **asdict(examples_of(run, examples))}


# Provenance


def provenance(results: Results) -> ReportTable:
    """When and from which revision each run was made, and what it cost."""
    columns = ("run", "started", "sessions", "seconds", "tokens", "revision", "reused")
    rows = []
    for run in results.runs:
        sessions = run.record["sessions"]
        reused = {f"{key.removesuffix('_of')} of {s[key]}": None for s in sessions for key in _REUSED if key in s}
        rows.append(
            (
                run.name,
                sessions[0]["started"],
                str(len(sessions)),
                f"{sum(sum(metrics.seconds.values()) for metrics in run.iterations):.0f}",
                str(sum(sum(metrics.tokens.values()) for metrics in run.iterations)),
                ", ".join(dict.fromkeys(_short(session["git_revision"]) for session in sessions)),
                ", ".join(reused),
            )
        )
    note = (
        "Seconds: time of the last session of each iteration. A reused evaluation of the base model counts with its "
        "original time, a reused training with none. Reused: what was copied from another run. A revision that ends in "
        "+ had uncommitted changes."
    )
    return ReportTable("provenance", "Provenance", columns, tuple(rows), note)


_REUSED = ("base_of", "training_of")


def _short(revision: str | None) -> str:
    if revision is None:
        return "no checkout"
    return revision.removesuffix("+")[:12] + ("+" if revision.endswith("+") else "")


def environments(results: Results) -> list[str]:
    """Each combination of machine, engine and versions that the runs were made with."""
    found: dict[str, int] = {}
    for run in results.runs:
        for session in run.record["sessions"]:
            engine = ", ".join(f"{key} {value}" for key, value in session.get("engine", {}).items())
            versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
            machine = f"{session['platform']}, {session['cpus']} CPUs, Python {session['python']}"
            line = f"{machine}; {engine}; {versions}"
            found[line] = found.get(line, 0) + 1
    return [f"{line} ({count} sessions)" for line, count in found.items()]


def documents(results: Results) -> list[tuple[str, str]]:
    """The study's configuration, the resolved configuration of each arm and setting, and each task file once."""
    found: dict[str, str] = {}
    if results.study is not None:
        found["study.yaml"] = results.study
    seen: set[tuple[Setting, str]] = set()
    for run in results.runs:
        if (run.setting, run.arm) not in seen:
            seen.add((run.setting, run.arm))
            content = run.config.model_dump(mode="json", exclude={"run_dir"})
            found[f"configuration of {run.name}"] = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    tasks = {(run.setting.task, (run.store.folder / "task.yaml").read_text(encoding="utf-8")) for run in results.runs}
    return [*found.items(), *((f"task {name}", text) for name, text in sorted(tasks))]

"""The report as one HTML page that needs nothing else: no network, no other file.

Texts of models and data reach the page as escaped HTML, or as JSON that a script shows as plain text.
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

from estep.report.conclusions import Verdicts
from estep.report.examples import examples_of
from estep.report.figure import INK
from estep.report.results import Results, Run, Setting
from estep.report.tables import Sheet

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


class Picture(NamedTuple):
    """A figure of the page."""

    svg: Markup
    caption: str


def page(
    results: Results,
    title: str,
    said: Verdicts,
    figures: Mapping[Path, str],
    sheets: Sequence[Sheet],
    examples: int,
) -> str:
    """The page's HTML.

    Args:
        said: first.
        figures: SVG files and their captions.
        examples: test questions of each run, and about as many samples.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    sections = ("short", "In short"), ("figures", "Figures"), ("tables", "Tables"), ("rationales", "Rationales")
    return template.render(
        title=title,
        subtitle=_subtitle(results),
        contents=[*sections, ("samples", "Samples"), ("provenance", "Provenance")],
        said=said,
        unfinished=results.unfinished,
        figures=[
            Picture(inline(path.read_text(encoding="utf-8"), f"f{number}", caption), caption)
            for number, (path, caption) in enumerate(figures.items())
        ],
        sheets=sheets,
        provenance=provenance(results),
        environments=environments(results),
        documents=documents(results),
        data=embedded({"first": _first(results), "runs": [_texts(run, examples) for run in results.runs]}),
    )


def inline(svg: str, name: str, caption: str) -> Markup:
    """An SVG file's drawing as a part of a page, in the page's own color of text.

    matplotlib has escaped the texts within.

    Args:
        name: set before the drawing's ids, since a page has each id once.
        caption: what readers are told who do not see it.
    """
    drawing = svg[svg.index("<svg") :].replace(INK, "currentColor")
    drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", drawing)
    return Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1))


def embedded(content: Any) -> Markup:
    """Plain data for a script element: no `<` in it can end the element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _subtitle(results: Results) -> str:
    seeds = sorted({run.config.seed for run in results.runs})
    runs = "one run" if len(results.runs) == 1 else f"{len(results.runs)} runs"
    return f"{runs}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; tasks: " + ", ".join(
        dict.fromkeys(setting.task for setting in results.settings)
    )


def _first(results: Results) -> int:
    """The place of the run whose texts are shown until another is chosen: the reference's first."""
    return next((place for place, run in enumerate(results.runs) if run.arm == results.reference), 0)


def _texts(run: Run, examples: int) -> dict[str, Any]:
    return {"name": run.name, **asdict(examples_of(run, examples))}


# Provenance


def provenance(results: Results) -> Sheet:
    """Who ran what, when, and at what cost."""
    columns = ("run", "began", "sessions", "seconds", "tokens", "revision", "taken over")
    rows = []
    for run in results.runs:
        sessions = run.record["sessions"]
        taken = {f"{key.removesuffix('_of')} of {s[key]}": None for s in sessions for key in _TAKEN if key in s}
        rows.append(
            (
                run.name,
                sessions[0]["started"],
                str(len(sessions)),
                f"{sum(sum(metrics.seconds.values()) for metrics in run.iterations):.0f}",
                str(sum(sum(metrics.tokens.values()) for metrics in run.iterations)),
                ", ".join(dict.fromkeys(_short(session["git_revision"]) for session in sessions)),
                ", ".join(taken),
            )
        )
    note = (
        "Seconds: of the last session of each iteration. A base evaluation that was taken over counts with the seconds "
        "that it took there, a training that was taken over with none. A revision that ends in + had changes that were "
        "not committed."
    )
    return Sheet("provenance", "Provenance", columns, tuple(rows), note)


_TAKEN = ("base_of", "training_of")


def _short(revision: str | None) -> str:
    if revision is None:
        return "no checkout"
    return revision.removesuffix("+")[:12] + ("+" if revision.endswith("+") else "")


def environments(results: Results) -> list[str]:
    """Every different combination of machine, engine and versions that a run was made with."""
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
    """The study's configuration, and each different resolved configuration and task file, once."""
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

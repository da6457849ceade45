"""The tables of diagnostics and costs, by hand."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

from estep.metrics import Diagnostics
from estep.report.formats import iterations_csv
from estep.report.inside import costs_table, diagnostics_table
from estep.report.results import Results, read_results
from studies import make_run

FIGURES = Diagnostics(0.25, 0.0, math.nan, 0.5, 0.0, math.nan, log_likelihood=-1.25, warnings=("collapsed",))


def results_of(folder: Path, diagnostics: Diagnostics | None = FIGURES) -> Results:
    """A run of two iterations, each with these diagnostics, that sampled for 2 and trained for 3 seconds in each."""
    make_run(folder / "run", ["0000000000", "0123401234", "0123400000"])
    found = diagnostics and {k: None if v != v else v for k, v in asdict(diagnostics).items()}
    for path in (folder / "run").glob("iteration-*/metrics.json"):
        stored = {**json.loads(path.read_text()), "seconds": {"e_step": 2.0, "m_step": 3.0}, "diagnostics": found}
        path.write_text(json.dumps(stored))
    return read_results(folder / "run")


def test_diagnostics_have_a_row_per_iteration_and_no_empty_columns(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    table = diagnostics_table(results, results.settings[0])
    assert table is not None
    column = {name: [row[n] for row in table.rows] for n, name in enumerate(table.columns)}
    assert column["k"] == ["1", "2"]
    assert column["commonest"] == ["25", "25"]
    assert column["log p̂"] == ["-1.25", "-1.25"]
    assert column["warnings"] == ["collapsed 1", "collapsed 1"]
    assert {"price", "ESS", "steps", "dependence"}.isdisjoint(column)


def test_runs_without_diagnostics_have_no_table_of_them(tmp_path: Path) -> None:
    results = results_of(tmp_path, None)
    assert diagnostics_table(results, results.settings[0]) is None


def test_costs_are_those_of_all_iterations_together(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    table = costs_table(results, results.settings[0], "the last iteration")
    base, arm = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (arm["E-step s"], arm["M-step s"]) == ("4", "6")  # two iterations of 2 and of 3 seconds
    assert arm["draws"] == "6"  # three in each
    assert arm["log p̂"] == "-1.25"
    assert base["draws"] == "–"


def test_an_arm_that_shares_a_training_has_its_seconds(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    (run,) = results.runs
    shares = tmp_path / "vote"
    make_run(shares, ["0000000000", "0123401234", "0123400000"])
    content = json.loads((shares / "run.json").read_text())
    content["sessions"][-1]["training_of"] = run.name
    (shares / "run.json").write_text(json.dumps(content))
    voted = replace(read_results(shares).runs[0], arm="vote")
    both = replace(results, runs=(run, voted))
    cells = [dict(zip(t.columns, t.rows[-1], strict=True)) for t in (costs_table(both, run.setting, "the last"),)]
    assert [(cell[""], cell["E-step s"], cell["M-step s"]) for cell in cells] == [("vote", "4", "6")]
    alone = costs_table(replace(results, runs=(voted,)), run.setting, "the last")
    assert "E-step s" not in alone.columns  # nobody knows


def test_the_figures_are_in_the_table_of_iterations(tmp_path: Path) -> None:
    header, *rows = iterations_csv(results_of(tmp_path)).splitlines()
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    assert (last["log_likelihood"], last["commonest_rationale"], last["warnings"]) == ("-1.25", "0.25", "collapsed")
    assert last["hint_price"] == ""

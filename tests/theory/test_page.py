"""The tables of docs/theory.md are the code's, and the package imports numpy alone."""

import ast
import sys
from pathlib import Path

import estep.theory
from conftest import script

ROOT = Path(__file__).parents[2]


def test_the_tables_of_the_page_are_written_from_the_code() -> None:
    page = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
    assert script("write_theory").with_tables(page) == page
    assert "| PPS, verified | 0.030 0.015 0.179 0.239 0.537 | 0.670 | 0.790 | 0.628 |" in page
    assert "| rejection, M = 1 | 42.3 % | 2.6 % | 0.0 % | 1.2 % | 53.9 % |" in page


def test_theory_imports_numpy_alone() -> None:
    imported = set()
    for path in Path(estep.theory.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
    own = {name for name in imported if name.startswith("estep.theory.")}
    outside = {name.split(".")[0] for name in imported - own} - sys.stdlib_module_names
    assert outside == {"numpy"}

"""Every symbol of the paper is found where docs/glossary.md says, and equations are cited there."""

import importlib
import inspect
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parent.parent / "docs/glossary.md").read_text()
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if re.match(r"\| (?!symbol|in the paper)|\|(?!-| )", line)
]
NAMES = re.compile(r"`([\w.]+:[\w.]+)`")
CITED = re.compile(r"equation \d|Lemma \d|Algorithm \d|section \d")


def found(name: str) -> Any:
    """The object of `module:a.b`; for a field of a record or a section, the class that has it."""
    return with_owner(name)[1]


def with_owner(name: str) -> tuple[Any, Any]:
    """The object of `module:a.b`, after the class or module that has it."""
    module, _, path = name.partition(":")
    owner: Any = None
    value: Any = importlib.import_module(f"estep.{module}")
    for part in path.split("."):
        fields = getattr(value, "model_fields", {}) or (value.__dataclass_fields__ if is_dataclass(value) else {})
        if part not in fields:
            owner, value = value, getattr(value, part)
    return owner, value


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_the_glossary_names_is_there(row: list[str]) -> None:
    names = NAMES.findall(row[2])
    assert names
    for name in names:
        found(name)


@pytest.mark.parametrize("row", [row for row in ROWS if CITED.match(row[0])], ids=lambda row: row[0])
def test_the_code_of_an_equation_cites_it(row: list[str]) -> None:
    cited = CITED.findall(row[0])[0]
    for name in NAMES.findall(row[2]):
        owner, value = with_owner(name)
        source = inspect.getsource(value)
        if inspect.isclass(owner):  # the docstring of a method's class may cite
            source += inspect.getdoc(owner) or ""
        assert cited in source, f"{name} does not cite {cited}"


def test_every_symbol_equation_and_algorithm_of_the_paper_is_in_the_glossary() -> None:
    first = [row[0] for row in ROWS]
    for symbol in ("x", "y*", "z", "ŷ", "N", "θ", "π", "q", "r", "η", "K", "M"):
        assert any(re.search(rf"(?<!\w){re.escape(symbol)}(?!\w)", cell) for cell in first), symbol
    assert {"Lemma 1", *(f"equation {n}" for n in range(1, 6)), *(f"Algorithm {n}" for n in range(1, 4))} <= set(first)

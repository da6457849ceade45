"""docs/configuration.md says what the code does."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_one_that_the_code_writes() -> None:
    page = runpy.run_path(str(ROOT / "scripts/write_configuration.py"))["render"]()
    assert page == (ROOT / "docs/configuration.md").read_text(), "run python scripts/write_configuration.py"


def test_every_key_has_a_meaning() -> None:
    lines = (ROOT / "docs/configuration.md").read_text().splitlines()
    assert [line for line in lines if line.endswith("|  |")] == []

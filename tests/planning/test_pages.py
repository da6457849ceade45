"""The pages' tables are the code's, and the shipped runs fit the devices that they name."""

from pathlib import Path

import pytest

from conftest import script
from estep.config.files import load_config
from estep.planning.devices import parse_devices
from estep.planning.report import plan_run
from estep.shipped import CONFIGS

ROOT = Path(__file__).parents[2]


def test_the_tables_of_the_pages_are_written_from_the_code() -> None:
    pages = tuple((ROOT / "docs" / name).read_text() for name in ("scaling.md", "models.md"))
    assert script("write_scaling").with_tables(*pages) == pages
    assert "| `llama-3.1-8b` | 4 x 80 GB | 32.1 |" in pages[0]


@pytest.mark.parametrize(
    ("name", "devices", "others"),
    [
        ("1.5b", "1x80GB", None),
        ("3b", "2x80GB", "llama-3.2-3b"),
        ("7b", "4x80GB", "llama-3.1-8b"),
        ("70b", "2x8x80GB", "qwen2.5-72b"),
    ],
)
def test_each_scaling_run_fits_the_devices_that_it_names(name: str, devices: str, others: str | None) -> None:
    there = parse_devices(devices)
    for overrides in ([], [f"model={others}"] if others else []):
        config = load_config(f"scaling/{name}", overrides)
        plan = plan_run(config, there)
        assert plan.refusal is None
        assert plan.training.devices == config.m_step.devices == there.count
        assert plan.sampling is not None
        assert plan.sampling.copies * plan.sampling.split == there.count


def test_every_scaling_run_is_planned() -> None:
    assert {path.stem for path in (CONFIGS / "scaling").glob("*.yaml")} == {"1.5b", "3b", "7b", "70b"}

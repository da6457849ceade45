"""What the command line says about itself."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from commands import estep
from estep.store.revision import git_revision

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "transformers", "vllm", "scipy", "sklearn", "matplotlib", "datasets", "pandas", "pyarrow", "numpy")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, estep.cli\n"
        "try:\n"
        "    estep.cli.main()\n"
        "finally:\n"
        f"    print('imported:', *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage: " in result.stdout
    assert result.stderr == "imported:\n"


def test_the_version_is_that_of_the_package_and_its_checkout(tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    revision = git_revision()
    result = estep("--version", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"estep {version}" + (f", revision {revision}" if revision else "") + "\n"


def test_outside_a_checkout_the_version_stands_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    result = estep("--version", cwd=tmp_path, source=tmp_path / "src")
    assert result.stdout.startswith("estep ")
    assert "revision" not in result.stdout

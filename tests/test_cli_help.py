"""What the command line says about itself."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from commands import estep, refused
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


def test_keys_are_listed_one_per_line_in_a_pipe(tmp_path: Path) -> None:
    result = estep("keys", "m_step.re", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ((key, kind, default, variants, meaning),) = [line.split("\t") for line in result.stdout.splitlines()]
    assert (key, kind, default, variants) == ("m_step.replay", "integer or last", "1", "")
    assert meaning.startswith("Number of iterations whose pairs are trained on: ")
    everything = estep("keys", cwd=tmp_path).stdout.splitlines()
    assert "engine.script\ttext\trequired\tscripted\t" in "\n".join(everything)
    assert "did you mean 'm_step'?" in refused(estep("keys", "mstep", cwd=tmp_path))


@pytest.mark.parametrize("command", ["train", "study"])
def test_the_help_of_commands_with_settings_names_the_list_of_keys(command: str, tmp_path: Path) -> None:
    assert "`estep keys`" in " ".join(estep(command, "--help", cwd=tmp_path).stdout.split())

"""The Dockerfiles are linted, and fit the project. Nothing here can build them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted(ROOT.glob("docker/*.Dockerfile"))


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [path.name for path in DOCKERFILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    result = subprocess.run([Path(sys.executable).with_name("hadolint"), path], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_has_the_projects_torch_extras_and_files(path: Path) -> None:
    text = path.read_text()
    (torch,) = re.findall(r"^TORCH := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^ARG TORCH=(.*)$", text, re.MULTILINE) == [torch]
    (extras,) = re.findall(r"'\.\[(.*)\]'", text)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)
    kept = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"]
    copied = [source for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for source in line.split()[:-1]]
    assert set(copied) <= set(kept), "the build would not see it"
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_runs_estep_as_a_user_without_rights_and_keeps_runs_and_cache(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines.index("USER 1000") < lines.index('ENTRYPOINT ["estep"]')
    assert 'VOLUME ["/work/runs", "/cache"]' in lines
    (base,) = [line for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"FROM [\w/]+:\d+\.\d+\.\d+[\w.-]*", base), "a pinned tag"

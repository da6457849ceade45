"""What a release holds, and what it says about itself."""

import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator, FormatChecker

import estep

ROOT = Path(__file__).parents[1]
SCHEMA = "cffconvert==2.0.0 --hash=sha256:573c825e4e16173d99396dc956bd22ff5d4f84215cc16b6ab05299124f5373bb\n"
"""The package with the schema of CITATION.cff. It is read and not installed: it needs an old jsonschema."""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    shipped = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/estep").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {Path(name).suffix for name in shipped} >= {".py", ".yaml", ".json", ".jinja", ".csv", ".typed"}
    assert held == shipped


def test_a_package_index_accepts_the_metadata_and_shows_the_readme(wheel: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *wheel.parent.iterdir()]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
        assert [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == (
        "estep",
        estep.__version__,
        "Apache-2.0",
    )
    assert metadata["Author"] == "estep maintainers"


def test_the_source_distribution_can_be_tested_and_documented(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    needed = ["Makefile", "constraints.txt", "mkdocs.yml", "docs/demo.ipynb", "tests/conftest.py", "CITATION.cff"]
    needed += ["docker/cpu.Dockerfile", ".dockerignore", *(path.name for path in ROOT.glob("*.md"))]
    assert sorted(set(needed) - held) == []
    assert [name for name in held if "__pycache__" in name or name.startswith(("site", "runs"))] == []


def test_the_citation_file_follows_its_schema(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(SCHEMA)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "-d", tmp_path, "-r", tmp_path / "requirements.txt"], check=True)
    (package,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(package) as archive:
        schema = json.loads(archive.read("cffconvert/schemas/1.2.0/schema.json"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    Draft7Validator(schema, format_checker=FormatChecker()).validate(citation)
    with pytest.raises(Exception, match="'authors' is a required property"):
        Draft7Validator(schema).validate({key: value for key, value in citation.items() if key != "authors"})


def test_the_citation_file_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["authors"] == project["authors"]
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2512.20169"
    names = ["Lee", "Kveton", "Rao", "Mukherjee", "Rossi", "Choudhary", "Siu"]
    assert [author["family-names"] for author in paper["authors"]] == names

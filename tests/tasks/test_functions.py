"""Users' own functions: which of them a task file may name, and the notice before one runs."""

import hashlib
import textwrap
from pathlib import Path

import pytest

from conftest import Listen, write_task
from estep.config import RunConfig
from estep.data.check import check_task
from estep.data.split import load_pool
from estep.errors import DataError, StoreError
from estep.inference import evaluate_model
from estep.store.run import RunStore, locked
from estep.tasks import load_task, parse_task
from estep.tasks.functions import load_function

SCORE = "def score(text, answer):\n    return text, text == answer\n"


def module(folder: Path, source: str = SCORE, name: str = "verify.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source))
    return folder


def test_a_function_comes_from_a_file_beside_the_task_file(tmp_path: Path) -> None:
    one = load_function("verify:score", module(tmp_path / "one"), None)
    other = load_function(
        "verify:score", module(tmp_path / "other", "def score(text, answer): return 'x', True\n"), None
    )
    assert one("a", "b") == ("a", False)
    assert other("a", "b") == ("x", True)


def test_a_dotted_module_lies_in_a_folder_beside_the_task_file(tmp_path: Path) -> None:
    module(tmp_path, name="judges/math.py")
    assert load_function("judges.math:score", tmp_path, None)("a", "a") == ("a", True)


def test_a_dataclass_can_be_defined_beside_a_function(tmp_path: Path) -> None:
    source = """
        from __future__ import annotations
        from dataclasses import dataclass

        @dataclass
        class Stated:
            text: str

        def score(text, answer):
            return Stated(text).text, True
        """
    assert load_function("verify:score", module(tmp_path, source), None)("a", "b") == ("a", True)


@pytest.mark.parametrize("name", ["os:popen", "os:system", "subprocess:run", "builtins:eval", "estep.cli:main"])
def test_no_function_of_any_other_module_can_be_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot load the function {name}: there is no {tmp_path}"):
        load_function(name, module(tmp_path), None)


def test_a_link_does_not_lead_out_of_the_tasks_folder(tmp_path: Path) -> None:
    module(tmp_path / "elsewhere")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "verify.py").symlink_to(tmp_path / "elsewhere" / "verify.py")
    (tmp_path / "task" / "sub").symlink_to(tmp_path / "elsewhere")
    for name in ("verify:score", "sub.verify:score"):
        with pytest.raises(ValueError, match="leads out of the task's folder"):
            load_function(name, tmp_path / "task", None)


@pytest.mark.parametrize(
    "name", ["..verify:score", "../verify:score", "/tmp/verify:score", "verify", "verify:a.b", ":f"]
)
def test_a_path_is_no_name_of_a_function(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"answer\.function"):
        load_task(str(write_task(module(tmp_path), answer={"type": "python", "function": name})))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class score:\n    def __init__(self, text, answer): pass\n", "not a function written in Python, but a type"),
        ("score = max\n", "not a function written in Python, but a builtin_function_or_method"),
        ("import functools\nscore = functools.partial(print)\n", "not a function written in Python, but a partial"),
        ("def score(text): return text, True\n", r"verify:score\(text\): too many positional arguments"),
        ("other = 1\n", "AttributeError: .*has no attribute 'score'"),
        ("1/0\n", "ZeroDivisionError: division by zero"),
        ("def score(:\n", "SyntaxError"),
    ],
)
def test_what_is_no_function_of_two_texts_is_refused(tmp_path: Path, source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_function("verify:score", module(tmp_path, source), None)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
    """Install a package `estep_judges` from a distribution of another name, and allow these packages."""
    module(folder / "estep_judges", "from textwrap import dedent\nfrom collections import deque\n", "__init__.py")
    module(folder / "estep_judges", name="verify.py")
    files = {"METADATA": "Metadata-Version: 2.1\nName: Own.Judges\nVersion: 1\n", "top_level.txt": "estep_judges\n"}
    for name, text in files.items():
        module(folder / "Own.Judges-1.dist-info", text, name)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("ESTEP_ALLOW_PACKAGES", allowed)


@pytest.mark.parametrize(
    ("name", "package", "reason"),
    [
        ("os:popen", "os", "os belongs to Python's standard library"),
        ("subprocess:run", "subprocess", "belongs to Python's standard library"),
        ("os:popen", "estep_judges", "os is not in the package estep_judges"),
        ("estep_judgesx:load", "estep_judges", "estep_judgesx is not in the package estep_judges"),
        ("nothing_like_it:f", "nothing_like_it", "no package nothing_like_it is installed"),
        ("estep_judges:deque", "estep_judges", "not a function written in Python, but a type"),
        # A function that a module has from elsewhere.
        ("estep_judges:dedent", "estep_judges", "defined in textwrap, and not in the package estep_judges"),
        ("estep_judges:no_such_function", "estep_judges", "AttributeError"),
    ],
)
def test_only_what_an_installed_package_defines_itself_can_be_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, reason: str
) -> None:
    install(tmp_path, monkeypatch, allowed=package)
    with pytest.raises(ValueError, match=reason):
        load_function(name, None, package)


@pytest.mark.parametrize("allowed", ["estep_judges", "other, estep_judges", "estep_judges.verify"])
def test_an_allowed_packages_function_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
    install(tmp_path, monkeypatch, allowed)
    package = allowed.rpartition(" ")[2]
    assert load_function("estep_judges.verify:score", None, package)("a", "a") == ("a", True)


@pytest.mark.parametrize("allowed", ["", ",", "estep", "estep_judges.verify"])
def test_a_package_judges_only_where_the_user_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    install(tmp_path, monkeypatch, allowed)
    with pytest.raises(ValueError, match="if you trust it, set ESTEP_ALLOW_PACKAGES=estep_judges"):
        load_function("estep_judges.verify:score", None, "estep_judges")


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("sympy:simplify", "sympy"),  # evaluates the text that it simplifies
        ("joblib:load", "joblib"),
        ("torch:load", "torch"),
        ("yaml:load", "pyyaml"),
        ("estep.cli:main", "estep"),
    ],
)
def test_no_package_that_estep_uses_may_judge_even_if_it_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, distribution: str
) -> None:
    package = name.partition(":")[0].partition(".")[0]
    monkeypatch.setenv("ESTEP_ALLOW_PACKAGES", package)
    with pytest.raises(ValueError, match=f"{package} belongs to {distribution}, which estep itself uses"):
        load_function(name, None, package)


def test_the_text_of_a_task_identifies_the_file_of_its_function(tmp_path: Path) -> None:
    task = load_task(str(write_task(module(tmp_path), answer={"type": "python", "function": "verify:score"})))
    before = task.text
    # `sha256sum` of the file
    assert before.endswith(f"\n# verify.py: sha256 {hashlib.sha256(SCORE.encode()).hexdigest()}\n")
    assert parse_task(before, "task.yaml") == task.file
    module(tmp_path, SCORE + "\n")
    assert task.text != before
    (tmp_path / "verify.py").unlink()
    assert task.text.endswith("\n# verify:score: not found\n")
    assert "#" not in load_task("gym/chain_sum").text.splitlines()[-1]


def test_a_run_does_not_resume_with_another_function(tmp_path: Path) -> None:
    path = write_task(module(tmp_path), answer={"type": "python", "function": "verify:score"})
    config = RunConfig.model_validate({"task": str(path), "model": "none", "run_dir": str(tmp_path / "run")})
    store = RunStore(tmp_path / "run")
    with locked(store.folder):
        assert not store.open(config, load_task(str(path)).text)
        assert store.open(config, load_task(str(path)).text)
        module(tmp_path, "def score(text, answer):\n    return text, True\n")
        with pytest.raises(StoreError, match="the task file changed since"):
            store.open(config, load_task(str(path)).text)


def test_a_task_says_which_function_it_runs(tmp_path: Path) -> None:
    own = load_task(str(write_task(module(tmp_path), answer={"type": "python", "function": "verify:score"})))
    assert own.notices == (f"note: this task runs the function verify:score of the file {tmp_path / 'verify.py'}",)
    answer = {"type": "python", "function": "mypkg.verify:score", "package": "mypkg"}
    installed = load_task(str(write_task(tmp_path, answer=answer)))
    assert installed.notices == ("note: this task runs the function mypkg.verify:score of the installed package mypkg",)
    assert load_task("gsm8k").notices == ()


def test_the_notice_comes_before_the_function_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "verify.py").write_text("raise RuntimeError('it ran')\n")
    path = write_task(tmp_path, answer={"type": "python", "function": "verify:score"})
    told = Listen()
    config = RunConfig.model_validate({"task": str(path), "model": str(tmp_path / "no-model"), "test_size": 2})
    with pytest.raises(Exception, match="no-model"):
        evaluate_model(config, told)
    assert [line for line in told.lines if "runs the function" in line] == [
        f"note: this task runs the function verify:score of the file {tmp_path / 'verify.py'}"
    ]


def test_a_function_beside_the_task_file_makes_a_sound_task(tmp_path: Path) -> None:
    source = "def score(text, answer):\n    said = text.split(': ')[-1]\n    return said, said == answer\n"
    path = write_task(module(tmp_path, source), answer={"type": "python", "function": "verify:score"}, examples=[])
    task = load_task(str(path))
    assert check_task(task, load_pool(task)).problems == []

"""Users' own functions: which of them a task file may name, and the notice before one runs."""

import textwrap
from pathlib import Path

import pytest

from conftest import Listen, write_task
from estep.config import RunConfig
from estep.data.check import check_task
from estep.data.split import load_pool
from estep.errors import DataError
from estep.inference import evaluate_model
from estep.tasks import load_task
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
        ("score = print\n", "not a function written in Python, but a builtin_function_or_method"),
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


@pytest.mark.parametrize(
    ("name", "package", "reason"),
    [
        ("os:popen", "os", "os belongs to Python's standard library"),
        ("subprocess:run", "subprocess", "belongs to Python's standard library"),
        ("os:popen", "yaml", "os is not in the package yaml"),
        ("yamlx:load", "yaml", "yamlx is not in the package yaml"),
        ("nothing_like_it:f", "nothing_like_it", "no package nothing_like_it is installed"),
        ("jinja2.utils:deque", "jinja2", "not a function written in Python, but a type"),
        # A function that a module has from elsewhere: `jinja2.utils` imports `quote` of urllib.parse.
        ("jinja2.utils:quote_from_bytes", "jinja2", r"defined in urllib\.parse, and not in the package jinja2"),
        ("yaml:no_such_function", "yaml", "AttributeError"),
    ],
)
def test_only_what_an_installed_package_defines_itself_can_be_asked_of_it(name: str, package: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_function(name, None, package)


def test_an_installed_packages_function_is_found() -> None:
    assert load_function("yaml:load", None, "yaml").__module__ == "yaml"
    assert load_function("jinja2.utils:htmlsafe_json_dumps", None, "jinja2").__module__ == "jinja2.utils"


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

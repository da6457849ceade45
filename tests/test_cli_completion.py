"""Completion in a shell: commands, and the names of tasks, models, configurations and demos."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from commands import SOURCE
from estep.shipped import config_names, task_names


def shell(command: str, home: Path, **variables: str) -> str:
    """What a command prints in bash, with `estep` on the path."""
    program = home / "bin/estep"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m estep.cli "$@"\n')
    program.chmod(0o755)
    path = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": SOURCE}
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=home, env=path | variables)
    assert result.returncode == 0, result.stderr
    return result.stdout


def completed(line: str, home: Path) -> list[str]:
    words = line.split(" ")
    variables = {"_ESTEP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return shell("estep", home, **variables).split()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("estep tr", ["train"]),
        ("estep check sentiment/m", ["sentiment/movies"]),
        ("estep train demo", ["demo", "demo-sums"]),
        ("estep demo ", ["movies", "sums"]),
        ("estep eval llama-3.1", ["llama-3.1-8b"]),
        ("estep eval smollm2-135m gs", ["gsm8k"]),
        ("estep check reviews.ya", []),
    ],
    ids=str,
)
def test_bash_is_offered_what_begins_as_typed(line: str, names: list[str], tmp_path: Path) -> None:
    assert completed(line, tmp_path) == names


def test_all_names_are_offered_before_anything_is_typed(tmp_path: Path) -> None:
    assert completed("estep check ", tmp_path) == task_names()
    assert completed("estep study ", tmp_path) == config_names()


def test_zsh_is_offered_a_command_with_what_it_does(tmp_path: Path) -> None:
    shown = shell("estep", tmp_path, _ESTEP_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="estep tr")
    assert '"train":"Train a model with filtered EM' in shown


def test_an_installed_completion_works_in_a_new_bash(tmp_path: Path) -> None:
    assert "completion installed in " in shell("estep --install-completion; true", tmp_path)
    ask = 'COMP_WORDS=(estep tr); COMP_CWORD=1; _estep_completion estep; echo "${COMPREPLY[@]}"'
    assert shell(f". ~/.bashrc; complete -p estep; {ask}", tmp_path).splitlines() == [
        "complete -o default -F _estep_completion estep",
        "train",
    ]


def test_completion_of_names_waits_for_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, estep.cli\n"
        "try:\n"
        "    estep.cli.main()\n"
        "finally:\n"
        "    print(*{'jinja2', 'yaml', 'torch', 'transformers'} & sys.modules.keys(), file=sys.stderr)"
    )
    variables = {"_ESTEP_COMPLETE": "complete_bash", "COMP_WORDS": "estep check gs", "COMP_CWORD": "2"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": SOURCE} | variables
    )
    assert (result.stdout.strip(), result.stderr.strip()) == ("gsm8k", "")

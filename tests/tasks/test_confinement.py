"""No text of a model runs as code: which verifiers may judge, and what the process that judges can do."""

import json
import platform
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from estep.errors import ConfigError
from estep.records import Question
from estep.tasks import Task, judge_process, load_task, parse_task, puzzle_sets
from estep.tasks.answers import GeneratorAnswer
from estep.tasks.expressions import equal, readable
from estep.tasks.judge_process import ask
from estep.tasks.puzzle_sets import allowed_sets, require_safe
from estep.tasks.reasoning_gym import full_score, generated_rows

needs_gym = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="estep[gym] needs a C compiler")
needs_filter = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="a filter of Linux"
)

SERVER = """
import _posixsubprocess, ast, ctypes, importlib, os, resource, socket, subprocess, sys, types
from estep.tasks import confinement, judge_process, puzzle_sets

_, layer, mark, address = sys.argv
if layer in ("hook", "none"):
    confinement.filtered = lambda: False
if layer in ("filter", "none"):
    sys.addaudithook = lambda hook: None
if layer != "all":
    resource.setrlimit = lambda kind, limits: None

def system():
    assert os.system(f"touch {mark}") == 0

def fork():
    if os.fork() == 0:
        os._exit(0)

def execute():
    if layer == "none":
        return  # it would end the process
    os.execv("/bin/true", ["true"])

def connect():
    with socket.create_connection(("127.0.0.1", int(address)), timeout=5):
        pass

def opened(mode):
    def opening():
        with open(mark if mode != "r" else __file__, mode):
            pass
    return opening

TREE = ast.parse("len('a')", mode="eval")

ACTIONS = {
    "os.system": system,
    "subprocess": lambda: subprocess.run(["true"], check=True),
    "fork": fork,
    "exec": execute,
    "spawn": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    "write": opened("w"),
    "append": opened("a"),
    "low-level write": lambda: os.close(os.open(mark, os.O_WRONLY | os.O_CREAT)),
    "mkdir": lambda: os.mkdir(mark + "-folder"),
    "rename": lambda: os.rename(mark + "-there", mark),
    "remove": lambda: os.remove(mark + "-too"),
    "connect": connect,
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "import ctypes": lambda: importlib.import_module("ctypes"),
    "call with ctypes": lambda: ctypes.CDLL(None).getpid(),
    "import of a socket": lambda: importlib.import_module("socket"),
    "eval": lambda: eval("len('a')"),
    "exec of a text": lambda: exec("x = [i for i in range(3)]"),
    "eval of code under a file's name": lambda: eval(compile("len('a')", "x.py", "eval")),
    "code called as a function": lambda: types.FunctionType(compile("len('a')", "<string>", "eval"), globals())(),
    "compile": lambda: compile(b"().__class__", "<frozen importlib._bootstrap>", "eval"),
    "compile a tree": lambda: compile(TREE, "x.py", "eval"),
    "read": opened("r"),
    "import": lambda: importlib.import_module("sched"),
    "number": lambda: eval("1 + 1"),
}

class Verifier:
    def score_answer(self, stated, entry):
        ACTIONS[stated]()
        return 1.0

puzzle_sets.known_sets = lambda: ()
puzzle_sets.verifier = lambda name: Verifier()
judge_process._serve("puzzles")
"""

REFUSED = (
    *("os.system", "subprocess", "fork", "exec", "spawn", "write", "append", "low-level write", "mkdir", "rename"),
    *("remove", "connect", "signal the parent"),
)
REFUSED_BY_THE_HOOK = (
    *(*REFUSED, "import ctypes", "call with ctypes", "import of a socket", "eval", "exec of a text"),
    *("eval of code under a file's name", "code called as a function", "compile", "compile a tree"),
)
ALLOWED = ("read", "import", "number")


def done(layer: str, folder: Path) -> dict[str, bool]:
    """What a process that judges puzzles has done of what it was asked to, with one layer of confinement or all."""
    for name in ("mark-there", "mark-too"):
        (folder / name).write_text("before")
    script = folder / "server.py"
    script.write_text(SERVER)
    actions = (*REFUSED_BY_THE_HOOK, *ALLOWED)
    questions = "".join(json.dumps(["score", "any", action, {}]) + "\n" for action in actions)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, str(script), layer, str(folder / "mark"), str(listening.getsockname()[1])]
        ended = subprocess.run(command, input=questions, capture_output=True, text=True, timeout=60, check=False)
    ready, *answers = ended.stdout.splitlines()
    if layer in ("hook", "none"):
        assert ready == "ready, not confined by the kernel", ended.stderr
    else:  # which it is depends on the system
        assert ready.startswith("ready"), ended.stderr
    assert len(answers) == len(actions), ended.stderr
    return {action: answer == "yes" for action, answer in zip(actions, answers, strict=True)}


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        ("all", REFUSED_BY_THE_HOOK),
        ("hook", REFUSED_BY_THE_HOOK),
        pytest.param("filter", REFUSED, marks=needs_filter),
    ],
)
def test_a_judge_computes_and_does_nothing_else(tmp_path: Path, layer: str, refused: tuple[str, ...]) -> None:
    found = done(layer, tmp_path)
    assert [action for action in refused if found[action]] == []
    assert [action for action in ALLOWED if not found[action]] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mark-there", "mark-too", "server.py"]


def test_what_a_judge_is_refused_would_work_without(tmp_path: Path) -> None:
    found = done("none", tmp_path)
    assert [action for action, worked in found.items() if not worked] == []


def test_expressions_are_compared_in_a_confined_process() -> None:
    # One for each way of math-verify's: numbers, polynomials, sets, intervals, matrices, relations, roots.
    assert readable("x+1")
    pairs = [
        ("12", "12.0"),
        ("1/2", r"\frac{2}{4}"),
        ("(x-3)(x+3)", "x^2-9"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("[1,2)", r"\left[1,2\right)"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("x>5", "5<x"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\frac{x^2-y^2}{x-y}", "x+y"),
    ]
    assert [pair for pair in pairs if not equal(*pair)] == []


def hostile(mark: Path) -> list[str]:
    """Answers that make a file where they are run, in the forms that a verifier may read."""
    run = f"__import__('os').system('touch {mark}')"
    double = run.replace("'", '"')
    return [
        *(run, f"({run})", f"[{run}]", f"[[{run}]]", f"({run},)", f"{{'a': {run}}}", f"{{{run}}}", f"{run},{run}"),
        *(json.dumps([run]), json.dumps([[run]]), json.dumps({"a": run}), json.dumps({"1": [run]}), f"[{double}]"),
        *(f"1+{run}", f"{run}/2", f"2/{run}", f"2**{run}", f"x**2+{run}+C", f"{run}i", f"A={run}", f"A={run},B=1"),
        *(f"[{run} for _ in [0]]", f"(lambda: {run})()", f'f"{{{run}}}"', f"exec({run!r})", f"eval({run!r})"),
        *(f"sympify({run!r})", f"Symbol('x') or {run}", f"().__class__.__base__.__subclasses__() and {run}"),
        *(f"open('{mark}', 'w')", f"[open('{mark}', 'w')]", f"!!python/object/apply:os.system ['touch {mark}']"),
        *(f"cos\nsystem\n(S'touch {mark}'\ntR.", f"$(touch {mark})", f"`touch {mark}`", f"; touch {mark}"),
        *(f"{{{{ {run} }}}}", f"NextDraw disk {run} from Peg 1 to Peg 2", f"F+{run}", f"R {run}", f"P ∧ {run}"),
        *(str(mark), f"file://{mark}", f"\\input{{{run}}}", f"x_{{{run}}}", f"\\operatorname{{{run}}}(1)"),
    ]


@needs_gym
@pytest.mark.slow
def test_no_allowed_verifier_runs_an_answer_or_calls_it_right(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in filter(puzzle_sets.has_verifier, allowed_sets()):
        for row in generated_rows(name, 2, 1, {}):
            assert ask("score", name, row["answer"], row), name
            for answer in hostile(mark):
                assert not ask("score", name, answer, row), (name, answer)
                assert not mark.exists(), (name, answer)


SEVERAL = {"jugs", "knight_swap", "shortest_path", "word_ladder"}
"""Data sets whose puzzles have several right answers, so that the answer to another puzzle can be right as well."""


def altered(answer: str) -> list[str]:
    """Wrong answers made of a right one, and answers that are right to hardly anything."""
    return [
        *("nan", "inf", "-inf", "", "None", "[]", "{}", f"-{answer}", f"not {answer}", f"no, {answer}"),
        *(f"{answer} or 7", f"7 or {answer}", f"{answer} nan", f"{answer}0", f"0{answer}", f"{answer} {answer}"),
        *(f"{answer}, {answer}", answer[:1], answer[: len(answer) // 2], answer[:-1], answer[1:]),
    ]


@needs_gym
@pytest.mark.slow
def test_no_allowed_data_set_calls_an_altered_answer_right() -> None:
    for name in allowed_sets():
        spec = GeneratorAnswer(type="reasoning_gym", dataset=name)
        rows = generated_rows(name, 3, 1, {})
        golds = [str(spec.canonical(row["answer"])) for row in rows]
        for row, gold in zip(rows, golds, strict=True):
            tried = {*altered(gold), *(golds if name not in SEVERAL else ()), "0"}
            stated = {spec.canonical(text) for text in tried} - {None, gold}
            assert spec.agree(gold, gold, row), name
            assert [text for text in stated if text and spec.agree(text, gold, row)] == [], (name, gold)


@needs_gym
@pytest.mark.parametrize(
    ("dataset", "form"),
    [
        ("gsm_symbolic", "-{}"),
        ("gsm_symbolic", "not {}"),
        ("gsm_symbolic", "{} or 7"),
        ("fraction_simplification", r"{} or $\frac{1}{2}$"),
        ("fraction_simplification", "{}0"),
        ("knights_knaves", "not {}"),
        ("advanced_geometry", "{}0"),
        ("time_intervals", "-{}"),
        ("word_sorting", "{}, {}"),
    ],
)
def test_an_answer_that_its_verifier_would_call_right_is_wrong(dataset: str, form: str) -> None:
    task = puzzle(dataset)
    for row in generated_rows(dataset, 4, 1, {}):
        question = task.question(row, row["answer"])
        assert task.judge(question, f"Answer: {row['answer']}").status == "correct"
        assert task.judge(question, f"Answer: {form.replace('{}', row['answer'])}").status == "wrong"


def test_a_verifier_that_calls_wrong_answers_right_is_not_used() -> None:
    with pytest.raises(ConfigError, match="gsm_symbolic: its verifier gives the full score to wrong answers"):
        puzzle_sets.verifier("gsm_symbolic")


def test_math_verify_runs_no_expression(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for answer in hostile(mark):
        ask("readable", answer)
        assert not ask("equal", "2", answer), answer
        assert not mark.exists(), answer


@needs_filter
def test_a_judge_that_the_kernel_confines_says_so() -> None:
    command = [sys.executable, "-m", "estep.tasks.judge_process", "expressions"]
    assert subprocess.run(command, input="", capture_output=True, text=True, check=True).stdout == "ready\n"


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have this code judge expressions in the next test process."""
    judge_process._stop("expressions")
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kept: popen([sys.executable, "-c", code], **kept))


def test_a_judge_that_the_kernel_does_not_confine_is_noted_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judge_process._note_unenforced.cache_clear()
    stand_in(monkeypatch, "print('ready, not confined by the kernel', flush=True); input(); print('yes', flush=True)")
    try:
        assert ask("readable", "1")
        judge_process._stop("expressions")
        assert ask("readable", "1")
    finally:
        judge_process._stop("expressions")
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "note: this system's kernel does not confine the processes that judge answers"
    ]


def test_a_judge_that_waits_is_ended_and_its_answer_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "print('ready', flush=True); input(); input(); print('yes', flush=True)")
    monkeypatch.setattr(judge_process, "_WAIT", 0.2)
    assert not ask("readable", "1")
    assert "expressions" not in judge_process._running


def test_the_time_that_the_system_works_for_a_judge_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading a device of zeros takes hardly any time of the process itself.
    code = """
from estep.tasks import judge_process
def read(expression):
    with open("/dev/zero", "rb", buffering=0) as zeros:
        space = bytearray(1 << 24)
        while True:
            zeros.readinto(space)
judge_process.SECONDS = 0.2
judge_process._expressions = lambda: {"readable": read}
judge_process._serve("expressions")
"""
    stand_in(monkeypatch, code)
    ended: list[int] = []
    stop = judge_process._stop
    monkeypatch.setattr(
        judge_process, "_stop", lambda subject: (ended.append(judge_process._running[subject].wait()), stop(subject))
    )
    assert not ask("readable", "1")
    assert ended == [-signal.SIGPROF]


# Which data sets may judge


def puzzle(dataset: str) -> Task:
    """A task that a data set judges, parsed and not loaded."""
    content = {
        "name": "own",
        "data": {"source": "rows.jsonl"},
        "gold": {"field": "answer"},
        "answer": {"type": "reasoning_gym", "dataset": dataset},
        "user": "{{ question }}{{ hint }}",
        "hint": {"variants": {"bare": "{{ answer }}"}, "default": "bare"},
    }
    return Task(parse_task(json.dumps(content), "own.yaml"))


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ("n_queens", "its verifier evaluates the answer as Python; allowed are ab, acre, "),
        ("countdown", "its verifier evaluates the answer as Python"),
        ("simple_integration", "its verifier evaluates the answer as Python"),
        ("bitwise_arithmetic", "its verifier evaluates a field of the row as Python"),
        ("complex_arithmetic", "its verifier gives the full score to wrong answers, and its right answers have"),
        ("sokoban", "its verifier gives the full score to wrong answers, and its right answers have several forms"),
        ("game_of_life_halting", "its verifier gives the full score to wrong answers"),
        ("made_by_a_later_version", "its verifier is not known"),
    ],
)
def test_a_data_set_that_may_not_judge_is_refused_wherever_it_would(tmp_path: Path, dataset: str, reason: str) -> None:
    message = f"answer.dataset: {dataset} may not judge answers: {reason}"
    (tmp_path / "own.yaml").write_text(
        f"extends: gym/leg_counting\nname: own\nexamples: []\n"
        f"data: {{generator: {{name: {dataset}}}}}\nanswer: {{dataset: {dataset}}}\n"
    )
    with pytest.raises(ConfigError, match=message):
        load_task(str(tmp_path / "own.yaml"))
    with pytest.raises(ConfigError, match=message):
        puzzle(dataset).judge(Question("q", {"question": "?", "metadata": {}}, "1"), "Answer: 2")
    with pytest.raises(ConfigError, match=message):
        full_score(dataset, "1", {"answer": "1"})
    with pytest.raises(ConfigError, match=message):
        puzzle_sets.verifier(dataset)


def test_verifiers_of_another_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.26")
    unseen = require_safe.__wrapped__  # what is found once is kept
    with pytest.raises(ConfigError, match=r"0\.1\.26 is installed: pip install 'reasoning-gym==0\.1\.25'"):
        unseen("chain_sum")


@needs_gym
def test_every_data_set_has_been_looked_at() -> None:
    refused = [name for names in puzzle_sets._listed()["refused"].values() for name in names]
    assert sorted([*allowed_sets(), *refused]) == sorted(puzzle_sets.known_sets())

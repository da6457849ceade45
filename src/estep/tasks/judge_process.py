"""Judging that must not stop a run: math-verify, and the verifiers of reasoning-gym.

The texts come from a model that is trained. Some cannot be computed in any time (`5^{5^{5^5}}`), and a verifier may do
more with a text than it should. So they work in processes of their own, one for expressions and one for puzzles, with
limited memory. The system ends a process when one question has cost it too much processor time, and `ask` ends one that
does not answer, as it may be waiting for something; the answer is then no. A question at the very limit may be judged
differently on another machine. The processes may read files and compute, and little else: see `confinement`.
"""

import atexit
import contextlib
import functools
import json
import logging
import resource
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any, Literal

from estep.errors import EstepError
from estep.tasks.confinement import confine

SECONDS = 5.0
"""Of processor time a question may cost, the system's work for it included."""
_WAIT = 60.0
"""Seconds until a process that does not answer is ended. Far more than `SECONDS`, so that a busy machine changes no
answer."""
_MEMORY = 4 << 30
"""Bytes that the process may map."""

# What a process says first: whether the kernel enforces its confinement.
_READY, _READY_UNENFORCED = "ready\n", "ready, not confined by the kernel\n"

Kind = Literal["readable", "equal", "score"]
_Subject = Literal["expressions", "puzzles"]

_lock = threading.Lock()
_running: dict[_Subject, "subprocess.Popen[str]"] = {}


def ask(kind: Kind, *arguments: Any) -> bool:
    """Ask one question.

    Args:
        kind: `readable` (expression), `equal` (gold, stated) or `score` (data set, stated answer, row).
        arguments: what JSON can hold.

    Returns:
        The answer; False for a question that ends the process.

    Raises:
        EstepError: the process cannot be started, or is killed from outside, twice.
    """
    subject: _Subject = "puzzles" if kind == "score" else "expressions"
    with _lock:
        for _ in range(2):
            try:
                process = _process(subject)
                answer = _exchange(process, json.dumps([kind, *arguments]))
            except TimeoutError:
                _stop(subject)
                return False
            except BaseException:  # an interrupt would leave an answer behind for the next question
                _stop(subject)
                raise
            if answer:
                return answer == "yes\n"
            ended = process.wait()
            _stop(subject)
            if ended == -signal.SIGPROF:
                return False
        if ended == -signal.SIGKILL:
            raise EstepError("the process that judges answers was killed twice; is there memory left?")
        return False


def _exchange(process: "subprocess.Popen[str]", question: str) -> str:
    """The line that answers a question; empty where the process has ended.

    Raises:
        TimeoutError: it does not answer.
    """
    stdin, stdout = _pipe(process.stdin), _pipe(process.stdout)
    try:
        stdin.write(question + "\n")
        stdin.flush()
        with selectors.DefaultSelector() as answered:
            answered.register(stdout, selectors.EVENT_READ)
            if not answered.select(_WAIT):
                raise TimeoutError
        return str(stdout.readline())
    except BrokenPipeError:
        return ""


def _pipe(stream: IO[str] | None) -> Any:
    assert stream is not None
    return stream


def _process(subject: _Subject) -> "subprocess.Popen[str]":
    if subject not in _running:
        command = [sys.executable, "-m", "estep.tasks.judge_process", subject]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        _running[subject] = process
        started = _pipe(process.stdout).readline()
        if started not in (_READY, _READY_UNENFORCED):
            raise EstepError(
                f"the process that judges answers does not start; `python -m {' '.join(command[2:])}` shows why"
            )
        if started == _READY_UNENFORCED:
            _note_unenforced()
    return _running[subject]


@functools.cache  # once
def _note_unenforced() -> None:
    logging.getLogger(__name__).warning(
        "note: this system's kernel does not confine the processes that judge answers; only Python's audit hook and "
        "resource limits do"
    )


def _stop(*subjects: _Subject) -> None:
    """End the processes for some subjects; without any, all."""
    for subject in subjects or tuple(_running):
        process = _running.pop(subject, None)
        if process is None:
            continue
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            _pipe(stream).close()


atexit.register(_stop)


def _expressions() -> Mapping[str, Callable[..., bool]]:
    """What is asked of mathematical expressions."""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(expression: str) -> list[Any]:
        # As LaTeX alone: as a plain expression, math-verify would have sympy evaluate the text.
        found = parse(f"${expression}$", [LatexExtractionConfig()], parsing_timeout=None)
        return [] if not found or isinstance(found[0], str) else found

    def equal(gold: str, stated: str) -> bool:
        expressions = read(gold), read(stated)
        return all(expressions) and bool(verify(*expressions, timeout_seconds=None))

    equal("\\frac{1}{2}", "x+1")  # imports what is imported at the first use
    return {"readable": lambda expression: bool(read(expression)), "equal": equal}


def _puzzles() -> Mapping[str, Callable[..., bool]]:
    """What is asked of puzzles. The verifiers that may be used need nothing to be imported later."""
    from estep.tasks.puzzle_sets import known_sets, verifier

    known_sets()

    def score(name: str, stated: str, row: dict[str, Any]) -> bool:
        return bool(verifier(name).score_answer(stated, entry=row) == 1.0)

    return {"score": score}


def _limit_memory() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    most = _MEMORY if most == resource.RLIM_INFINITY else min(_MEMORY, most)
    with contextlib.suppress(ValueError, OSError):  # macOS knows this limit and may not set it
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve(subject: str) -> None:
    """Answer questions from standard input, each a line of JSON: what `ask` was given."""
    logging.disable()
    _limit_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the system ends the process, whatever it is at
    answers = _puzzles() if subject == "puzzles" else _expressions()
    answers_to = sys.stdout
    sys.stdout = sys.stderr  # what a verifier prints is no answer
    ready = _READY if confine() else _READY_UNENFORCED
    print(ready, end="", file=answers_to, flush=True)
    for line in sys.stdin:
        kind, *arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            yes = answers[kind](*arguments)
        except Exception:  # of whatever kind: what cannot be judged is not right
            yes = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("yes" if yes else "no", file=answers_to, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])

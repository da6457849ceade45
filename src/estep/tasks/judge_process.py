"""Judging that must not stop a run: math-verify, and the verifiers of reasoning-gym.

The texts come from a model that is trained. Some cannot be computed in any time (`5^{5^{5^5}}`), and some verifiers
evaluate what they are given. So they work in a process of their own, with limited memory, which the system ends when
one question has cost it too much processor time; such a question is answered with no. A question at the very limit may
be answered otherwise on another machine. The process is no sandbox: it may do what the user may do.
"""

import atexit
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from estep.errors import EstepError

SECONDS = 5.0
"""Of processor time a question may cost."""
_MEMORY = 4 << 30
"""Bytes that the process may map."""

_lock = threading.Lock()
_running: list["subprocess.Popen[str]"] = []


def ask(kind: str, *arguments: Any) -> bool:
    """Ask one question.

    Args:
        kind: `readable` (expression), `equal` (gold, stated) or `score` (data set, stated answer, row).
        arguments: what JSON can hold.

    Returns:
        The answer; False for a question that ends the process.

    Raises:
        EstepError: the process cannot be started, or is killed from outside, twice.
    """
    with _lock:
        for _ in range(2):
            try:
                process = _process()
                answer = _exchange(process, json.dumps([kind, *arguments]))
            except BaseException:  # an interrupt would leave an answer behind for the next question
                _stop()
                raise
            if answer:
                return answer == "yes\n"
            ended = process.wait()
            _stop()
            if ended == -signal.SIGVTALRM:
                return False
        if ended == -signal.SIGKILL:
            raise EstepError("the process that judges answers was killed twice; is there memory left?")
        return False


def _exchange(process: "subprocess.Popen[str]", question: str) -> str:
    """The line that answers a question; empty where the process has ended."""
    stdin, stdout = _pipe(process.stdin), _pipe(process.stdout)
    try:
        stdin.write(question + "\n")
        stdin.flush()
        return str(stdout.readline())
    except BrokenPipeError:
        return ""


def _pipe(stream: IO[str] | None) -> Any:
    assert stream is not None
    return stream


def _process() -> "subprocess.Popen[str]":
    if not _running:
        command = [sys.executable, "-m", "estep.tasks.judge_process"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        _running.append(process)
        if _pipe(process.stdout).readline() != "ready\n":
            raise EstepError(
                "the process that judges answers does not start; `python -m estep.tasks.judge_process` shows why"
            )
    return _running[0]


def _stop() -> None:
    for process in _running:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            _pipe(stream).close()
    _running.clear()


atexit.register(_stop)


def _serve() -> None:
    """Answer questions from standard input, each a line of JSON: what `ask` was given."""
    import logging
    import resource

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    most = _MEMORY if most == resource.RLIM_INFINITY else min(_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # the system ends the process, whatever it is at

    def read(expression: str) -> list[Any]:
        found = parse(f"${expression}$", [LatexExtractionConfig()], parsing_timeout=None)
        return [] if not found or isinstance(found[0], str) else found

    def equal(gold: str, stated: str) -> bool:
        expressions = read(gold), read(stated)
        return all(expressions) and bool(verify(*expressions, timeout_seconds=None))

    def score(name: str, stated: str, row: dict[str, Any]) -> bool:
        from estep.tasks.puzzle_sets import verifier

        return bool(verifier(name).score_answer(stated, entry=row) == 1.0)

    answers: dict[str, Callable[..., bool]] = {
        "readable": lambda expression: bool(read(expression)),
        "equal": equal,
        "score": score,
    }
    answers_to = sys.stdout
    sys.stdout = sys.stderr  # what a verifier prints is no answer
    print("ready", file=answers_to, flush=True)
    for line in sys.stdin:
        kind, *arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            yes = answers[kind](*arguments)
        except Exception:  # of whatever kind: what cannot be judged is not right
            yes = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print("yes" if yes else "no", file=answers_to, flush=True)


if __name__ == "__main__":
    _serve()

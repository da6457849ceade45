"""Mathematical expressions, read and compared by math-verify.

The texts come from a model that is trained, and some cannot be computed in any time (`5^{5^{5^5}}`). So math-verify
works in a process of its own, which the system ends when one question has cost it too much processor time. Such a
question is answered with no.
"""

import atexit
import functools
import json
import subprocess
import sys
import threading
from typing import IO, Any

SECONDS = 5.0
"""Of processor time a question may cost."""
_LONGEST = 500
"""Characters of an expression; what is longer is none."""


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` of a text, or None.

    >>> last_boxed(r"so \boxed{1} and \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start)
    depth = 0
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 1 : place]
    return None


@functools.lru_cache(maxsize=65536)
def readable(expression: str) -> bool:
    """Whether math-verify reads an expression."""
    return _ask(expression)


@functools.lru_cache(maxsize=65536)
def equal(gold: str, stated: str) -> bool:
    """Whether a stated expression equals the correct one.

    >>> equal("1/2", r"\\frac{2}{4}"), equal("x+1", "1+x"), equal("2", "3")
    (True, True, False)
    """
    return _ask(gold, stated)


_lock = threading.Lock()
_running: list[subprocess.Popen[str]] = []


def _ask(*expressions: str) -> bool:
    if any(len(expression) > _LONGEST for expression in expressions):
        return False
    with _lock:
        answer = _exchange(_process(), json.dumps(expressions))
        if not answer:  # it was ended
            _stop()
    return answer == "yes\n"


def _exchange(process: "subprocess.Popen[str]", question: str) -> str:
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
        process = subprocess.Popen(
            [sys.executable, "-m", "estep.tasks.expressions"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if _pipe(process.stdout).readline() != "ready\n":
            process.kill()
            raise RuntimeError("math-verify could not be started: run `python -m estep.tasks.expressions` to see why")
        _running.append(process)
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
    """Answer questions from standard input, each a line of JSON: one expression, or two to compare."""
    import logging
    import resource
    import signal

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # the system ends the process, whatever it is at

    def read(expression: str) -> list[Any]:
        found = parse(f"${expression}$", [LatexExtractionConfig()], parsing_timeout=None)
        return [] if not found or isinstance(found[0], str) else found

    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            read_ones = [read(expression) for expression in json.loads(line)]
            yes = all(read_ones) and (len(read_ones) == 1 or verify(*read_ones, timeout_seconds=None))
        except Exception:  # of whatever kind: what cannot be compared is not equal
            yes = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print("yes" if yes else "no", flush=True)


if __name__ == "__main__":
    _serve()

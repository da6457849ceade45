"""What a process that judges a model's texts gives up before it sees the first of them, for good.

It starts no process, writes no file, opens no connection, and evaluates no text as Python. Three layers see to that:

- An audit hook of Python (PEP 578) refuses. It cannot be removed, but it is a net and no jail: native code does not
  pass it.
- Resource limits: no new process (the system exempts root from this one), no byte written to a file.
- On Linux, a filter that the kernel applies to system calls (`system_calls`), whatever makes them.

The process may still read what the user may read. So the verifiers that evaluate text are not used at all
(`puzzle_sets`); this is for the case that one was overlooked.
"""

import contextlib
import os
import re
import resource
import sys
from types import CodeType
from typing import Any

from estep.tasks.system_calls import filtered

_READING = frozenset({"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr"})
_REFUSED = (
    *("os.", "subprocess.", "pty.", "shutil.", "tempfile.", "socket.", "ctypes.", "sqlite3.", "pickle.", "urllib."),
    *("http.", "ftplib.", "smtplib.", "imaplib.", "poplib.", "nntplib.", "telnetlib.", "webbrowser.", "syslog."),
    *("code.__new__", "fcntl.", "mmap.", "winreg.", "_winapi.", "msvcrt.", "cpython.run_"),
)
"""Beginnings of the names of events."""
_MODULES = frozenset({"ctypes", "_ctypes", "cffi", "_cffi_backend", "_posixsubprocess", "_socket", "socket"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_GENERATING = ("collections", "dataclasses", "sympy.polys.monomials")
"""Modules that run text of their own making: of classes, as an import may need it, and of loops over exponents."""

_NUMBERS = frozenset({"Integer", "Float", "from", "import", "sympy"})
"""The only words in what sympy evaluates for math-verify, to read the digits of a number: `Integer (12 )`, after
`from sympy import *`."""
_WORD = re.compile(r"(?<!\w)[^\W\d]\w*")
_IMPORTING = "<frozen importlib."
"""How the names of the files begin that import modules."""


def confine() -> bool:
    """Give it all up. Whatever is needed must be imported before.

    Returns:
        Whether the kernel enforces it; without that, there are only the hook and the limits.
    """
    sys.dont_write_bytecode = True
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        with contextlib.suppress(ValueError, OSError):  # not every system has every limit
            resource.setrlimit(kind, (0, 0))
    enforced = filtered()
    for name in _MODULES:
        sys.modules.pop(name, None)  # so that another import of it is an event
    files = (sys.modules[name].__file__ for name in _GENERATING if name in sys.modules)
    _generating.update(file for file in files if file is not None)
    sys.addaudithook(_refuse)
    return enforced


_generating: set[str] = set()


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "compile":
        refused = _is_text(arguments[0])
    elif event == "exec":
        refused = _is_text_code(arguments[0])
    elif event == "open":
        refused = _writes(*arguments)
    elif event == "import":
        refused = arguments[0].partition(".")[0] in _MODULES
    else:
        refused = event.startswith(_REFUSED) and event not in _READING
    if refused:
        raise PermissionError(f"a process that judges answers does not {event}")


def _is_text(source: object) -> bool:
    """Whether what is compiled is more than a number, and not a file that is imported."""
    caller = sys._getframe(2).f_code.co_filename
    if caller.startswith(_IMPORTING) or caller in _generating:
        return False
    if isinstance(source, bytes):
        source = source.decode(errors="replace")
    return not isinstance(source, str) or not _NUMBERS.issuperset(_WORD.findall(source))


def _is_text_code(code: CodeType) -> bool:
    """Whether code that is run comes from a text that is more than a number, and not from a file that is imported."""
    if not code.co_filename.startswith("<") or code.co_filename.startswith("<frozen "):
        return False
    if _NUMBERS.issuperset(code.co_names) and not any(isinstance(part, CodeType) for part in code.co_consts):
        return False
    return sys._getframe(2).f_code.co_filename not in _generating


def _writes(path: object, mode: str | None, flags: int) -> bool:
    return bool(flags & _WRITING) or bool(set(mode or "r") & set("wax+"))

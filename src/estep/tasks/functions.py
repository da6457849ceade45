"""The function of a user's own that judges answers: from a file beside the task file, or from an installed package.

A task file may come from a stranger, so it cannot name any function of any module: not `os:popen`. A file beside it
came with it and can be read there. An installed package may hold functions that run the text they are given, such as
`sympy:simplify`, so the user must allow it outside the task file, in `ESTEP_ALLOW_PACKAGES`; what estep itself depends
on is never allowed. Either is announced before it is used.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType

Verifier = Callable[[str, str], tuple[str | None, bool]]
ALLOW = "ESTEP_ALLOW_PACKAGES"
"""The environment variable with the installed packages, separated by commas, that may judge answers."""
_FORM = "a function takes (text, answer) and returns (stated, correct)"


def load_function(name: str, folder: Path | None, package: str | None) -> Verifier:
    """A function by its name.

    Args:
        name: `module:function`, or `folder.module:function`.
        folder: where the task file lies, and so the module's file; None for a task without a file.
        package: the installed package that holds the module; None for a file.

    Raises:
        ValueError: there is none, it is no function written in Python in that file or package, or the package is not
            allowed.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = _beside(_file(module_name, folder)) if package is None else _installed(module_name, package)
        function = getattr(module, attribute)
    except Exception as error:  # whatever an import may raise
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"cannot load the function {name}: {reason}") from error
    if not inspect.isfunction(function):
        raise ValueError(f"{name} is not a function written in Python, but a {type(function).__name__}; {_FORM}")
    if package is not None and not _inside(function.__module__, package):
        raise ValueError(f"{name} is defined in {function.__module__}, and not in the package {package}")
    try:
        inspect.signature(function).bind("text", "answer")
    except TypeError as error:
        raise ValueError(f"{name}{inspect.signature(function)}: {error}; {_FORM}") from error
    verifier: Verifier = function
    return verifier


def notice(name: str, folder: Path | None, package: str | None) -> str:
    """What to tell before a function is used."""
    if package is not None:
        return f"note: this task runs the function {name} of the installed package {package}"
    file = (folder or Path()).joinpath(*name.partition(":")[0].split("."))
    return f"note: this task runs the function {name} of the file {file.with_name(file.name + '.py')}"


def fingerprint(name: str, folder: Path | None) -> str:
    """The name and the sha256 of the file that holds a function, so that a change of the file is noticed."""
    try:
        path = _file(name.partition(":")[0], folder)
        return f"{path.name}: sha256 {sha256(path.read_bytes()).hexdigest()}"
    except (ValueError, OSError):  # loading the function says why
        return f"{name}: not found"


def _inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _file(module: str, folder: Path | None) -> Path:
    """The file of a module in a folder.

    Raises:
        ValueError: there is none, or it leads out of the folder.
    """
    if folder is None:
        raise ValueError("the task has no file, so no module lies beside it")
    root = folder.resolve()
    *folders, last = module.split(".")
    path = root.joinpath(*folders, f"{last}.py")
    if not path.is_file():
        raise ValueError(f"there is no {path}; for a function of an installed package, answer.package names it")
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"{path} leads out of the task's folder, to {path.resolve()}")
    return path.resolve()


@functools.cache
def _beside(path: Path) -> ModuleType:
    """A file as a module that no other import can find or be mistaken for."""
    name = f"_estep_task_{sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _installed(module: str, package: str) -> ModuleType:
    top = package.partition(".")[0]
    if top in sys.stdlib_module_names:
        raise ValueError(f"{package} belongs to Python's standard library; answer.package names an installed package")
    distributions = importlib.metadata.packages_distributions().get(top, [])
    if own := sorted(_dependencies() & {_normal(name) for name in (top, *distributions)}):
        raise ValueError(f"{package} belongs to {own[0]}, which estep itself uses; its functions may not judge answers")
    if not distributions:
        raise ValueError(f"no package {package} is installed")
    if not _inside(module, package):
        raise ValueError(f"{module} is not in the package {package}")
    allowed = {name.strip() for name in os.environ.get(ALLOW, "").split(",")}
    if not any(name and _inside(package, name) for name in allowed):
        raise ValueError(
            f"the package {package} is not allowed to judge answers; if you trust it, set {ALLOW}={package}"
        )
    return importlib.import_module(module)


@functools.cache
def _dependencies() -> frozenset[str]:
    """The distributions that estep depends on, with all its extras, directly or through others; and estep itself."""
    found: set[str] = set()
    left = ["estep"]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of an extra or of another system
            continue
        for requirement in requirements:
            wanted, _, marker = requirement.partition(";")
            if name == "estep" or not re.search(r"\bextra\b", marker):
                left.append(_normal(re.split(r"[^\w.-]", wanted.strip(), maxsplit=1)[0]))
    return frozenset(found)


def _normal(distribution: str) -> str:
    """The name of a distribution as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()

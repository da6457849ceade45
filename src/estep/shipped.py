"""The files that the package ships, by name. Imports nothing heavy: a shell that completes the names waits for it."""

from pathlib import Path

CATALOG = Path(__file__).parent / "tasks" / "catalog"
"""The folder of the built-in tasks."""
CONFIGS = Path(__file__).parent / "configs"
"""The folder of the shipped configurations."""


def task_names() -> list[str]:
    """The names of the built-in tasks. Files whose names begin with `_` only serve to be extended."""
    return _names(CATALOG)


def config_names() -> list[str]:
    """The names of the shipped configurations of runs and studies, without those that only serve to be extended."""
    return _names(CONFIGS)


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*.yaml") if not path.name.startswith("_"))
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)

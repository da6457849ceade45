"""The errors that estep raises on purpose.

All of them derive from `EstepError`: the command line prints its message on one line and exits with code 2. Any other
exception that escapes is a bug and shows its traceback.
"""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class EstepError(Exception):
    """An error that the user can fix: the message names what was received and what is allowed."""


class ConfigError(EstepError):
    """A configuration with an unknown key, an unknown name or a value outside its range."""


class DataError(EstepError):
    """Rows, task files or models that cannot be used; the message names the file and, for a row, its line."""


class SourceError(EstepError):
    """A model or data set that could not be fetched, or whose checksum is wrong."""


class StoreError(EstepError):
    """A run folder that belongs to another configuration, or a file that cannot be written."""


class EngineError(EstepError):
    """An engine that cannot be started, or a server that does not answer."""


class StaleWeightsError(EstepError):
    """The engine does not use the weights that it loaded last."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Help with a misspelled `name`, for an error message: the nearest known name, then all known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(known)}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into a `StoreError` that says what to do."""
    try:
        yield
    except EstepError:
        raise
    except Exception as error:
        # Libraries that write in native code report a full disk with their own exceptions.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            raise StoreError(
                f"the disk is full: could not write {path}; free some space and run the same command again; "
                "finished work is kept"
            ) from error
        if isinstance(error, OSError):
            raise StoreError(f"could not write {path}: {error.strerror or error}") from error
        raise

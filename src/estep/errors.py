"""The few kinds of error that estep raises on purpose.

`EstepError` is the one boundary: the command line prints its message on one line and exits with 2. Anything
else that escapes is a bug, and keeps its traceback.
"""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class EstepError(Exception):
    """Something the user can mend: the message names what was received and what is allowed."""


class ConfigError(EstepError):
    """A configuration with an unknown key, an unknown name or a value outside its range."""


class DataError(EstepError):
    """Rows, task files or models that cannot be used; names the file and, for a row, its line."""


class SourceError(EstepError):
    """A model or data set that could not be fetched or whose checksum differs."""


class StoreError(EstepError):
    """A run folder that belongs to another configuration, or a disk that cannot be written."""


class EngineError(EstepError):
    """An engine that cannot be started, or a server that does not answer."""


class StaleWeightsError(EstepError):
    """The engine does not answer with the weights that it was told to load."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that helps with a misspelled `name`: its nearest known neighbor, then all that are known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(known)}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a `StoreError` that says what to do."""
    try:
        yield
    except EstepError:
        raise
    except Exception as error:
        # Libraries that write in native code report a full disk in an error of their own.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            raise StoreError(
                f"the disk is full: could not write {path}; free some space and run the same command again, "
                "what was finished before is kept"
            ) from error
        if isinstance(error, OSError):
            raise StoreError(f"could not write {path}: {error.strerror or error}") from error
        raise

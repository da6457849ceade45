"""Files that survive a kill and a power failure: append-only JSONL, and files that appear only when complete."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from estep.durable import publish, sync
from estep.errors import StoreError, writing

_SYNC_SECONDS = 1.0


class JsonlFile:
    """An append-only JSONL file."""

    def __init__(self, path: Path):
        self.path = path
        self._file: Any = None
        self._synced = 0.0

    def read(self) -> list[dict[str, Any]]:
        """All complete lines. A torn last line, left by a kill, is removed from the file.

        Raises:
            StoreError: a complete line is not valid JSON.
        """
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with writing(self.path):
                os.truncate(self.path, whole)
        rows = []
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise StoreError(f"{self.path}:{number} is damaged ({error}); remove its iteration folder") from error
        return rows

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line. It survives a kill immediately, and a power failure from the next sync on (one per second, and at
        the commit)."""
        with writing(self.path):
            if self._file is None:
                new = not self.path.exists()
                self._file = self.path.open("ab", buffering=0)
                if new:
                    sync(self.path.parent)
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
            written = self._file.write(line)
            while written < len(line):  # a disk that fills up takes part of a line first
                written += self._file.write(line[written:])
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with writing(self.path), file:
                os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is complete and on the disk."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            publish(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole JSONL file."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))

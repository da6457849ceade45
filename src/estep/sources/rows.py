"""Reads data rows from local files, packaged data sets and the hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from estep.errors import DataError, SourceError, nearest
from estep.sources.archives import DATASETS, fetch


def resolve_file(reference: str, base: Path | None, log: Callable[[str], None] = lambda _: None) -> Path | None:
    """The local file that a task's `data` entry refers to, or None if it names a data set on the hub.

    Args:
        reference: `dataset/file` of a packaged data set, or a path (relative to `base`, then to the working folder).
        base: the folder of the task file.
    """
    head, _, tail = reference.partition("/")
    if head in DATASETS:
        folder = fetch(head, log)
        path = folder / tail
        if not path.is_file():
            raise DataError(f"data set '{head}' has no file '{tail}'; " + nearest(tail, _file_names(folder)))
        return path
    candidates = [Path(reference).expanduser()]
    if base is not None:
        candidates.insert(0, base / reference)
    for path in candidates:
        if path.is_file():
            return path
    if Path(reference).suffix in READABLE:
        raise DataError(f"no such data file: {reference} (looked for {', '.join(str(c) for c in candidates)})")
    if "/" not in reference and Path(reference).suffix:
        raise DataError(f"no such data file: {reference}; allowed extensions are {', '.join(READABLE)}")
    return None


def _file_names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.jsonl")]


READABLE = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""File name extensions that rows can be read from."""

Row = tuple[str, dict[str, Any]]
"""The location of a row (`file:line`), and its fields."""


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a local file, each with its location for error messages.

    Raises:
        DataError: the file is empty, its extension is unknown, or a line cannot be read. Names the file and the line.
    """
    import csv

    rows: list[Row] = []
    suffix = path.suffix.lower()
    try:
        if suffix in (".jsonl", ".json"):
            with path.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        rows.append((f"{path}:{number}", _json_row(line, f"{path}:{number}")))
        elif suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else _separator(file), strict=True)
                try:
                    columns = list(reader.fieldnames or [])
                    twice = [name for name in columns if name.strip() and columns.count(name) > 1]
                    if twice:
                        raise DataError(f"{path}:1: two columns are named '{twice[0]}'; give each a name of its own")
                    for fields in reader:
                        location = f"{path}:{reader.line_num}"
                        if None in fields:
                            raise DataError(f"{location}: more columns than the header's {len(columns)}")
                        rows.append((location, dict(fields)))
                except csv.Error as error:
                    raise DataError(f"{path}:{reader.reader.line_num}: not readable as CSV: {error}") from error
        elif suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path).to_pylist()
            rows.extend((f"{path}: row {number}", fields) for number, fields in enumerate(table, 1))
        else:
            hint = "; save the sheet as CSV" if suffix in (".xlsx", ".xls", ".ods") else ""
            raise DataError(f"cannot read {path}: allowed extensions are {', '.join(READABLE)}{hint}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as UTF-8 (in Excel: 'CSV UTF-8')") from error
    except FileNotFoundError:
        raise DataError(f"no such data file: {path}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"could not read {path}: {error}") from error
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _separator(file: TextIO) -> str:
    """What separates the columns of a CSV file: commas, or semicolons, which spreadsheets write where numbers have
    decimal commas."""
    import csv

    header = next(csv.reader(file), [])
    file.seek(0)
    return ";" if len(header) == 1 and ";" in header[0] else ","


def _json_row(line: str, location: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: not a JSON object on one line ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{location}: a row is a JSON object, got {type(row).__name__}")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{location}: {error.object[error.start]!a} is half of a surrogate pair and no character; write the "
            "character itself, or both halves"
        ) from None
    return row


def on_the_hub(reference: str | None) -> bool:
    """Whether a task's `data` entry names a data set on the hub, by its form."""
    if reference is None or reference.partition("/")[0] in DATASETS:
        return False
    return Path(reference).suffix not in READABLE and not Path(reference).is_absolute()


def read_hub(
    name: str, subset: str | None, split: str, revision: str | None = None, files: str | None = None
) -> list[Row]:
    """Read all rows of a split of a data set on the hub.

    Args:
        subset: the hub's configuration name.
        revision: a branch, tag or commit.
        files: a pattern for the files of the split that contains `{split}`, for layouts that the hub does not expect.
    """
    from datasets import load_dataset

    from estep.models.loading import silence_logs

    patterns = None if files is None else {split: files.replace("{split}", split)}
    try:
        with silence_logs():
            rows = load_dataset(name, subset, split=split, revision=revision, data_files=patterns)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"'{name}' is no local file, no packaged data set ({', '.join(DATASETS)}), and could not be loaded from "
            f"the hub (split {split}): {reason}. Rows of your own are named with data.train_file=FILE"
        ) from error
    return [(f"{name}[{split}]: row {number}", dict(row)) for number, row in enumerate(rows, 1)]

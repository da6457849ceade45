"""The folder of an export, which appears only when it is complete, and what is in every one.

Each export has an `export.json` that says where it comes from. Only a folder with one is ever replaced.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import estep
from estep.durable import make_folder, publish, sync_tree
from estep.errors import StoreError, writing
from estep.export.source import Trained
from estep.sources.archives import DATASETS
from estep.sources.rows import on_the_hub
from estep.store.revision import git_revision

RECORD = "export.json"


@contextmanager
def finished_folder(out: Path, force: bool) -> Iterator[Path]:
    """A folder to write to, which takes the name `out` once the block has ended without an error and all of it is on
    the disk. It vanishes otherwise.

    Args:
        force: replace an earlier export.

    Raises:
        StoreError: `out` is not empty, or cannot be written.
    """
    out = out.absolute()
    check_free(out, force)
    with writing(out):
        make_folder(out.parent)
        # Names that nobody else has: what lies beside the export stays.
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        partial, replaced = work / "new", work / "old"
        try:
            make_folder(partial)
            yield partial
            sync_tree(partial)
            if out.is_dir():
                out.rename(replaced)
            publish(partial, out)
        except BaseException:
            if replaced.is_dir() and not out.exists():
                replaced.rename(out)
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def check_free(out: Path, force: bool) -> None:
    """Check that an export may be written to `out`.

    Raises:
        StoreError: it is a file, or a folder that is not empty; with `force`, one that is no export.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise StoreError(f"{out} is a file; name a folder with -o")
    if not any(out.iterdir()):
        return
    if not force:
        raise StoreError(f"{out} is not empty; name another folder with -o, or replace an earlier export with --force")
    if not (out / RECORD).is_file():
        raise StoreError(f"{out} is not empty and no export (it has no {RECORD}), so --force does not replace it")


def write_record(trained: Trained, folder: Path, **facts: Any) -> None:
    """Write `export.json`: the estep version, the run's name, its iteration, and facts about the export."""
    record = {
        "estep": estep.__version__,
        "git_revision": git_revision(),
        "run": trained.name,
        "iteration": trained.step.number,
        "task": trained.task.name,
        **facts,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_task(trained: Trained, folder: Path) -> None:
    """Write the run's task to `task.yaml`, with the run's `few_shot` and length of a response, so that `estep predict`
    asks the exported model as the run did. Of local data files, only the names are kept."""
    import yaml

    content = trained.task.file.model_dump(mode="json")
    content |= {"few_shot": trained.task.examples_in, "max_new_tokens": trained.config.max_new_tokens}
    for key in ("source", "test_source"):
        source = content["data"].get(key)
        if source is not None and is_local(source):
            content["data"][key] = Path(source).name
    (folder / "task.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def is_local(source: str) -> bool:
    """Whether the source of a task's rows is a file of this machine."""
    return source.partition("/")[0] not in DATASETS and not on_the_hub(source)

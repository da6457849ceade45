"""Files and folders that survive a power failure.

A file's content, its name, and the folder that holds the name reach the disk separately, in any order. Whatever must
not be lost is therefore synced step by step: the content, then the rename, then the folder that holds the new name.
"""

import errno
import os
from pathlib import Path

_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP)
"""How file systems refuse to sync a folder; they write names in order, or offer nothing better."""


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder inside a folder, then the folder itself."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sync_tree(path)
        else:
            sync(path)
    sync(folder)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and sync the names of those that are new."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync(path.parent)


def publish(partial: Path, target: Path) -> None:
    """Give a finished file or folder its name, replacing a file of that name, and sync the name.

    The content must be synced before, so that the name never refers to an incomplete file.
    """
    partial.replace(target)
    sync(target.parent)

"""The git revision of the checkout that estep runs from."""

import subprocess
from pathlib import Path


def git_revision() -> str | None:
    """The revision of the checkout that estep runs from, with `+` for uncommitted changes; None outside one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True)
        except OSError:
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    revision = git("rev-parse", "HEAD")
    return revision and revision + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")

"""The command line in its own process, as a user meets it."""

import subprocess
import sys
from pathlib import Path

SOURCE = str(Path(__file__).parents[1] / "src")


def estep(
    *arguments: str, cwd: Path, source: str | Path = SOURCE, typed: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "estep.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        input=typed,
        text=True,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(cwd),
            "PYTHONPATH": str(source),
            "COLUMNS": "120",
            "HF_HUB_OFFLINE": "1",
        },
    )


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line

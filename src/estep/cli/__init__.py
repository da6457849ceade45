"""The command line: parses arguments, calls the library and prints results.

Exit codes: 0 for success, 1 for a study with failed cells, 2 for bad input (with an error message on one line), 130 for
an interrupt. Any other exception is a bug and shows its traceback.
"""

import os
import sys

# Waiting threads sleep instead of spinning, unless the user sets this variable: with spinning, two runs on the same
# cores stall each other (docs/log.md, 2026-11-24). OpenMP reads the variable when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from estep.cli import compare, export, init, logs, models, plan, reference, runs, serve
from estep.cli.app import app
from estep.errors import EstepError

__all__ = ["app", "compare", "export", "init", "logs", "main", "models", "plan", "reference", "runs", "serve"]


def main() -> None:
    """The entry point: turns errors into one line and an exit code."""
    try:
        app(prog_name="estep")  # also for `python -m estep.cli`, so that help and completion name the command
    except EstepError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)

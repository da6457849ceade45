"""`python -m estep.cli` is the command `estep`."""

from estep.cli import main

main()

"""Filtered EM where everything can be computed: a model x → z → y with finitely many rationales and answers.

Each quantity is a sum over all (z, y), so nothing here samples. docs/theory.md derives the quantities. The package
needs numpy alone and imports nothing else of estep, so a wrong argument raises a ValueError.

Axis suffixes of arrays: _Z rationale, _Y answer, _Q question, _K draw, _A atom (a value that a draw can have). A table
over (z, y) is an array [rationale, answer], and `correct` is the index of y* in its last axis.
"""

"""Turns the rows of a task into the questions of a run."""

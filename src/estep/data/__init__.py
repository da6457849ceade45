"""From the rows of a task to the questions of a run."""

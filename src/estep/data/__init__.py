"""From a task's rows to the questions of a run."""

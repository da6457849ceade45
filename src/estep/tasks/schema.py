"""The JSON Schema of a task file."""

from estep.config.schema import Schema, file_schema
from estep.tasks.file import TaskFile


def task_schema() -> Schema:
    """The schema of a task file, for editors."""
    return file_schema(
        TaskFile, "A task of estep", "The task that this file changes: a relative path, or the name of a built-in task."
    )

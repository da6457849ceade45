"""Tasks: how questions are asked and answers judged."""

from estep.shipped import task_names
from estep.tasks.base import Judgment, Task, load_task
from estep.tasks.file import parse_task
from estep.tasks.rows import InvalidRow, OnInvalidRow, Rows

__all__ = ["InvalidRow", "Judgment", "OnInvalidRow", "Rows", "Task", "load_task", "parse_task", "task_names"]

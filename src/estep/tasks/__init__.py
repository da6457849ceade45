"""Tasks: how questions are asked and answers judged."""

from estep.tasks.base import Judgement, Task, load_task
from estep.tasks.file import parse_task, task_names
from estep.tasks.rows import BadRow, OnBadRow, Rows

__all__ = ["BadRow", "Judgement", "OnBadRow", "Rows", "Task", "load_task", "parse_task", "task_names"]

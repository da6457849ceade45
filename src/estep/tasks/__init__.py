"""Tasks: how questions are asked and answers judged."""

from estep.tasks.base import Judgement, Rows, Task, load_task, task_names
from estep.tasks.file import parse_task

__all__ = ["Judgement", "Rows", "Task", "load_task", "parse_task", "task_names"]

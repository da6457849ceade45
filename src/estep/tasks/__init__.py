"""Tasks: how questions are asked and answers judged."""

from estep.tasks.base import Judgement, Rows, Task, load_task, parse_task, task_names

__all__ = ["Judgement", "Rows", "Task", "load_task", "parse_task", "task_names"]

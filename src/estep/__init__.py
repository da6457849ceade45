"""estep: teach language models to reason from questions and verified answers alone.

Filtered expectation maximization (Lee et al., 2025): sample rationales from a proposal distribution, keep those whose
answer is right, fine-tune on them, repeat.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from estep.config import FEMConfig, RunConfig
    from estep.config.files import load_config
    from estep.errors import EstepError
    from estep.tasks import Task, load_task, task_names
    from estep.trainer import FEMTrainer, TrainResult

__version__ = "0.1.0"

__all__ = [
    "EstepError",
    "FEMConfig",
    "FEMTrainer",
    "RunConfig",
    "Task",
    "TrainResult",
    "__version__",
    "load_config",
    "load_task",
    "task_names",
]

_MODULES = {
    "EstepError": "errors",
    "FEMConfig": "config",
    "FEMTrainer": "trainer",
    "RunConfig": "config",
    "Task": "tasks",
    "TrainResult": "trainer",
    "load_config": "config.files",
    "load_task": "tasks",
    "task_names": "tasks",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: `estep --help` should not wait for the configuration, nor `estep tasks` for the trainer.
    if name in _MODULES:
        return getattr(importlib.import_module(f"estep.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'estep' has no attribute '{name}'")

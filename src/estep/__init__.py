"""estep: teach language models to reason from questions and verified answers alone.

Filtered expectation maximization (Lee et al., 2025): sample rationales from a proposal distribution, keep those whose
answer is right, fine-tune on them, repeat.
"""

from typing import TYPE_CHECKING, Any

from estep.config import FEMConfig, RunConfig
from estep.config.files import load_config
from estep.errors import EstepError
from estep.tasks import Task, load_task, task_names

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    # The trainer imports scikit-learn and more; `estep tasks` should not wait for it.
    if name in ("FEMTrainer", "TrainResult"):
        from estep import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module 'estep' has no attribute '{name}'")

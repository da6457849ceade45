"""One class per tracker. Each opens a run of its tracker or continues one, and takes figures.

accelerate has such classes, too. They are not used because their `start` makes accelerate's process state, which joins
a process group where the environment names one, and because they share one active run per process and have no way to
continue a run in each tracker: the cells of a study may run side by side, and estep's runs resume.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from estep.config import TrackerName
from estep.tracking.figures import flat

PROJECT = "estep"
"""The project or experiment of runs outside studies, unless the tracker's own environment variable names another."""
STEP_LOSS = "m_step/step_loss"


@dataclass(frozen=True)
class Target:
    """The run to track."""

    folder: Path
    study: str | None
    """The name of its study, if it belongs to one."""
    config: Mapping[str, Any]
    """Its resolved configuration."""
    former: str | None
    """The tracker's id of the run, if it is tracked already."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name


class Tracker(Protocol):
    """A run of a tracker that is open. Its methods may raise any exception."""

    run: str
    """What the tracker calls the run, to continue it later."""

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Report the figures of an iteration."""

    def log_losses(self, first: int, losses: Sequence[float]) -> None:
        """Report the losses of consecutive gradient steps; `first` counts from 1 over all iterations."""

    def close(self, finished: bool) -> None:
        """Write everything. `finished` is whether the session ended without an error."""


class TensorBoard:
    """Event files in `tensorboard/` in the run folder."""

    def __init__(self, target: Target):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.run = "tensorboard"
        self._writer = SummaryWriter(str(target.folder / self.run))
        if target.former is None:
            writer: Any = self._writer.file_writer  # add_hparams would put them into a folder of their own
            for part in hparams(flat(target.config), {"evaluation/accuracy": 0}):
                writer.add_summary(part)
            rows = "".join(f"| {key} | {value} |\n" for key, value in flat(target.config).items())
            self._writer.add_text("configuration", f"| key | value |\n|---|---|\n{rows}", 0)

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def log_losses(self, first: int, losses: Sequence[float]) -> None:
        for step, loss in enumerate(losses, first):
            self._writer.add_scalar(STEP_LOSS, loss, step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases, online or offline (`WANDB_MODE`). Its files are in the run folder unless `WANDB_DIR` is set."""

    def __init__(self, target: Target):
        import wandb

        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=target.study,
            name=target.name,
            id=target.former,
            resume=None if target.former is None else "allow",
            config=dict(target.config),
            allow_val_change=True,  # a resumed run may have other settings of placement
            dir=None if "WANDB_DIR" in os.environ else str(target.folder),
            reinit="create_new",
            # Its capture of the console would break the progress bars. Neither a prompt for a key nor a slow network
            # may hold a run up for long; what was not uploaded stays in the folder, for `wandb sync`.
            settings=wandb.Settings(console="off", login_timeout=60, finish_timeout=120, finish_timeout_raises=True),
        )
        self.run = str(self._run.id)
        self._run.define_metric("*", step_metric="iteration")
        self._run.define_metric("gradient_step")  # or it would be one of iterations, too
        self._run.define_metric(STEP_LOSS, step_metric="gradient_step")

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        self._run.log({"iteration": iteration, **figures})

    def log_losses(self, first: int, losses: Sequence[float]) -> None:
        for step, loss in enumerate(losses, first):
            self._run.log({"gradient_step": step, STEP_LOSS: loss})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class Trackio:
    """trackio: a database of this machine, a Space (`TRACKIO_SPACE_ID`) or a server (`TRACKIO_SERVER_URL`)."""

    def __init__(self, target: Target):
        import trackio

        # It finds a run by its name, and runs of different folders may have the same one.
        self.run = target.former or f"{target.name}-{uuid4().hex[:6]}"
        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.run,
            group=target.study,
            config=flat(target.config),
            resume="never" if target.former is None else "must",
            embed=False,
        )

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=iteration)

    def log_losses(self, first: int, losses: Sequence[float]) -> None:
        for step, loss in enumerate(losses, first):
            self._run.log({STEP_LOSS: loss}, step=step)

    def close(self, finished: bool) -> None:
        self._run.finish()


class MLflow:
    """MLflow, at `MLFLOW_TRACKING_URI`. The experiment is named after the study."""

    def __init__(self, target: Target):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        # By default, it would wait five minutes for a server that does not answer.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        self._client: Any = MlflowClient()
        if target.former is not None:
            self.run = target.former
            self._client.update_run(self.run, status="RUNNING")
            return
        experiment = _experiment(self._client, target.study or os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        self.run = str(self._client.create_run(experiment, run_name=target.name).info.run_id)
        for some in _batches([Param(key, str(value)) for key, value in flat(target.config).items()], 100):
            self._client.log_batch(self.run, params=some)

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        self._log([(name, value, iteration) for name, value in figures.items()])

    def log_losses(self, first: int, losses: Sequence[float]) -> None:
        self._log([(STEP_LOSS, loss, step) for step, loss in enumerate(losses, first)])

    def _log(self, rows: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for some in _batches([Metric(name, value, now, step) for name, value, step in rows], 1000):
            self._client.log_batch(self.run, metrics=some)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.run, "FINISHED" if finished else "FAILED")


def _experiment(client: Any, name: str) -> str:
    """The id of an experiment, which is created if it is missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run may have created it in the meantime
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


Item = TypeVar("Item")


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """MLflow takes up to 100 parameters and 1000 metrics per request."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


TRACKERS: dict[TrackerName, Callable[[Target], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}

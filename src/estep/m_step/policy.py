"""The policy π(· | ·; θ): an engine, and the proof that it holds θ."""

from pathlib import Path
from typing import Any

from estep.engines import Engine
from estep.m_step.base import read_m_step
from estep.m_step.canary import check_canary
from estep.progress import PhaseTimer, Reporter
from estep.records import ModelRef


class Policy:
    """Loads weights into an engine, and checks by their canary that they are in use.

    Args:
        engine: with the base model.
        base: the base model.
        reporter: receives a line if the check can prove nothing.
        timer: counts the time of loading.
    """

    def __init__(self, engine: Engine, base: ModelRef, reporter: Reporter, timer: PhaseTimer):
        self._engine = engine
        self._loaded: ModelRef | None = base
        self._reporter = reporter
        self._timer = timer
        self._canary: dict[str, Any] | None = None

    def load(self, theta: ModelRef) -> dict[str, Any] | None:
        """Load weights, unless the engine holds them.

        Returns:
            What the canary said; None for a base model, which has none.

        Raises:
            StaleWeightsError: the engine does not answer with these weights.
        """
        if self._loaded != theta:
            with self._timer.phase("load"):
                self._engine.load(theta)
            trained = read_m_step(Path(theta.path)) if theta.iteration else None
            self._canary = check_canary(self._engine, trained.canary) if trained else None
            if self._canary is not None and not self._canary["telling"]:
                moved = abs(self._canary["trained"] - self._canary["before"])
                self._reporter.log(
                    f"  note: training moved the model too little ({moved:.2f} nats on fixed responses) to check "
                    "whether the engine took the new weights"
                )
            self._loaded = theta
        return self._canary

    def with_weights(self, theta: ModelRef) -> Engine:
        """The engine, with these weights; see `load`."""
        self.load(theta)
        return self._engine

    def release(self) -> None:
        """Free the engine's memory until the next `load`."""
        self._engine.release()
        self._loaded = None

"""An engine in a worker: what the pool (`estep.engines.pool`) calls there, one call at a time.

Arguments and results can be pickled, so the worker may be another process or another machine.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from estep.config import EngineConfig
from estep.engines import build_engine
from estep.engines.base import DrawQueue, Engine, Sampling, ScoreRequest
from estep.records import Draw, Messages, ModelRef, Sample, Score


@dataclass(frozen=True)
class Properties:
    """The properties of an engine with a model; see `estep.engines.base.Engine`."""

    metadata: dict[str, str | int | float | bool]
    context: int | None
    control_tokens: frozenset[str]
    goes_on: bool
    """Whether the engine may sample on while its samples are graded: when a draw joins makes no difference but for
    rounding. Other engines stand still, so that the same draws give the same batches."""


class EngineHost:
    """Owns an engine.

    Args:
        build: builds an engine from its configuration.
    """

    def __init__(self, build: Callable[[EngineConfig], Engine] = build_engine):
        self._build = build
        self._opened: Engine | None = None
        self._queue = DrawQueue()
        self._finished: dict[str, Sample] = {}
        self._samples: Iterator[Sample] | None = None

    @property
    def _engine(self) -> Engine:
        assert self._opened is not None, "open an engine first"
        return self._opened

    def open(self, config: EngineConfig, model: ModelRef) -> Properties:
        """Start the engine with a model. After an error, nothing of it is left."""
        engine = self._build(config)
        try:
            engine.load(model)
        except BaseException:
            engine.close()
            raise
        self._opened = engine
        return self.properties()

    def properties(self) -> Properties:
        """The engine's properties."""
        engine = self._engine
        goes_on = bool(getattr(engine, "goes_on", False))
        return Properties(dict(engine.metadata), engine.context, engine.control_tokens, goes_on)

    def load(self, model: ModelRef) -> Properties:
        """See `Engine.load`."""
        self._engine.load(model)
        return self.properties()

    def pump(self, draws: Sequence[Draw], finished: Mapping[str, Sample], sampling: Sampling) -> list[Sample]:
        """Add draws, and sample until at least one of all added draws is finished.

        The engine stands still between two calls, so draws that follow from the returned samples can reach it before
        it goes on.

        Args:
            draws: draws to add.
            finished: the samples of those that need no sampling; see `DrawQueue`.
            sampling: the same in all calls until the end.

        Returns:
            The samples that finished together; none once all draws are finished, which ends the sampling.
        """
        if self._samples is None:
            self._finished = {}
            self._queue = DrawQueue(finished=self._finished)
        self._finished.update(finished)
        for draw in draws:
            self._queue.add(draw)
        if self._samples is None:
            self._samples = iter(self._engine.generate(self._queue, sampling))
        try:
            samples = [sample for sample in [next(self._samples, None)] if sample is not None]
            while samples and self._queue.ready:
                samples.append(next(self._samples))
        except BaseException:
            self.abort()
            raise
        if not samples:
            self.abort()
        return samples

    def abort(self) -> None:
        """Drop all draws that are not finished."""
        samples, self._samples = self._samples, None
        close = getattr(samples, "close", None)
        if close is not None:
            close()

    def score(self, messages: Messages, text: str) -> float:
        """See `Engine.score`."""
        return self._engine.score(messages, text)

    def score_many(self, requests: Sequence[ScoreRequest], finished: Mapping[str, Score]) -> list[Score]:
        """All scores of `Engine.score_many`."""
        return list(self._engine.score_many(requests, finished))

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        """See `Engine.prompt_lengths`."""
        return self._engine.prompt_lengths(prompts)

    def release(self) -> None:
        """See `Engine.release`."""
        self._engine.release()

    def close(self) -> None:
        """Shut the engine down."""
        self.abort()
        engine, self._opened = self._opened, None
        if engine is not None:
            engine.close()

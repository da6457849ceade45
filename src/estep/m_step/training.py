"""The training of a job, from reading the weights to scoring the new ones: in one process, or in each of several."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from estep.config import MStepConfig
from estep.errors import EstepError
from estep.m_step.batches import Budget, Collator, batches_of_ranks
from estep.m_step.head import without_adapter
from estep.m_step.job import Advance, Log, TrainingJob, TrainingOutcome
from estep.m_step.memory_plan import device_memory, plan
from estep.m_step.steps import GradientSteps, Ranks, gradient_steps, is_out_of_memory
from estep.m_step.whole import WholeModel, load_trainable, set_checkpointing
from estep.models.loading import silence_logs
from estep.models.memory import free_memory, keep_freed_memory
from estep.models.precision import resolve_precision
from estep.models.randomness import preserve_rng_state
from estep.models.shape import measured

if TYPE_CHECKING:  # imports much
    from estep.m_step.sharded import ShardedModel


def train(
    job: TrainingJob,
    ranks: Ranks,
    advance: Advance,
    log: Log,
    model: Any = None,
    keep: Callable[[Any], None] | None = None,
) -> TrainingOutcome:
    """Train, write the weights to `job.partial`, and score the canary.

    Args:
        job: the same on every rank.
        ranks: with more than one, their process group must be initialized; all ranks call this function.
        advance: called on every rank.
        log: called on every rank.
        model: the trainable model, if a rank that is alone has it already.
        keep: receives the trained model in main memory, from a rank that is alone.

    Raises:
        EstepError: the loss is not finite, or a single pair does not fit in memory.
        OutOfDeviceMemoryError: memory ran out on this rank and others wait for it: start again with its `halvings`.
    """
    job = replace(job, config=_with_common_precision(job.config, ranks))
    if ranks.device.type == "cpu":
        keep_freed_memory()
    with preserve_rng_state(job.seed + ranks.rank), silence_logs(), _clear_out_of_memory():
        trained = _model_of(job, ranks, model)
        former = trained.scores(job.canary, job.canary_dtype) if job.former_scores else None
        collator = Collator(trained.packed, pad_id=0)
        budget, checkpointing = _planned(trained, job, collator, ranks, log)
        set_checkpointing(trained.model, checkpointing)
        steps = GradientSteps(trained.loss, job, ranks, collator, budget, trained.autocast, log)
        losses = steps.run(advance)
        set_checkpointing(trained.model, False)  # the next iteration makes its own plan
        halvings = steps.halvings
        del steps  # and the optimizer's state
        free_memory(ranks.device)
        trained.save(job.partial)
        scores = trained.trained_scores(job.canary, job.canary_dtype)
        if keep is not None:
            keep(trained.model.to("cpu"))
    return TrainingOutcome(losses, former, scores, halvings, job.config.precision)


def _with_common_precision(config: MStepConfig, ranks: Ranks) -> MStepConfig:
    """The configuration with its precision resolved: float32 if it is that on any rank."""
    own = resolve_precision(config, ranks.device.type)
    float32 = ranks.total(torch.tensor(float(own.precision == "float32"), device=ranks.device)) > 0
    return own.model_copy(update={"precision": "float32"}) if float32 else own


@contextlib.contextmanager
def _clear_out_of_memory() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        error.__traceback__ = None  # which holds the weights
        raise EstepError(f"training ran out of memory beside its gradient steps: {reason}; see estep plan") from None


def _model_of(job: TrainingJob, ranks: Ranks, model: Any) -> "WholeModel | ShardedModel":
    """The model to train, with this rank's part of it, or all of it."""
    if ranks.size > 1:
        from estep.m_step.sharded import ShardedModel

        return ShardedModel(job, ranks)
    loaded = load_trainable(job.start, job.config.lora, ranks.device) if model is None else model
    return WholeModel(job.config, loaded, ranks.device)


def _planned(
    trained: "WholeModel | ShardedModel", job: TrainingJob, collator: Collator, ranks: Ranks, log: Log
) -> tuple[Budget, bool]:
    """What a forward pass may take, and whether activations are computed again: as configured, otherwise as memory
    allows. A forward pass of a model whose size is unknown takes the whole gradient step, until memory runs out."""
    config = job.config
    lengths = [(len(row["input_ids"]), len(row["weights"])) for row in job.rows]
    try:
        shape = measured(without_adapter(trained.model).config)
    except Exception as error:  # an architecture without attention, for example
        if ranks.first:
            log(
                f"  note: the memory that training needs is unknown ({error}); if it runs out, set "
                "m_step.micro_batch_size"
            )
        pairs = config.micro_batch_size or config.batch_size
        return Budget(sys.maxsize, sys.maxsize, pairs), bool(config.gradient_checkpointing)
    chosen = plan(shape, lengths, config, device_memory(ranks.device), ranks.size)
    budget = Budget(chosen.positions, chosen.targets, config.micro_batch_size or config.batch_size)
    if ranks.first and config.micro_batch_size is None:
        first = next(gradient_steps(job.rows, config.batch_size, job.seed, 0))
        passes = len(batches_of_ranks(first, ranks.size, collator, budget)[0])
        if passes > 1:
            log(f"  note: to save memory, a gradient step takes {passes} forward passes; its pairs are unchanged")
    if ranks.first and chosen.checkpointing and config.gradient_checkpointing is None:
        log("  note: to save memory, gradient checkpointing is on")
    return budget, chosen.checkpointing


def alone(device: torch.device) -> Ranks:
    """The only rank, on a device."""
    return Ranks(0, 1, device)

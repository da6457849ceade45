"""The gradient steps of a training, on one rank of several or alone (Algorithm 1, line 5).

The optimizer, the order of the pairs and the loss are those of TRL's `SFTTrainer`, and so are the losses and the
weights (`test_the_losses_and_the_weights_of_a_training_equal_trls`). It is not that trainer because a gradient step
here is split by tokens instead of pairs, goes on after an out-of-memory error, and is shared among ranks without
repeated pairs.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from estep.errors import EstepError
from estep.m_step.batches import Budget, Collator, batches_of_ranks, shares
from estep.m_step.job import Advance, Log, OutOfDeviceMemoryError, Row, TrainingJob
from estep.models.memory import free_memory


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model together, and which of them this is."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, value: Tensor) -> float:
        """The sum of a number over all ranks."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return float(value)


@dataclass
class GradientSteps:
    """Trains a model on the rows of a job.

    Args:
        loss: a module that maps a batch to Σ −w log π(token) over its completion tokens; its parameters are trained.
        collator: makes the batches.
        budget: what a forward pass may take; halved when memory runs out.
        autocast: the dtype of the matrix products if they are not those of the weights, otherwise None.
    """

    loss: torch.nn.Module
    job: TrainingJob
    ranks: Ranks
    collator: Collator
    budget: Budget
    autocast: torch.dtype | None
    log: Log

    def __post_init__(self) -> None:
        self.halvings = self.job.halvings
        self._parameters = [parameter for parameter in self.loss.parameters() if parameter.requires_grad]
        # TRL's defaults, and those of transformers: weight decay 0.
        self._optimizer = torch.optim.AdamW(self._parameters, self.job.learning_rate, weight_decay=0.0, fused=True)

    def run(self, advance: Advance) -> tuple[float, ...]:
        """Train for the configured epochs; returns the loss of each gradient step.

        Raises:
            EstepError: the loss is not finite.
            OutOfDeviceMemoryError: memory ran out on one of several ranks.
        """
        self.loss.train()
        losses = []
        for epoch in range(self.job.config.epochs):
            for rows in gradient_steps(self.job.rows, self.job.config.batch_size, self.job.seed, epoch):
                losses.append(self._step(rows))
                if not math.isfinite(losses[-1]):
                    raise EstepError(
                        f"training diverged: the losses of its gradient steps are {losses}; lower m_step.learning_rate"
                    )
                advance(len(rows))
        return tuple(losses)

    def _step(self, rows: Sequence[Row]) -> float:
        """One gradient step: its loss, summed over the pairs of all ranks."""
        while True:
            try:
                loss = self._accumulated(rows)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._optimizer.zero_grad()
            self._halve(rows)
        torch.nn.utils.clip_grad_norm_(self._parameters, self.job.config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def _accumulated(self, rows: Sequence[Row]) -> float:
        """Accumulate the gradient of a gradient step; returns its loss.

        The loss is −Σ w log π(token), divided by the completion tokens of the gradient step, or by its pairs. Its
        gradient is the filtered update of equation 5, −r ∇ log π(ẑ, ŷ | x; θ), summed over the pairs: pairs with r = 0
        were filtered out, and a graded r is in the weights w. A step of the optimizer is the gradient ascent of
        equation 2. Times the divisor, the loss is a sample of minus the bound of Lemma 1 without its constant C:
        E_q[r log π(ẑ, ŷ | x; θ)] + C ≤ E_π[r].
        """
        by_pairs = self.job.config.loss_reduction == "sequence"
        divisor = len(rows) if by_pairs else sum(len(row["weights"]) for row in rows)
        batches = batches_of_ranks(rows, self.ranks.size, self.collator, self.budget.halved(self.halvings))
        total = torch.zeros((), device=self.ranks.device)
        with _restored_if_it_fails():
            for batch in batches[self.ranks.rank]:
                with self._products():
                    loss = self.loss(on_device(self.collator(batch), self.ranks.device)) / divisor
                (loss * self.ranks.size).backward()  # FSDP averages over the ranks
                total += loss.detach()
        return self.ranks.total(total)

    def _products(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.ranks.device.type, self.autocast)

    def _halve(self, rows: Sequence[Row]) -> None:
        """Halve the size of a forward pass, after memory ran out.

        Raises:
            OutOfDeviceMemoryError: other ranks wait for this one, so that all have to start again.
            EstepError: a forward pass takes a single pair already.
        """
        share = shares(rows, self.ranks.size)[self.ranks.rank]
        passes = self._passes(share)
        if passes >= len(share):
            longest = max(len(row["input_ids"]) for row in rows)
            raise EstepError(
                f"training ran out of memory with a single pair per forward pass (the longest has {longest} tokens); "
                "estep plan says what would do: m_step.gradient_checkpointing, m_step.lora or more devices"
            )
        free_memory(self.ranks.device)
        while self._passes(share) == passes:  # a budget that was not used up may be halved more than once
            self.halvings += 1
        if self.ranks.size > 1:
            raise OutOfDeviceMemoryError(self.halvings)
        self.log("  note: training ran out of memory; each forward pass now takes half as many tokens")

    def _passes(self, share: Sequence[Row]) -> int:
        """The number of forward passes that this rank's rows of a gradient step take."""
        return len(self.collator.split(share, self.budget.halved(self.halvings)))


def gradient_steps(rows: Sequence[Row], size: int, seed: int, epoch: int) -> Iterator[list[Row]]:
    """The rows of each gradient step of an epoch, in random order, as TRL's trainer shuffles them. The last step may be
    smaller."""
    generator = torch.Generator().manual_seed(seed % 2**32 + epoch)
    order = torch.randperm(len(rows), generator=generator).tolist()
    for start in range(0, len(rows), size):
        yield [rows[number] for number in order[start : start + size]]


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors say that are no `torch.OutOfMemoryError`: those of the CPU, of Apple's GPUs, of NCCL, and of cuBLAS."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the machine."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY)


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device."""
    if isinstance(batch, dict):
        return {key: on_device(value, device) for key, value in batch.items()}
    return batch.to(device) if isinstance(batch, Tensor) else batch


@contextlib.contextmanager
def _restored_if_it_fails() -> Iterator[None]:
    """Restore torch's generators if the block fails, so that a repetition draws the same dropout."""
    state = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    except BaseException:
        torch.set_rng_state(state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        raise

"""TRL's `SFTTrainer`, optimized for short completions after long prompts that share a prefix.

The loss is TRL's; the computation differs:

- the language-model head runs on completion tokens only; on a CPU, TRL projects every position onto the vocabulary and
  then masks the prompt's;
- a batch is one row without padding, and its common prefix is computed once (`estep.m_step.packing`).

Added to TRL: a weight for every completion token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from trl import SFTTrainer

from estep.m_step.packing import pack
from estep.models.tokens import common_prefix

IGNORED = -100
"""The label of a token that is not trained on."""

Reduction = Literal["token", "sequence"]


class Row(TypedDict):
    """A tokenized pair, as the trainer gets it."""

    input_ids: list[int]
    """Token ids of prompt and completion."""
    weights: list[float]
    """One per completion token; the completion is at the end of `input_ids`."""


@dataclass(frozen=True)
class Collator:
    """Collates rows into batches: packed, or padded on the right for models whose attention cannot be replaced.

    Args:
        packed: whether to pack.
        pad_id: any token; padding is neither attended to nor trained on.
        shared: whether a packed row computes the common prefix once.
    """

    packed: bool
    pad_id: int
    shared: bool = True

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Returns the model's inputs; `labels` and `weights`, [rows, positions] or [1, row], where position t holds
        those of the token at t + 1; and `pairs`, [1], the number of rows."""
        rest = self._packed(rows) if self.packed else self._padded(rows)
        return {**rest, "pairs": torch.tensor([len(rows)])}

    def _packed(self, rows: Sequence[Row]) -> dict[str, Any]:
        sequences = [row["input_ids"] for row in rows]
        # The prompt's last token predicts the first of the completion, which is each pair's own.
        limit = min(len(row["input_ids"]) - len(row["weights"]) for row in rows) - 1
        prefix = common_prefix(sequences, limit) if self.shared else 0
        batch = pack(sequences, prefix)
        labels, weights = [IGNORED] * prefix, [0.0] * prefix
        for row in rows:
            its_labels, its_weights = _next_tokens(row)
            labels += its_labels[prefix:]
            weights += its_weights[prefix:]
        return {**batch._asdict(), "labels": torch.tensor([labels]), "weights": torch.tensor([weights])}

    def _padded(self, rows: Sequence[Row]) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(values: Sequence[Any], filling: Any) -> list[Any]:
            return [*values, *[filling] * (longest - len(values))]

        nexts = [_next_tokens(row) for row in rows]
        return {
            "input_ids": torch.tensor([padded(row["input_ids"], self.pad_id) for row in rows]),
            "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
            "labels": torch.tensor([padded(labels, IGNORED) for labels, _ in nexts]),
            "weights": torch.tensor([padded(weights, 0.0) for _, weights in nexts]),
        }


def _next_tokens(row: Row) -> tuple[list[int], list[float]]:
    """The label and weight of the next token at each position; the last position has none."""
    ids, weights = row["input_ids"], row["weights"]
    prompt = len(ids) - len(weights)
    return [IGNORED] * (prompt - 1) + ids[prompt:] + [IGNORED], [0.0] * (prompt - 1) + weights + [0.0]


class CompletionTrainer(SFTTrainer):
    """Trains on `Row`s, batched by a `Collator`.

    Args:
        reduction: whether the loss of a gradient step is divided by its completion tokens or by its pairs.
        arguments: passed on to TRL.
    """

    def __init__(self, *arguments: Any, reduction: Reduction, **options: Any):
        super().__init__(*arguments, **options)
        self.reduction = reduction
        self.model_accepts_loss_kwargs = True  # the loss is divided for the whole gradient step already

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of a gradient step, and the divisor of its loss."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(self._count(batch) for batch in batches)

    def _count(self, batch: dict[str, Tensor]) -> int:
        return int(batch["pairs"]) if self.reduction == "sequence" else int((batch["labels"] != IGNORED).sum())

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """−Σ w log π(token) divided by the number of completion tokens, or of pairs, in nats.

        Its gradient is the filtered update of equation 5, −r ∇ log π(ẑ, ŷ | x; θ), summed over the pairs of a gradient
        step: pairs with r = 0 were filtered out, and a graded r is in the weights w. A step of the optimizer is the
        gradient ascent of equation 2. Times the divisor, the loss is a sample of minus the bound of Lemma 1 without its
        constant C: E_q[r log π(ẑ, ŷ | x; θ)] + C ≤ E_π[r].

        Args:
            inputs: a batch made by a `Collator`.
            num_items_in_batch: tokens or pairs in all micro-batches of the gradient step; None to count this batch.
        """
        assert not return_outputs, "the M-step never evaluates through the trainer"
        count = self._count(inputs) if num_items_in_batch is None else num_items_in_batch
        labels, weights = inputs["labels"], inputs["weights"]
        others = {key: value for key, value in inputs.items() if key not in ("labels", "weights", "pairs")}
        scored = labels != IGNORED
        positions = scored.any(dim=0).nonzero()[:, 0]  # positions from which some row predicts a completion token
        logits = model(**others, logits_to_keep=positions, use_cache=False).logits
        here = scored[:, positions]
        logits = logits[here]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = cross_entropy(logits, labels[:, positions][here], reduction="none")
        return (nll * weights[:, positions][here]).sum() / count


class Watch(TrainerCallback):
    """Collects the loss of every gradient step and reports the end of each step."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self.losses: list[float] = []
        self._advance = advance

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance()

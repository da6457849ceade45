"""TRL's `SFTTrainer`, made quick for short completions behind long, shared prompts.

What differs from TRL is the order of the work, not the loss:

- the language-model head sees completion tokens only: on a CPU, TRL projects every position onto the vocabulary and
  masks the prompt's afterwards;
- a batch is one row without padding, whose shared beginning is computed once (`estep.m_step.packing`).

What is added: every token of a completion has a weight.
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
    """A pair as the trainer sees it."""

    input_ids: list[int]
    """Prompt and completion."""
    weights: list[float]
    """One for each token of the completion, which ends the row."""


@dataclass(frozen=True)
class Collator:
    """Makes batches of rows: packed, or padded on the right for models whose attention cannot be packed.

    Args:
        packed: whether to pack.
        pad_id: any token; it is attended to by none and trained on by none.
        shared: whether a packed row computes what its sequences begin with once.
    """

    packed: bool
    pad_id: int
    shared: bool = True

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Returns what the model takes, and `labels` and `weights`, [rows, positions] or [1, row], of the next token:
        position t holds those of the token at t + 1. `pairs` is the number of rows, [1]."""
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
    """At each position the label and weight of the next token; the last position has none."""
    ids, weights = row["input_ids"], row["weights"]
    prompt = len(ids) - len(weights)
    return [IGNORED] * (prompt - 1) + ids[prompt:] + [IGNORED], [0.0] * (prompt - 1) + weights + [0.0]


class CompletionTrainer(SFTTrainer):
    """See the module. Takes rows of `Row`, batched by a `Collator`.

    Args:
        reduction: what the loss of a gradient step is divided by: its completion tokens, or its pairs.
        arguments: TRL's.
    """

    def __init__(self, *arguments: Any, reduction: Reduction, **options: Any):
        super().__init__(*arguments, **options)
        self.reduction = reduction
        self.model_accepts_loss_kwargs = True  # the loss is divided for the whole gradient step already

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of a gradient step, and what its loss is divided by."""
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
        """−Σ w log π(token) over the number of completion tokens, or of pairs, in nats.

        Args:
            inputs: what a `Collator` makes.
            num_items_in_batch: tokens or pairs of all micro-batches of the gradient step; None for this one's.
        """
        assert not return_outputs, "the M-step never evaluates through the trainer"
        count = self._count(inputs) if num_items_in_batch is None else num_items_in_batch
        labels, weights = inputs["labels"], inputs["weights"]
        others = {key: value for key, value in inputs.items() if key not in ("labels", "weights", "pairs")}
        scored = labels != IGNORED
        places = scored.any(dim=0).nonzero()[:, 0]  # positions from which some row predicts a completion token
        logits = model(**others, logits_to_keep=places, use_cache=False).logits
        here = scored[:, places]
        logits = logits[here]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = cross_entropy(logits, labels[:, places][here], reduction="none")
        return (nll * weights[:, places][here]).sum() / count


class Watch(TrainerCallback):
    """Collects the loss of every gradient step and tells of each step's end."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self.losses: list[float] = []
        self._advance = advance

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance()

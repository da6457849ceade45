"""From tokenized pairs to the batches of a gradient step: shared among ranks, split by tokens, packed or padded."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from estep.m_step.head import IGNORED
from estep.m_step.job import Row
from estep.m_step.packing import pack
from estep.models.tokens import common_prefix


class Budget(NamedTuple):
    """The most that one forward pass of one rank may take. A single pair is always taken."""

    positions: int
    """Input positions; in a packed batch, a common prefix counts once."""
    targets: int
    """Predicted tokens."""
    pairs: int

    def halved(self, times: int) -> "Budget":
        return Budget(*(max(1, limit >> times) for limit in self))


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
        """Returns the model's inputs; and `labels` and `weights`, [rows, positions] or [1, row], where position t holds
        those of the token at t + 1."""
        return self._packed(rows) if self.packed else self._padded(rows)

    def prefix(self, rows: Sequence[Row]) -> int:
        """Length of the common prefix that a batch of these rows computes once."""
        if not (self.packed and self.shared):
            return 0
        # The prompt's last token predicts the first of the completion, which is each pair's own.
        limit = min(len(row["input_ids"]) - len(row["weights"]) for row in rows) - 1
        return common_prefix([row["input_ids"] for row in rows], limit)

    def _packed(self, rows: Sequence[Row]) -> dict[str, Any]:
        prefix = self.prefix(rows)
        batch = pack([row["input_ids"] for row in rows], prefix)
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

    def split(self, rows: Sequence[Row], budget: Budget) -> list[list[Row]]:
        """The rows in as few batches as the budget allows.

        Rows that fit into one batch keep their order; otherwise, rows of similar length share a batch.
        """
        prefix = self.prefix(rows) if rows else 0
        if not rows or self._fits(rows, prefix, budget):
            return [list(rows)] if rows else []
        batches: list[list[Row]] = [[]]
        for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
            if batches[-1] and not self._fits([*batches[-1], row], prefix, budget):
                batches.append([])
            batches[-1].append(row)
        return batches

    def _fits(self, rows: Sequence[Row], prefix: int, budget: Budget) -> bool:
        """Whether the rows may share a batch, in which they have a prefix of at least this length in common."""
        lengths = [len(row["input_ids"]) for row in rows]
        positions = prefix + sum(lengths) - prefix * len(rows) if self.packed else max(lengths) * len(rows)
        targets = sum(len(row["weights"]) for row in rows)
        return positions <= budget.positions and targets <= budget.targets and len(rows) <= budget.pairs


def _next_tokens(row: Row) -> tuple[list[int], list[float]]:
    """The label and weight of the next token at each position; the last position has none."""
    ids, weights = row["input_ids"], row["weights"]
    prompt = len(ids) - len(weights)
    return [IGNORED] * (prompt - 1) + ids[prompt:] + [IGNORED], [0.0] * (prompt - 1) + weights + [0.0]


def shares(rows: Sequence[Row], ranks: int) -> list[list[Row]]:
    """The rows of each rank: about as many tokens for every rank, and at most one row more than for another. A rank's
    rows keep their order."""
    if ranks == 1:
        return [list(rows)]
    loads = [(0, rank) for rank in range(ranks)]
    counts = [0] * ranks
    owner = {}
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"])):
        tokens, rank = heapq.heappop(loads)
        owner[number] = rank
        counts[rank] += 1
        if counts[rank] < -(-len(rows) // ranks):  # otherwise it has its part
            heapq.heappush(loads, (tokens + len(rows[number]["input_ids"]), rank))
    return [[row for number, row in enumerate(rows) if owner[number] == rank] for rank in range(ranks)]


def batches_of_ranks(rows: Sequence[Row], ranks: int, collator: Collator, budget: Budget) -> list[list[list[Row]]]:
    """The batches of each rank. All ranks have equally many, because they exchange their weights in every forward pass;
    a rank that has no row left gets a short one without weight."""
    batches = [collator.split(share, budget) for share in shares(rows, ranks)]
    most = max(len(of_rank) for of_rank in batches)
    shortest = min(rows, key=lambda row: len(row["input_ids"]))
    filler: Row = {"input_ids": shortest["input_ids"], "weights": [0.0] * len(shortest["weights"])}
    return [of_rank + [[filler]] * (most - len(of_rank)) for of_rank in batches]

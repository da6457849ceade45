"""The loss of a batch: −Σ w log π(token) over its completion tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from estep.m_step.batches import IGNORED


class CompletionLoss(torch.nn.Module):
    """A model with its loss. One module, so that sharded weights are there for both."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        labels, weights = inputs["labels"], inputs["weights"]
        others = {key: value for key, value in inputs.items() if key not in ("labels", "weights")}
        scored = labels != IGNORED
        positions = scored.any(dim=0).nonzero()[:, 0]  # positions from which some row predicts a completion token
        logits = self.model(**others, logits_to_keep=positions, use_cache=False).logits
        here = scored[:, positions]
        logits = logits[here]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = cross_entropy(logits, labels[:, positions][here], reduction="none")
        return (nll * weights[:, positions][here]).sum()

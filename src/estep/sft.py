"""TRL's `SFTTrainer` with the language-model head on completion tokens only.

On a CPU, TRL projects every position onto the vocabulary and masks the prompt's afterwards; with short completions
behind long prompts that is most of the work. The loss is the same: the mean negative log-likelihood over the
completion tokens of a gradient step.
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from trl import SFTTrainer

from estep.mstep import IGNORED


class CompletionTrainer(SFTTrainer):
    """See the module. Takes tokenised rows with `input_ids` and `labels`."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """−Σ log π(token) / number of completion tokens, in nats.

        Args:
            inputs: `input_ids`, `attention_mask` and `labels`, each [rows, positions].
            num_items_in_batch: completion tokens of all micro-batches of the gradient step; None for this one's.
        """
        assert not return_outputs, "the M-step never evaluates through the trainer"
        targets = inputs["labels"][:, 1:]
        scored = targets != IGNORED
        places = scored.any(dim=0).nonzero()[:, 0]  # positions from which some row predicts a completion token
        others = {key: value for key, value in inputs.items() if key != "labels"}
        logits = model(**others, logits_to_keep=places, use_cache=False).logits
        here = scored[:, places]
        nll = cross_entropy(logits[here].float(), targets[:, places][here], reduction="sum")
        return nll / (here.sum() if num_items_in_batch is None else num_items_in_batch)


class Watch(TrainerCallback):
    """Collects the loss of every gradient step and tells of each step's end."""

    def __init__(self, advance: Any) -> None:
        self.losses: list[float] = []
        self._advance = advance

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance()

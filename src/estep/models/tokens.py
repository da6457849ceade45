"""Token sequences: their common prefix, and their log-probability under a model."""

from collections.abc import Sequence
from typing import Any

import torch

from estep.models.loading import Chat
from estep.records import Messages


def common_prefix(sequences: Sequence[list[int]], limit: int) -> int:
    """Length of the prefix that all sequences share, at most `limit`."""
    first, last = min(sequences), max(sequences)  # of all pairs, the first and last in lexical order differ earliest
    length = 0
    while length < min(limit, len(first), len(last)) and first[length] == last[length]:
        length += 1
    return length


def sequence_logprob(model: Any, chat: Chat, messages: Messages, text: str) -> float:
    """log π(text | messages): summed over the response's tokens and its end of turn, in nats."""
    prompt, completion = chat.prompt_ids(messages), chat.completion_ids(text)
    ids = torch.tensor([prompt + completion], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=len(completion) + 1).logits[0, :-1].float()
    targets = torch.tensor(completion, device=model.device)
    return float(logits.log_softmax(-1).gather(1, targets[:, None]).sum())

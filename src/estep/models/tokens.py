"""Token sequences: their common prefix, and their log-probability under a model."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
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


def by_prefix(prompts: Sequence[list[int]]) -> list[list[list[int]]]:
    """Prompts in groups that share a prefix, in lexical order. A group is split where two prefixes, each computed once,
    leave fewer positions to compute than the one prefix of the whole.

    Args:
        prompts: distinct prompts.
    """
    groups, open_groups = [], [sorted(prompts)] if prompts else []
    while open_groups:
        group = open_groups.pop()
        place = _best_split(group)
        if place is None:
            groups.append(group)
        else:
            open_groups += [group[place:], group[:place]]
    return groups


def _best_split(group: list[list[int]]) -> int | None:
    """Where to split a group of sorted prompts; None if no split saves anything.

    A group of n prompts with a prefix of l tokens is spared l (n - 1) positions.
    """
    shared = [common_prefix(pair, len(pair[0])) for pair in pairwise(group)]
    lefts = [0, *accumulate(shared, min)]  # the prefix of the prompts up to a place, and of those from it on
    rights = [0, *accumulate(reversed(shared), min)][::-1]
    saved = [
        lefts[place - 1] * (place - 1) + rights[place] * (len(group) - place - 1) for place in range(1, len(group))
    ]
    if not saved or max(saved) <= lefts[-1] * (len(group) - 1):
        return None
    return 1 + saved.index(max(saved))


def sequence_logprob(model: Any, chat: Chat, messages: Messages, text: str) -> float:
    """log π(text | messages): summed over the response's tokens and its end of turn, in nats."""
    prompt, completion = chat.prompt_ids(messages), chat.completion_ids(text)
    ids = torch.tensor([prompt + completion], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=len(completion) + 1).logits[0, :-1].float()
    targets = torch.tensor(completion, device=model.device)
    return float(logits.log_softmax(-1).gather(1, targets[:, None]).sum())

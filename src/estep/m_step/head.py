"""The weighted loss of a batch's completion tokens, with the logits of a limited number of tokens at a time.

A vocabulary of 150,000 takes 600 KB of float32 logits per token, and as much again for their gradient. Only positions
that predict a completion token are projected onto the vocabulary, in chunks. With more than one chunk, the backward
pass computes each chunk's logits again, so that the logits of only one chunk live at a time.

This needs a model whose forward pass is exactly head(decoder(x)), and refuses to guess: models that are not listed in
`CHUNKED` compute their logits themselves, all at once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from estep.m_step.memory_plan import HEAD_CHUNK

IGNORED = -100
"""The label of a token that is not trained on."""
CHUNKED = frozenset(
    {
        "apertus",
        "arcee",
        "cwm",
        "exaone4",
        "gemma",
        "glm",
        "glm4",
        "helium",
        "llama",
        "ministral",
        "mistral",
        "olmo",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "seed_oss",
        "smollm3",
        "starcoder2",
    }
)
"""`model_type` of transformers' models whose logits are head(decoder(x)): no scaling, no capping, no other loss."""


def completion_nll(
    model: Any, inputs: dict[str, Any], labels: Tensor, weights: Tensor, chunk: int = HEAD_CHUNK
) -> Tensor:
    """−Σ w log π(token) over the completion tokens of a batch, in nats.

    Its gradient is the filtered update of equation 5, −r ∇ log π(ẑ, ŷ | x; θ), summed over the pairs: pairs with r = 0
    were filtered out, and a graded r is in the weights w.

    Args:
        model: a causal language model, with or without an adapter.
        inputs: what its forward pass takes, of a packed row or a padded batch.
        labels: [rows, positions]; position t holds the token at t + 1, or `IGNORED`.
        weights: [rows, positions]; those of the labels.
        chunk: largest number of tokens whose logits live at the same time.
    """
    scored = (labels != IGNORED).nonzero(as_tuple=True)
    targets, shares = labels[scored], weights[scored]
    decoder, head = decoder_and_head(model)
    if decoder is None:
        return _nll(_own_logits(model, inputs, labels != IGNORED), targets, shares)
    hidden = decoder(**inputs, use_cache=False).last_hidden_state[scored]
    chunks = -(-len(hidden) // chunk)
    if chunks <= 1:
        return _nll(head(hidden), targets, shares)

    def of_chunk(hidden: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
        return _nll(head(hidden), targets, shares)

    parts = zip(*(whole.tensor_split(chunks) for whole in (hidden, targets, shares)), strict=True)
    # There is no randomness in the head.
    losses = [checkpoint(of_chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(losses).sum()


class CompletionLoss(nn.Module):
    """A model whose forward pass returns its loss.

    FSDP gathers the weights of the embedding and the head for the forward pass of its outermost module.
    `completion_nll` calls the decoder and the head without the model around them, so this module must be the outermost
    one. Its mixed-precision policy must not cast inputs (`cast_forward_inputs=False`): that would round the tokens'
    weights.

    Args:
        model: a causal language model, with or without an adapter.
        chunk: largest number of tokens whose logits live at the same time.
    """

    def __init__(self, model: Any, chunk: int = HEAD_CHUNK):
        super().__init__()
        self.model = model
        self.chunk = chunk

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """`completion_nll` of a batch.

        Args:
            batch: the model's inputs, `labels` and `weights`.
        """
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "weights")}
        return completion_nll(self.model, inputs, batch["labels"], batch["weights"], self.chunk)


def without_adapter(model: Any) -> Any:
    """The model inside a PEFT model, with the adapter's layers in it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def decoder_and_head(model: Any) -> tuple[Any, Any]:
    """The parts of a model whose logits are head(decoder(x)), by `CHUNKED`; None twice for other models."""
    plain = without_adapter(model)
    its_own = type(plain).__module__.startswith("transformers.models.")  # not code that came with the weights
    if not its_own or plain.config.model_type not in CHUNKED:
        return None, None
    return plain.model, plain.get_output_embeddings()


def _own_logits(model: Any, inputs: dict[str, Any], scored: Tensor) -> Tensor:
    """[tokens, vocabulary]: the logits of all scored positions, by the model's own forward pass."""
    positions = scored.any(dim=0).nonzero()[:, 0]  # those from which some row predicts a completion token
    logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits
    return logits[scored[:, positions]]


def _nll(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum over tokens, computed in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (cross_entropy(logits, targets, reduction="none") * weights).sum()

"""The size of a model and of its parts, from its config.json alone: no weights are read.

The parameters are counted on an instance without memory (torch's `meta` device), so the count is exact for every
architecture that transformers can build. The values for the models in `registry` are shipped in `shapes.json`, so that
planning for them needs no network.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from estep.config import LoRAConfig
from estep.errors import SourceError
from estep.models.registry import HUB_MODELS

_SHIPPED = Path(__file__).with_name("shapes.json")


@dataclass(frozen=True)
class ModelShape:
    """The size of a causal language model. Counts are parameters unless they say otherwise."""

    parameters: int
    """All parameters; tied ones count once."""
    embedding: int
    """The input embedding."""
    head: int
    """The output head; with tied weights, the same parameters as the embedding."""
    tied: bool
    """Whether the head shares the embedding's weights."""
    in_layers: int
    """Those of all layers together; the rest are the embedding, the head and the last norm."""
    largest_layer: int
    layers: int
    """Number of layers."""
    hidden: int
    """Width of the residual stream."""
    inner: int
    """Width of the feed-forward part."""
    heads: int
    """Attention heads."""
    kv_heads: int
    """Heads of keys and values."""
    head_dim: int
    """Width of a head."""
    vocab: int
    """Tokens in the vocabulary."""
    context: int | None
    """Longest sequence in tokens; None if the config does not give one."""
    cached: int
    """Numbers that a token keeps in the key-value cache. Layers that see a window or keep a state are not counted."""
    linear: tuple[tuple[str, int], ...]
    """By name of a linear layer, the sum of its inputs and outputs over the whole model; without the head."""

    @property
    def root(self) -> int:
        """The parameters outside the layers."""
        return self.parameters - self.in_layers

    def adapter(self, lora: LoRAConfig) -> int:
        """The parameters of an adapter: r (inputs + outputs) for each adapted linear layer. A pattern counts as all of
        them."""
        chosen = lora.target_modules
        return lora.r * sum(width for name, width in self.linear if isinstance(chosen, str) or name in chosen)

    def cache_bytes(self, size: int) -> int:
        """Bytes that a token takes in the key-value cache.

        Args:
            size: bytes of a number: 2 for bfloat16.
        """
        return self.cached * size


def shape_of(model: str) -> ModelShape:
    """The shape of a model.

    Args:
        model: a name of the registry, `smollm2-135m`, a hub id or a folder; for a folder with an adapter, the shape of
            its base model.

    Raises:
        SourceError: there is no configuration, or transformers cannot build a causal language model from it.
    """
    from estep.models.loading import adapter_base, silence_logs

    path = Path(model).expanduser()
    base = (adapter_base(str(path)) or str(path)) if path.is_dir() else model
    name = HUB_MODELS[base].hub_id if base in HUB_MODELS else base
    facts = shipped_shapes().get(name)
    with silence_logs():
        try:
            return measured(_configured(facts) if facts is not None else _read(name))
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SourceError(f"could not read the shape of '{model}' from its configuration: {reason}") from error


@cache
def shipped_shapes() -> dict[str, dict[str, Any]]:
    """The configurations that are shipped, by hub id."""
    models: dict[str, dict[str, Any]] = json.loads(_SHIPPED.read_text(encoding="utf-8"))["models"]
    return models


def _configured(facts: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**facts)


def _read(name: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name)


def measured(config: Any) -> ModelShape:
    """The shape of the model that a transformers configuration describes."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    layers = layers_of(model)
    sizes = [_count(layer) for layer in layers]
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    linear: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            last = name.rpartition(".")[2]
            linear[last] = linear.get(last, 0) + module.in_features + module.out_features
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelShape(
        parameters=_count(model),
        embedding=_count(embedding),
        head=_count(head),
        tied=head.weight is embedding.weight,
        in_layers=sum(sizes),
        largest_layer=max(sizes),
        layers=len(sizes),
        hidden=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=text.vocab_size,
        context=getattr(text, "max_position_embeddings", None),
        cached=_cached(text, len(sizes), 2 * kv_heads * head_dim),
        linear=tuple(linear.items()),
    )


def _cached(text: Any, layers: int, width: int) -> int:
    """Numbers that a token keeps in the key-value cache: a width for each layer that attends to all positions, or what
    multi-head latent attention compresses it to."""
    full = (getattr(text, "layer_types", None) or []).count("full_attention") or layers
    latent = getattr(text, "kv_lora_rank", None)
    return full * (width if not latent else latent + text.qk_rope_head_dim)


def layers_of(model: Any) -> Any:
    """The list of the decoder's layers: the largest one that has as many as the configuration says.

    Raises:
        ValueError: there is no such list.
    """
    import torch

    number = model.config.get_text_config().num_hidden_layers
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == number]
    return max(lists, key=_count)


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

"""Short names for the paper's models (Lee et al., 2025, section 4.1) and for larger ones of their families.

Any other causal language model with a chat template can be used by its hub id or folder.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class HubModel:
    """A model on the hub."""

    hub_id: str
    license: str
    gated: bool
    """Whether its license must be accepted on the hub first."""
    parameters: float
    """In billions."""
    context: int
    """Tokens of prompt and response that a run allows: enough for the paper's tasks. The models support 32,768 (Qwen)
    and 131,072 (Llama), but the key-value cache would have to be that large."""
    end_of_turn: str
    """The control token that ends an assistant's turn in the model's own chat template."""


PAPER_MODELS: dict[str, HubModel] = {
    "qwen2.5-1.5b": HubModel("Qwen/Qwen2.5-1.5B-Instruct", "Apache-2.0", False, 1.54, 8192, "<|im_end|>"),
    "qwen2.5-3b": HubModel("Qwen/Qwen2.5-3B-Instruct", "Qwen Research", False, 3.09, 8192, "<|im_end|>"),
    "qwen2.5-7b": HubModel("Qwen/Qwen2.5-7B-Instruct", "Apache-2.0", False, 7.62, 8192, "<|im_end|>"),
    "llama-3.2-3b": HubModel("meta-llama/Llama-3.2-3B-Instruct", "Llama 3.2", True, 3.21, 8192, "<|eot_id|>"),
    "llama-3.1-8b": HubModel("meta-llama/Llama-3.1-8B-Instruct", "Llama 3.1", True, 8.03, 8192, "<|eot_id|>"),
}
"""The paper's models by short name, as used in a config. Each runs in bfloat16."""

HUB_MODELS: dict[str, HubModel] = {
    **PAPER_MODELS,
    "llama-3.3-70b": HubModel("meta-llama/Llama-3.3-70B-Instruct", "Llama 3.3", True, 70.6, 8192, "<|eot_id|>"),
    "qwen2.5-72b": HubModel("Qwen/Qwen2.5-72B-Instruct", "Qwen", False, 72.7, 8192, "<|im_end|>"),
}
"""All models by short name."""


def by_id(hub_id: str) -> HubModel | None:
    """The model with this hub id, if it is in the registry."""
    return next((model for model in HUB_MODELS.values() if model.hub_id == hub_id), None)

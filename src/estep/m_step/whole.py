"""A model to train that is whole on one device."""

from pathlib import Path
from typing import Any

import torch

from estep.config import LoRAConfig, MStepConfig
from estep.errors import ConfigError
from estep.m_step.batches import Collator
from estep.m_step.head import CompletionLoss, without_adapter
from estep.m_step.job import Row
from estep.m_step.packing import use_packed_attention
from estep.m_step.steps import on_device
from estep.models.loading import cast_weights, load_model, rounded_weights


class WholeModel:
    """Float32 weights, with matrix products in the configured precision by autocast.

    Args:
        config: the run's `m_step` section.
        model: from `load_trainable`, or one that was trained before.
        device: where to train it.
    """

    def __init__(self, config: MStepConfig, model: Any, device: torch.device):
        self.config = config
        self.model = model.to(device)
        self.device = device
        self.packed = use_packed_attention(without_adapter(model))
        self.loss = CompletionLoss(model)
        self.autocast = torch.bfloat16 if config.precision == "bfloat16" else None

    def scores(self, rows: list[Row], dtype: str) -> tuple[float, ...]:
        """log π of each response with the present weights, rounded to the engine's dtype."""
        return self._scored(self.model, rows, dtype)

    def trained_scores(self, rows: list[Row], dtype: str) -> tuple[float, ...]:
        """`scores` after training, as the engine will use the weights: an adapter is merged, for good."""
        model = self.model if self.config.lora is None else self.model.merge_and_unload()
        return self._scored(model, rows, dtype)

    def _scored(self, model: Any, rows: list[Row], dtype: str) -> tuple[float, ...]:
        with rounded_weights(model, dtype), torch.inference_mode():
            return logprobs(CompletionLoss(model).eval(), self.packed, rows, self.device)

    def save(self, folder: Path) -> None:
        """Write the weights, or the adapter."""
        if self.config.save_dtype != "float32":
            cast_weights(self.model, self.config.save_dtype)
        self.model.save_pretrained(folder)


def logprobs(loss: Any, packed: bool, rows: list[Row], device: torch.device) -> tuple[float, ...]:
    """log π of each row's completion, by a `CompletionLoss`; its weights are 1."""
    collator = Collator(packed, pad_id=0, shared=False)
    return tuple(-float(loss(on_device(collator([row]), device))) for row in rows)


def set_checkpointing(model: Any, on: bool) -> None:
    """Whether a model's backward pass computes activations again."""
    if on:
        without_adapter(model).gradient_checkpointing_enable({"use_reentrant": False})
    else:
        without_adapter(model).gradient_checkpointing_disable()


def load_trainable(path: str, lora: LoRAConfig | None, device: torch.device) -> Any:
    """The model to train, in float32: all weights, or an adapter, which continues the one in `path` if there is one.

    Raises:
        ConfigError: `path` holds an adapter of another size.
        SourceError: the model cannot be loaded.
    """
    model = load_model(path, "float32", device, trainable=lora is not None)
    if lora is None:
        return model
    if not hasattr(model, "peft_config"):
        return with_adapter(model, lora)
    held = model.peft_config["default"]
    if (held.r, held.lora_alpha) != (lora.r, lora.alpha):
        raise ConfigError(
            f"{path} holds an adapter with r={held.r} and alpha={held.lora_alpha}; the config asks for r={lora.r} "
            f"and alpha={lora.alpha}"
        )
    return model


def with_adapter(model: Any, lora: LoRAConfig) -> Any:
    """A model with a new adapter, which changes nothing yet."""
    from peft import LoraConfig, get_peft_model

    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=modules,
            task_type="CAUSAL_LM",
        ),
    )

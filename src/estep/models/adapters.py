"""The weights of a LoRA adapter merged into its base model, one tensor at a time.

A merged weight is W + s · B A, in float32, where s is alpha / r (with rsLoRA, alpha / √r). Only one merged tensor is in
memory at a time, and nothing is written. Adapters that do more than this (DoRA, trained biases, layers trained in full)
and base models without safetensors are refused: `obstacle` names the reason, and `load_model` merges them with PEFT.
"""

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estep.errors import DataError
from estep.models.loading import adapter_base, silence_logs

_PREFIX = "base_model.model."
_SUFFIX_A, _SUFFIX_B = ".lora_A.weight", ".lora_B.weight"
_SUPPORTED = frozenset(
    {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
        *("use_rslora", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
        "runtime_config",
    }
)
"""Options of PEFT's `LoraConfig` that a merge of this form covers, whatever their value."""
_PLAIN_STARTS = (True, False, "gaussian")
"""Values of `init_lora_weights` that leave the base model's weights as they are."""

_PLAIN_DTYPES = ("F32", "BF16", "F16")
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class _Update:
    """The update of one weight."""

    a: str
    """The name of A in the adapter's file; that of B has another suffix."""
    scale: float
    transposed: bool
    """Whether the layer keeps its weight as [inputs, outputs]."""

    @property
    def b(self) -> str:
        return self.a.removesuffix(_SUFFIX_A) + _SUFFIX_B


@dataclass(frozen=True)
class _Merge:
    """What is to be merged."""

    adapter: Path
    shards: list[Path]
    """The safetensors files of the base model."""
    updates: dict[str, _Update]
    """By the name of the base model's weight."""


class _NotMergeableError(Exception):
    """The reason why an adapter cannot be merged tensor by tensor."""


def obstacle(path: str) -> str | None:
    """Why an adapter cannot be merged tensor by tensor; None if it can.

    Args:
        path: the adapter's folder.
    """
    try:
        _read(path)
    except _NotMergeableError as error:
        return str(error)
    return None


def merged_tensors(path: str, device: Any = "cpu") -> Iterator[tuple[str, Any]]:
    """The weights of an adapter's base model with the adapter merged, by their names in the base model's files.

    Merged weights are in float32, the others as they are in the files.

    Args:
        path: the adapter's folder.
        device: the torch device to merge on.

    Raises:
        DataError: the adapter cannot be merged in this way; see `obstacle`.
    """
    from safetensors import safe_open

    try:
        merge = _read(path)
    except _NotMergeableError as error:
        raise DataError(f"{path}: {error}") from None
    with safe_open(merge.adapter, framework="pt", device=str(device)) as adapter:
        for shard in merge.shards:
            with safe_open(shard, framework="pt", device=str(device)) as weights:
                for name in weights.keys():  # noqa: SIM118
                    weight = weights.get_tensor(name)
                    update = merge.updates.get(name)
                    if update is not None:
                        delta = adapter.get_tensor(update.b).float() @ adapter.get_tensor(update.a).float()
                        weight = weight.float() + (delta.T if update.transposed else delta) * update.scale
                    yield name, weight


def model_tensors(path: str) -> Iterator[tuple[str, Any]]:
    """The weights of a model as its files hold them, one tensor at a time, with an adapter merged as `merged_tensors`
    does.

    Args:
        path: a model folder, or the folder of an adapter.

    Raises:
        DataError: an adapter cannot be merged in this way, or a model has no safetensors files.
    """
    from safetensors import safe_open

    if adapter_base(path) is not None:
        yield from merged_tensors(path)
        return
    try:
        shards = _shards(path)
    except _NotMergeableError as error:
        raise DataError(str(error)) from None
    for shard in shards:
        with safe_open(shard, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                yield name, weights.get_tensor(name)


def _read(path: str) -> _Merge:
    """Read the configuration and the names and shapes of an adapter and its base model.

    Raises:
        _NotMergeableError: they are not those of a plain LoRA adapter.
    """
    from peft import LoraConfig, PeftConfig
    from safetensors import safe_open

    config = PeftConfig.from_pretrained(path)
    if not isinstance(config, LoraConfig):
        raise _NotMergeableError(f"the adapter is of type {config.peft_type}")
    plain = LoraConfig().to_dict()
    for option, value in config.to_dict().items():
        if option not in _SUPPORTED and value != plain[option]:
            raise _NotMergeableError(f"the adapter sets {option}={value}")
    if config.init_lora_weights not in _PLAIN_STARTS:
        raise _NotMergeableError(f"the adapter sets init_lora_weights={config.init_lora_weights}")
    base = str(adapter_base(path))
    adapter = Path(path) / "adapter_model.safetensors"
    if not adapter.is_file():
        raise _NotMergeableError("the adapter has no adapter_model.safetensors")
    with ExitStack() as stack:
        tensors = stack.enter_context(safe_open(adapter, framework="pt"))
        shapes_of_lora = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        shards = _shards(base)
        shapes: dict[str, tuple[int, ...]] = {}
        for shard in shards:
            weights = stack.enter_context(safe_open(shard, framework="pt"))
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            shapes |= {name: tuple(at.get_shape()) for name, at in slices.items() if at.get_dtype() in _PLAIN_DTYPES}
    updates = _updates(config, shapes_of_lora, shapes)
    if any(name.endswith(_HEAD) for name in updates) and _tied(base):
        raise _NotMergeableError("the adapter changes a head that is tied to the embedding")
    return _Merge(adapter, shards, updates)


def _tied(base: str) -> bool:
    """Whether a model's head has the weights of its embedding."""
    from transformers import AutoConfig

    with silence_logs():
        return bool(AutoConfig.from_pretrained(base).get_text_config().tie_word_embeddings)


def _updates(config: Any, lora: dict[str, tuple[int, ...]], base: dict[str, tuple[int, ...]]) -> dict[str, _Update]:
    """The updates by the name of the base model's weight, checked against the shapes of all tensors."""
    from peft.utils.other import get_pattern_key

    updates = {}
    for name, (rank, inputs) in ((name, shape) for name, shape in lora.items() if name.endswith(_SUFFIX_A)):
        module = name.removeprefix(_PREFIX).removesuffix(_SUFFIX_A)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), module), config.lora_alpha)
        update = _Update(name, alpha / (math.sqrt(rank) if config.use_rslora else rank), bool(config.fan_in_fan_out))
        outputs = lora.get(update.b, (0,))[0]
        expected = (inputs, outputs) if update.transposed else (outputs, inputs)
        weight = f"{module}.weight"
        if base.get(weight) != expected:
            found = f"has the shape {base[weight]}" if weight in base else "is not there, or quantized"
            raise _NotMergeableError(f"the base model's {weight}, which the adapter changes, {found}")
        updates[weight] = update
    others = lora.keys() - {update.a for update in updates.values()} - {update.b for update in updates.values()}
    if others:
        raise _NotMergeableError(f"the adapter holds {min(others)}")
    return updates


def _shards(base: str) -> list[Path]:
    """The safetensors files of a model folder or hub id.

    Raises:
        _NotMergeableError: there are none.
    """
    from transformers.utils import cached_file

    def file(name: str) -> Path | None:
        with silence_logs():
            found = cached_file(
                base, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
            )
        return None if found is None else Path(found)

    whole = file("model.safetensors")
    if whole is not None:
        return [whole]
    index = file("model.safetensors.index.json")
    if index is None:
        raise _NotMergeableError(f"the model {base} has no safetensors files")
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    shards = [file(name) for name in names]
    if None in shards:
        raise _NotMergeableError(f"the model {base} lacks {names[shards.index(None)]}")
    return [shard for shard in shards if shard is not None]

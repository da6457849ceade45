"""A run's weights as the files of a model: an adapter merged, in one floating-point type, without holding the model in
memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from estep.models.adapters import model_tensors, obstacle
from estep.models.loading import adapter_base, cast_weights, load_model, silence_logs

SHARD_BYTES = 5_000_000_000
"""A file of weights holds at most so many bytes, unless a single tensor is larger."""


def write_weights(weights: str, folder: Path, dtype: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the configuration and the weights of a model to a folder, as `save_pretrained` names them.

    Adapters that cannot be merged tensor by tensor are merged by PEFT, with the model in memory.

    Args:
        weights: a folder with a model or a LoRA adapter.
        folder: an existing folder.
        dtype: `float32`, `bfloat16` or `float16`.
        shard_bytes: the largest file; at least one tensor is in each.
    """
    base = adapter_base(weights)
    if base is not None and obstacle(weights) is not None:
        model = load_model(weights, "float32", "cpu")
        cast_weights(model, dtype)
        with silence_logs():
            model.config.dtype = dtype
            model.save_pretrained(folder, max_shard_size=shard_bytes)
        return
    _write_config(base or weights, folder, dtype)
    files: list[list[str]] = []
    total = 0
    for tensors in _shards(weights, dtype, shard_bytes):
        _save(tensors, folder / _part(len(files)))
        files.append(list(tensors))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) == 1:
        (folder / _part(0)).rename(folder / "model.safetensors")
        return
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    for number, name in enumerate(names):
        (folder / _part(number)).rename(folder / name)
    weight_map = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_config(path: str, folder: Path, dtype: str) -> None:
    from transformers import AutoConfig

    with silence_logs():
        config = AutoConfig.from_pretrained(path)
        config.dtype = dtype
        config.save_pretrained(folder)


def _shards(weights: str, dtype: str, shard_bytes: int) -> Iterator[dict[str, Any]]:
    """The tensors in the order of the model's files, as many at a time as fit a file."""
    import torch

    shard: dict[str, Any] = {}
    size = 0
    for name, tensor in model_tensors(weights):
        tensor = tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard


def _part(number: int) -> str:
    return f"part-{number}.safetensors"


def _save(tensors: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})

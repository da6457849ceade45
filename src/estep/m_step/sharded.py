"""A model to train whose weights, gradients and optimizer state are shared among several devices (FSDP2).

Each rank holds a part of every float32 weight. A layer's weights are gathered, in the precision of the matrix products,
just before the layer is computed, and its gradients are averaged over the ranks in float32. The first rank also keeps
the model in main memory: it reads it, hands out the parts, collects them after training and writes them.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from estep.errors import ConfigError
from estep.m_step.head import CompletionLoss, without_adapter
from estep.m_step.job import Row, TrainingJob
from estep.m_step.packing import use_packed_attention
from estep.m_step.steps import Ranks
from estep.m_step.whole import load_trainable, logprobs, with_adapter
from estep.models.loading import adapter_base, cast_weights
from estep.models.shape import layers_of

_PREFIX = "model."
"""What `CompletionLoss` puts before the names of a model's parameters."""


class ShardedModel:
    """The counterpart of `WholeModel`; all ranks call the same methods in the same order.

    Args:
        job: with the weights to start from.
        ranks: the processes; their process group is the default one.

    Raises:
        ConfigError: the model's layers cannot be told apart.
    """

    autocast = None  # the gathered weights have the dtype of the products

    def __init__(self, job: TrainingJob, ranks: Ranks):
        self.config = job.config
        self.ranks = ranks
        self.whole = load_trainable(job.start, job.config.lora, torch.device("cpu")) if ranks.first else None
        self._mesh = torch.distributed.device_mesh.init_device_mesh(ranks.device.type, (ranks.size,))
        self.model = _skeleton(job)
        if any(len(getattr(module, "lora_embedding_A", ())) for module in self.model.modules()):
            raise ConfigError("m_step.lora.target_modules names an embedding, which only m_step.devices=1 can adapt")
        self.packed = use_packed_attention(without_adapter(self.model))
        self.loss: Any = CompletionLoss(self.model)
        self._shard()
        self._hand_out()

    def _shard(self) -> None:
        compute = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
        # Inputs keep their dtype: the weights of the pairs are among them.
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
        plain = without_adapter(self.model)
        try:
            layers = layers_of(plain)
        except ValueError:
            kind = type(plain).__name__
            raise ConfigError(f"{kind} has no list of layers to share among devices; set m_step.devices=1") from None
        for layer in layers:
            fully_shard(layer, mesh=self._mesh, mp_policy=policy)
        fully_shard(self.loss, mesh=self._mesh, mp_policy=policy)

    def _hand_out(self) -> None:
        """Give every rank its part of the weights that the first rank has read, and all of the buffers."""
        known = dict(self.whole.named_parameters()) if self.whole is not None else {}
        parts: dict[int, torch.nn.Parameter] = {}
        for name, parameter in self.loss.named_parameters():
            if known:
                full = known[name.removeprefix(_PREFIX)].detach().to(self.ranks.device)
            else:
                full = torch.empty(parameter.shape, device=self.ranks.device)
            part = distribute_tensor(full, self._mesh, [Shard(0)])
            parts[id(parameter)] = torch.nn.Parameter(part, requires_grad=parameter.requires_grad)
        named = self.loss.named_parameters(remove_duplicate=False)  # a tied head has two names
        self.loss.load_state_dict({name: parts[id(parameter)] for name, parameter in named}, strict=False, assign=True)
        buffers = dict(self.whole.named_buffers()) if self.whole is not None else {}
        for path, module in self.model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    key = f"{path}.{name}" if path else name
                    filled = buffers[key] if buffers else torch.empty(buffer.shape, dtype=buffer.dtype)
                    module._buffers[name] = filled = filled.to(self.ranks.device)
                    torch.distributed.broadcast(filled, src=0)

    def scores(self, rows: list[Row], dtype: str) -> tuple[float, ...]:
        """log π of each response with the present weights, rounded to the engine's dtype."""
        self.loss.eval()
        with self._rounded(dtype), torch.no_grad():
            scores = logprobs(self.loss, self.packed, rows, self.ranks.device)
            self.loss.reshard()  # otherwise the weights outside of the layers stay gathered for a backward pass
        return scores

    def trained_scores(self, rows: list[Row], dtype: str) -> tuple[float, ...]:
        """`scores` after training, as the engine will use the weights: an adapter is merged, for good."""
        if self.config.lora is None:
            return self.scores(rows, dtype)
        self._merge()
        with self.model.disable_adapter():
            return self.scores(rows, dtype)

    @torch.no_grad()
    def _merge(self) -> None:
        """Add the adapter to the weights that it adapts; every rank adds the rows that it holds."""
        from peft.tuners.lora import LoraLayer

        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                a, b = (side["default"].weight.full_tensor() for side in (layer.lora_A, layer.lora_B))
                change = layer.scaling["default"] * (b @ a)
                if getattr(layer, "fan_in_fan_out", False):  # the layer keeps its weight transposed, as GPT-2's do
                    change = change.T
                mine = change.chunk(self.ranks.size)[self.ranks.rank : self.ranks.rank + 1]
                for rows in mine:  # none, if there are fewer rows than ranks
                    _part(layer.base_layer.weight).add_(rows)

    @contextlib.contextmanager
    def _rounded(self, dtype: str) -> Iterator[None]:
        """Weights rounded to a dtype, for the duration of the block."""
        kept = []
        for parameter in self.loss.parameters():
            part = _part(parameter)
            kept.append(part.clone())
            part.copy_(part.to(getattr(torch, dtype)))
        try:
            yield
        finally:
            for parameter, part in zip(self.loss.parameters(), kept, strict=True):
                _part(parameter).copy_(part)

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Collect the trained weights in the first rank's main memory, which writes them, or the adapter."""
        known = dict(self.whole.named_parameters()) if self.whole is not None else {}
        for name, parameter in self.loss.named_parameters():
            if parameter.requires_grad:
                assert isinstance(parameter, DTensor)
                full = parameter.full_tensor()
                if known:
                    known[name.removeprefix(_PREFIX)].copy_(full)
            if self.config.save_dtype != "float32":
                part = _part(parameter)
                part.copy_(part.to(getattr(torch, self.config.save_dtype)))
        if self.whole is not None:
            if self.config.save_dtype != "float32":
                cast_weights(self.whole, self.config.save_dtype)
            self.whole.save_pretrained(folder)
        self.whole = None


def _part(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter; shares its memory."""
    part = parameter.detach()
    assert isinstance(part, DTensor)
    return part.to_local()


def _skeleton(job: TrainingJob) -> Any:
    """The model to train, without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(adapter_base(job.start) or job.start)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model if job.config.lora is None else with_adapter(model, job.config.lora)

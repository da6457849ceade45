"""What vLLM 0.32 lacks on a CPU; see `vllm_adapter` for why."""

from typing import Any

import torch
from torch import Tensor


def use_kernels() -> None:
    """Make vLLM's layers use its RMSNorm kernel on a CPU, if it has one that they do not use."""
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.layernorm import RMSNorm

    if "RMSNorm" in op_registry_oot or not hasattr(torch.ops._C, "fused_add_rms_norm"):
        return

    @RMSNorm.register_oot
    class KernelRMSNorm(RMSNorm):
        def forward_oot(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
            return self.forward_cpu(x, residual)

        def forward_cpu(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
            # The kernel needs contiguous rows; a query taken from a fused projection is not contiguous.
            plain = x.is_contiguous() and (residual is None or residual.is_contiguous())
            ordinary = self.has_weight and self.variance_size_override is None and self.weight.dtype == x.dtype
            if not (plain and ordinary):
                return self.forward_native(x, residual)
            if residual is None:
                out = torch.empty_like(x)
                torch.ops._C.rms_norm(out, x, self.weight.data, self.variance_epsilon)
                return out
            torch.ops._C.fused_add_rms_norm(x, residual, self.weight.data, self.variance_epsilon)
            return x, residual


def repack_tied_head(worker: Any) -> None:
    """Update a language-model head that is tied to the embedding.

    On a CPU, vLLM keeps a repacked copy of each layer's weights for its matmuls and updates it when it loads the layer.
    A tied head is loaded as part of the embedding, so its copy would keep the former weights.
    """
    head = getattr(worker.model_runner.get_model(), "lm_head", None)
    if head is not None and hasattr(head, "cpu_linear"):
        head.quant_method.process_weights_after_loading(head)


def lean_logprobs(engine: Any) -> None:
    """Compute a sampled token's log-probability from its logits, without ranking the vocabulary."""
    from vllm.v1.outputs import LogprobsTensors

    def gather(logits: Tensor, num_logprobs: int, token_ids: Tensor) -> Any:
        chosen = token_ids[:, None]
        logprobs = logits.gather(1, chosen) - logits.logsumexp(-1, keepdim=True)
        return LogprobsTensors(chosen.to(torch.int32), logprobs, torch.zeros_like(token_ids))

    worker = engine.model_executor.driver_worker.worker
    worker.model_runner.sampler.gather_logprobs = gather

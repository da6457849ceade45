"""The loss in chunks is the loss of the model's own forward pass, with the logits of one chunk at a time."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from estep.m_step import head
from estep.m_step.head import CHUNKED, IGNORED, CompletionLoss, completion_nll, decoder_and_head
from estep.m_step.packing import pack, register

TINY = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEQUENCES = [[7, 8, 9, 20, 21, 30, 31], [7, 8, 9, 22, 32], [7, 8, 9, 23, 33, 34]]
TARGETS = [[1.0, 0.5, 2.0], [0.25], [3.0, 1.5]]
"""The weights of the sequences' last tokens."""


def tiny(kind: str, attention: str = "sdpa") -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **TINY), dtype=torch.float64, attn_implementation=attention
        ).train()


def padded() -> dict[str, Tensor]:
    """Inputs, labels and weights, one sequence per row."""
    longest = max(len(ids) for ids in SEQUENCES)
    labels = torch.full((3, longest), IGNORED)
    weights = torch.zeros(3, longest)
    ids, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    for row, (sequence, its_weights) in enumerate(zip(SEQUENCES, TARGETS, strict=True)):
        end, start = len(sequence) - 1, len(sequence) - 1 - len(its_weights)
        ids[row, : end + 1], mask[row, : end + 1] = torch.tensor(sequence), 1
        labels[row, start:end] = torch.tensor(sequence[start + 1 :])
        weights[row, start:end] = torch.tensor(its_weights)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "weights": weights}


def packed() -> dict[str, Any]:
    """The same in one row: prefix, then what each sequence adds."""
    rows, whole = padded(), pack(SEQUENCES, 3)
    kept = [slice(3, len(sequence)) for sequence in SEQUENCES]

    def joined(name: str) -> Tensor:
        return torch.cat([rows[name][0, :3], *(rows[name][n, part] for n, part in enumerate(kept))])[None]

    return {**whole._asdict(), "labels": joined("labels"), "weights": joined("weights")}


def by_own_forward(model: Any, batch: dict[str, Any]) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "weights")}
    logprobs = model(**inputs, use_cache=False).logits.log_softmax(-1)
    scored = batch["labels"] != IGNORED
    chosen = logprobs[scored].gather(1, batch["labels"][scored][:, None])[:, 0]
    return -(chosen * batch["weights"][scored]).sum()


def loss_and_gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # transformers computes norms in float32 whatever the weights are.
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6 * float(value.abs().max())), name


@pytest.mark.parametrize("kind", sorted(CHUNKED))
def test_the_loss_of_a_listed_model_is_that_of_its_own_forward_pass(kind: str) -> None:
    model, batch = tiny(kind), padded()
    assert decoder_and_head(model)[0] is not None
    expected = loss_and_gradients(model, by_own_forward(model, batch))
    assert len(expected) > 10
    for chunk in (100, 4, 1):
        assert_equal(loss_and_gradients(model, CompletionLoss(model, chunk)(batch)), expected)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
def test_a_model_that_scales_its_logits_computes_them_itself(kind: str) -> None:
    model, batch = tiny(kind), padded()
    model.config.logit_scale = model.logit_scale = 0.3  # cohere; the others scale by default or by the next line
    model.config.logits_scaling = 3.0
    assert decoder_and_head(model) == (None, None)
    expected = loss_and_gradients(model, by_own_forward(model, batch))
    assert_equal(loss_and_gradients(model, CompletionLoss(model, 1)(batch)), expected)


def test_a_model_with_code_of_its_own_computes_its_logits_itself() -> None:
    from transformers import LlamaForCausalLM

    class Doubled(LlamaForCausalLM):
        pass

    model = Doubled(AutoConfig.for_model("llama", **TINY))
    assert decoder_and_head(model) == (None, None)


@pytest.mark.parametrize("chunk", [100, 2])
def test_a_packed_row_gives_the_loss_of_the_padded_batch(chunk: int) -> None:
    model = tiny("qwen2")
    expected = loss_and_gradients(model, by_own_forward(model, padded()))
    model = tiny("qwen2", register())
    assert_equal(loss_and_gradients(model, CompletionLoss(model, chunk)(packed())), expected)


def test_one_chunk_is_the_models_own_computation_to_the_last_bit() -> None:
    model, batch = tiny("qwen2", register()).float(), packed()
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "weights")}
    positions = (batch["labels"][0] != IGNORED).nonzero()[:, 0]
    logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits[0]
    nll = cross_entropy(logits, batch["labels"][0, positions], reduction="none")
    expected = loss_and_gradients(model, (nll * batch["weights"][0, positions]).sum())
    found = loss_and_gradients(model, completion_nll(model, inputs, batch["labels"], batch["weights"]))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("chunk", [100, 2])
def test_an_adapter_is_trained_in_chunks(chunk: int) -> None:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(tiny("qwen2"), config).double()
    expected = loss_and_gradients(model, by_own_forward(model, padded()))
    assert all("lora" in name for name in expected if name != "loss")
    assert decoder_and_head(model)[0] is not None
    assert_equal(loss_and_gradients(model, CompletionLoss(model, chunk)(padded())), expected)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_logits_of_one_chunk_live_at_a_time(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watched(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        assert logits.dtype == torch.float32
        alive.append(sum(len(one) for ref in seen if (one := ref()) is not None))
        alive[-1] += len(logits)
        seen.append(weakref.ref(logits))
        return cross_entropy(logits, targets, **options)

    monkeypatch.setattr(head, "cross_entropy", watched)
    model = tiny("llama").float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = CompletionLoss(model, 2)(padded())  # 6 tokens: 3 chunks
    assert len(seen) == 3
    loss.backward()
    assert len(seen) == 6
    assert max(alive) == 2
    # In one chunk, nothing is computed again.
    seen.clear()
    CompletionLoss(model, 6)(padded()).backward()
    assert len(seen) == 1


def test_a_score_in_chunks_is_that_of_one_chunk() -> None:
    model = tiny("llama").eval()
    with torch.inference_mode():
        score = CompletionLoss(model, 2)(padded())
        assert float(score) == pytest.approx(float(by_own_forward(model, padded())), rel=1e-6)


def test_a_batch_without_a_target_has_no_loss_and_can_be_trained() -> None:
    batch = padded()
    batch["labels"].fill_(IGNORED)
    model = tiny("llama")
    found = loss_and_gradients(model, CompletionLoss(model, 2)(batch))
    assert float(found["loss"]) == 0
    assert all(not gradient.any() for gradient in found.values())


@pytest.fixture
def one_rank() -> Iterator[Any]:
    """A mesh of this process alone."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_chunks_work_under_fsdp(one_rank: Any, tied: bool, lora: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from torch.distributed.fsdp import fully_shard

    def built() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model("qwen2", **TINY, tie_word_embeddings=tied), attn_implementation=register()
            )
            model.gradient_checkpointing_enable({"use_reentrant": False})
            if lora:
                model.enable_input_require_grads()
                config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
                model = get_peft_model(model, config)
        return model.train()

    plain = built()
    expected = loss_and_gradients(plain, CompletionLoss(plain, 100)(packed()))
    sharded = built()
    base = sharded.get_base_model() if lora else sharded
    for layer in base.model.layers:
        fully_shard(layer, mesh=one_rank)
    loss = fully_shard(CompletionLoss(sharded, 2), mesh=one_rank)
    found = loss_and_gradients(sharded, loss(packed()))
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in found.items()}
    assert_equal(whole, expected)

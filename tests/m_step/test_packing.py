"""A packed batch gives the loss and the gradients of the plain one."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from estep.m_step import attention
from estep.m_step.attention import packed_attention
from estep.m_step.batches import Collator
from estep.m_step.head import CompletionLoss
from estep.m_step.job import Row
from estep.m_step.packing import NAME, pack, packable, register, use_packed_attention
from estep.models.tokens import common_prefix

SHARED = [7, 8, 9, 10, 11]
BATCHES: dict[str, list[tuple[list[int], list[int]]]] = {
    "a shared prefix": [([*SHARED, 20, 21], [30, 31]), ([*SHARED, 22], [32, 33, 34]), ([*SHARED, 23, 24, 25], [35])],
    "nothing shared": [([20, 21], [30, 31]), ([22], [32, 33, 34]), ([23, 24, 25], [35])],
    "the same prompt": [(SHARED, [30, 31]), (SHARED, [30, 32, 33]), (SHARED, [34])],
    "the same pair twice": [(SHARED, [30, 31]), (SHARED, [30, 31])],
    "a prompt that begins another": [(SHARED[:3], [30]), (SHARED, [31, 32])],
    "one pair": [(SHARED, [30, 31])],
}


def rows_of(pairs: Sequence[tuple[list[int], list[int]]]) -> list[Row]:
    return [
        {"input_ids": prompt + completion, "weights": [1.0 + 0.5 * n for n in range(len(completion))]}
        for prompt, completion in pairs
    ]


def loss_of(model: Any, rows: list[Row], collator: Collator) -> torch.Tensor:
    loss: torch.Tensor = CompletionLoss(model)(collator(rows))
    return loss / sum(len(row["weights"]) for row in rows)


def by_hand(model: Any, rows: list[Row]) -> torch.Tensor:
    """The loss from one plain forward pass a pair."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        ids, weights = row["input_ids"], row["weights"]
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        prompt = len(ids) - len(weights)
        for place, weight in enumerate(weights, prompt):
            total = total - weight * logprobs[place - 1, ids[place]]
        tokens += len(weights)
    return total / tokens


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def llama(path: str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, **options)


@pytest.mark.parametrize("limit", [400_000, 0], ids=["products", "torch's own"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("pairs", BATCHES.values(), ids=BATCHES.keys())
def test_loss_and_gradients_are_those_of_the_plain_computation(
    tiny_model: str, pairs: list[tuple[list[int], list[int]]], lora: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_SHARES", limit)

    def built(**options: Any) -> Any:
        model = llama(tiny_model, **options)
        if lora:
            from peft import LoraConfig, get_peft_model

            with torch.random.fork_rng():
                torch.manual_seed(0)
                config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
                model = get_peft_model(model, config).double()  # PEFT makes its own weights float32
        return model

    rows = rows_of(pairs)
    plain = built(attn_implementation="sdpa")
    expected_loss = by_hand(plain, rows)
    expected = gradients(plain, expected_loss)
    assert len(expected) > 10
    for packed, shared in ((True, True), (True, False), (False, True)):
        model = built(attn_implementation=register() if packed else "sdpa")
        loss = loss_of(model, rows, Collator(packed, pad_id=1, shared=shared))
        assert float(loss.detach()) == pytest.approx(float(expected_loss.detach()), rel=1e-12)
        found = gradients(model, loss)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = float(gradient.abs().max())
            # transformers computes norms in float32 whatever the weights are, so the gradients carry its rounding.
            assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6 * scale), (name, packed, shared)


def test_the_hidden_states_are_equal_in_double_precision(tiny_model: str) -> None:
    sequences = [prompt + completion for prompt, completion in BATCHES["a shared prefix"]]
    batch = pack(sequences, 5)
    packed = llama(tiny_model, attn_implementation=register()).model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, layout=batch.layout
    )
    row = packed.last_hidden_state[0]
    plain = llama(tiny_model).model
    start = 5
    for sequence in sequences:
        alone = plain(torch.tensor([sequence])).last_hidden_state[0]
        end = start + len(sequence) - 5
        assert torch.allclose(row[:5], alone[:5], atol=1e-12)
        assert torch.allclose(row[start:end], alone[5:], atol=1e-12)
        start = end
    assert start == row.shape[0]


def test_a_plain_sequence_needs_no_layout(tiny_model: str) -> None:
    ids = torch.tensor([[7, 8, 9, 20, 30]])
    expected = llama(tiny_model)(ids).logits
    assert torch.allclose(llama(tiny_model, attn_implementation=register())(ids).logits, expected, atol=1e-12)


def test_the_shared_part_is_computed_once() -> None:
    rows = rows_of(BATCHES["a shared prefix"])
    batch = Collator(True, pad_id=1)(rows)
    assert batch["input_ids"].tolist() == [[*SHARED, 20, 21, 30, 31, 22, 32, 33, 34, 23, 24, 25, 35]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8]]
    labels = [-100] * 17
    labels[6:8], labels[9:12], labels[15] = [30, 31], [32, 33, 34], 35
    assert batch["labels"].tolist() == [labels]
    assert batch["weights"][0, 9:12].tolist() == [1.0, 1.5, 2.0]
    apart = Collator(True, pad_id=1, shared=False)(rows)
    assert apart["input_ids"].shape == (1, 9 + 9 + 9)


def test_the_token_that_predicts_a_completion_is_each_pairs_own() -> None:
    # The whole prompt is the same: its last token still stands once for every pair, since it predicts another token.
    batch = Collator(True, pad_id=1)(rows_of(BATCHES["the same prompt"]))
    assert batch["layout"]["prefix"] == len(SHARED) - 1
    assert (batch["labels"] != -100).sum() == 6


def test_the_common_prefix_of_sequences() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]], 9) == 2
    assert common_prefix([[1, 2, 3], [1, 2, 3]], 9) == 3
    assert common_prefix([[1, 2, 3], [1, 2, 3]], 2) == 2
    assert common_prefix([[1], [2]], 9) == 0
    assert common_prefix([[1, 2]], 1) == 1


def test_models_with_windows_or_scores_of_their_own_are_not_packed() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    assert packable(Qwen2ForCausalLM, Qwen2Config(**sizes, **heads))
    assert not packable(MistralForCausalLM, MistralConfig(**sizes, **heads, sliding_window=16))
    assert packable(MistralForCausalLM, MistralConfig(**sizes, **heads, sliding_window=None))

    class Capped(Qwen2Config):
        attn_logit_softcapping = 30.0

    assert not packable(Qwen2ForCausalLM, Capped(**sizes, **heads))
    assert not packable(torch.nn.Linear, Qwen2Config(**sizes, **heads))
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    assert not packable(Gemma3ForConditionalGeneration, Gemma3Config())  # the windows stand in its text part


def test_a_model_that_cannot_switch_keeps_its_own(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(tiny_model)
    assert use_packed_attention(model)
    assert model.config._attn_implementation == NAME
    other = llama(tiny_model)
    monkeypatch.setattr(type(other), "set_attn_implementation", lambda self, name: None)
    assert not use_packed_attention(other)


def test_a_layout_that_gets_lost_is_an_error_and_not_a_wrong_loss(tiny_model: str) -> None:
    model = llama(tiny_model, attn_implementation=register()).train()
    with pytest.raises(RuntimeError, match="LlamaAttention does not pass on a packed batch's layout"):
        model(torch.tensor([[7, 8, 9]]))


def test_sdpa_may_return_its_heads_in_any_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    def transposed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
        return out.transpose(1, 2).contiguous().transpose(1, 2)  # as CUDA's memory-efficient kernel does

    batch = pack([[1, 2, 3, 4], [1, 2, 4, 5]], 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        q, k, v = torch.randn(1, 6, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    module = torch.nn.Module()
    expected, _ = packed_attention(module, q, k, v, None, layout=batch.layout)
    monkeypatch.setattr(attention, "_SHARES", 0)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", transposed)
    found, _ = packed_attention(module, q, k, v, None, layout=batch.layout)
    assert torch.allclose(found, expected, atol=1e-6)


def test_value_heads_may_have_another_size() -> None:
    batch = pack([[1, 2, 3], [1, 2, 4]], 2)
    q, v = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 6)
    out, _ = packed_attention(torch.nn.Module(), q, q, v, None, layout=batch.layout)
    assert out.shape == (1, 4, 2, 6)


def test_dropout_reaches_attention() -> None:
    batch = pack([[1, 2, 3], [1, 2, 4]], 2)
    q = torch.ones(1, 2, 4, 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out, _ = packed_attention(torch.nn.Module(), q, q, q, None, dropout=0.5, layout=batch.layout)
    assert not torch.allclose(out, torch.ones_like(out))
    assert torch.allclose(
        packed_attention(torch.nn.Module(), q, q, q, None, layout=batch.layout)[0], torch.ones(1, 4, 2, 4)
    )

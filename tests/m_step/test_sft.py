"""The M-step against hand-computed likelihoods, and against TRL's own loss."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM

from estep.config import LoRAConfig, MStepConfig
from estep.errors import DataError
from estep.m_step.base import MStepInput, MStepResult, learning_rate_at, read_m_step
from estep.m_step.sft import SFTMStep
from estep.models.loading import adapter_base, cast_weights, load_chat, load_model
from estep.records import ModelRef, Pair

PAIRS = [
    Pair(f"q{n}", f"q{n}#0.0", ({"role": "user", "content": "Text: " + "word " * n},), f"Evaluation: fine. Score: {n}")
    for n in range(5)
]


def train(
    path: str, folder: Path, pairs: list[Pair] = PAIRS, context: int | None = 2048, **config: object
) -> MStepResult:
    trained = step(context, **config)(work(path, folder, pairs))
    assert trained is not None
    return trained


def step(context: int | None = 2048, on_overlength: str = "stop", **config: object) -> SFTMStep:
    settings = {"precision": "float32", "batch_size": 8, "device": "cpu", **config}
    return SFTMStep(MStepConfig.model_validate(settings), context, on_overlength, "float32")


def work(path: str, folder: Path, pairs: list[Pair] = PAIRS, rate: float = 1e-3) -> MStepInput:
    return MStepInput(ModelRef(path), 1, pairs, rate, 5, folder, lambda messages, text: -1.0, lambda count: None)


def nll(path: str, pairs: list[Pair]) -> tuple[float, int]:
    """Σ −log π over completion tokens (end of turn included), by a plain forward pass, and their number."""
    chat = load_chat(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    total, count = 0.0, 0
    for pair in pairs:
        prompt = chat.tokenizer.apply_chat_template(list(pair.prompt), add_generation_prompt=True, tokenize=False)
        ids = chat.tokenizer(prompt + pair.completion + "<|im_end|>", add_special_tokens=False)["input_ids"]
        start = len(chat.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(logprobs[position - 1, ids[position]]) for position in range(start, len(ids)))
        count += len(ids) - start
    return total, count


def test_the_learning_rate_falls_linearly_over_the_iterations() -> None:
    # The paper: 1e-6 to 1e-7 over K = 5, a step of 0.225e-6 an iteration.
    rates = [learning_rate_at(k, 5, 1e-6, 1e-7) for k in range(1, 6)]
    assert rates == pytest.approx([1e-6, 7.75e-7, 5.5e-7, 3.25e-7, 1e-7], rel=1e-12)
    assert learning_rate_at(1, 1, 1e-6, 1e-7) == 1e-6
    with pytest.raises(ValueError, match="from 1 to 5, got 6"):
        learning_rate_at(6, 5, 1e-6, 1e-7)


def test_the_loss_is_the_mean_nll_of_completion_tokens(tiny_model: str, tmp_path: Path) -> None:
    trained = train(tiny_model, tmp_path / "weights")
    total, count = nll(tiny_model, PAIRS)
    assert trained.losses == pytest.approx([total / count], rel=1e-5)
    assert trained.completion_tokens == count


def test_the_losses_and_the_weights_of_a_training_equal_trls(tiny_model: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from estep.models.loading import silence_logs

    pairs = [replace(pair, question_id=f"{n}-{pair.question_id}") for n in range(3) for pair in PAIRS]
    chat = load_chat(tiny_model)
    rows = []
    for pair in pairs:
        prompt, completion = chat.prompt_ids(pair.prompt), chat.completion_ids(pair.completion)
        rows.append({"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)})
    with silence_logs():
        args = SFTConfig(
            str(tmp_path / "trl"),
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            per_device_train_batch_size=4,
            num_train_epochs=1,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            max_length=None,
            completion_only_loss=True,
            seed=5,
            data_seed=5,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        model = load_model(tiny_model, "float32", "cpu")
        trainer = SFTTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=chat.tokenizer)
        trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(theirs) == 4
    assert train(tiny_model, tmp_path / "weights", pairs, batch_size=4).losses == pytest.approx(theirs, rel=1e-3)
    ours = load_model(str(tmp_path / "weights"), "float32", "cpu")
    for a, b in zip(ours.parameters(), model.parameters(), strict=True):
        # Four steps of 1e-3; AdamW's are about that large whatever the gradient, so rounding shows.
        assert torch.allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 4}], ids=["full", "lora"])
def test_activations_that_are_computed_again_change_nothing(
    tiny_model: str, tmp_path: Path, lora: dict[str, int] | None
) -> None:
    once = train(tiny_model, tmp_path / "once", batch_size=2, lora=lora, gradient_checkpointing=False)
    again = train(tiny_model, tmp_path / "again", batch_size=2, lora=lora, gradient_checkpointing=True)
    assert len(once.losses) == 3
    assert again.losses == pytest.approx(once.losses, rel=1e-5)


def test_a_batch_that_is_split_to_save_memory_is_logged(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny_model, tmp_path / "whole", batch_size=4)
    monkeypatch.setattr("estep.m_step.training.device_memory", lambda device: 1.0)
    told: list[str] = []
    cut = step(batch_size=4)(replace(work(tiny_model, tmp_path / "cut"), log=told.append))
    assert cut is not None
    assert cut.losses == pytest.approx(whole.losses, rel=1e-3)
    assert "a gradient step takes 4 forward passes" in told[0]
    assert "gradient checkpointing is on" in told[1]


def test_micro_batches_leave_the_loss_and_the_weights_as_they_are(tiny_model: str, tmp_path: Path) -> None:
    whole = train(tiny_model, tmp_path / "whole", batch_size=4)
    parts = train(tiny_model, tmp_path / "parts", batch_size=4, micro_batch_size=2)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    assert whole.steps == parts.steps == 2  # five pairs by four: no remainder is dropped
    one, other = (load_model(str(tmp_path / name), "float32", "cpu") for name in ("whole", "parts"))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        # AdamW's first steps are about the learning rate in size whatever the gradient, so rounding shows more.
        assert torch.allclose(a, b, atol=2e-4)


# Weights


def weighed_nll(path: str, pairs: list[Pair]) -> tuple[float, int]:
    """Σ w · nll over pairs, and the number of completion tokens."""
    found = [(pair.weight, *nll(path, [pair])) for pair in pairs]
    return sum(weight * total for weight, total, _ in found), sum(count for *_, count in found)


def test_a_pairs_weight_multiplies_its_log_likelihood(tiny_model: str, tmp_path: Path) -> None:
    pairs = [replace(pair, weight=weight) for pair, weight in zip(PAIRS, (1.0, 0.5, 0.25, 2.0, 0.0), strict=True)]
    total, count = weighed_nll(tiny_model, pairs)
    tokens = train(tiny_model, tmp_path / "tokens", pairs)
    assert tokens.losses == pytest.approx([total / count], rel=1e-5)
    sequences = train(tiny_model, tmp_path / "sequences", pairs, loss_reduction="sequence")
    assert sequences.losses == pytest.approx([total / len(pairs)], rel=1e-5)


def test_a_pair_without_weight_is_a_pair_left_out(tiny_model: str, tmp_path: Path) -> None:
    weighed = [replace(pair, weight=float(n < 3)) for n, pair in enumerate(PAIRS)]
    one = train(tiny_model, tmp_path / "weighed", weighed, loss_reduction="sequence", max_grad_norm=1e9)
    other = train(tiny_model, tmp_path / "left-out", PAIRS[:3], loss_reduction="sequence", max_grad_norm=1e9)
    # Five pairs against three share the same sum; AdamW's first step does not depend on a gradient's scale.
    assert one.losses[0] * 5 == pytest.approx(other.losses[0] * 3, rel=1e-5)
    a, b = (load_model(str(tmp_path / name), "float32", "cpu") for name in ("weighed", "left-out"))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-4)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_micro_batches_share_one_denominator(tiny_model: str, tmp_path: Path, reduction: str) -> None:
    pairs = [replace(pair, weight=1.0 + n) for n, pair in enumerate(PAIRS)]
    losses = [
        train(
            tiny_model, tmp_path / f"{micro}", pairs, batch_size=4, micro_batch_size=micro, loss_reduction=reduction
        ).losses
        for micro in (1, 2, 4)
    ]
    assert losses[0] == pytest.approx(losses[2], rel=1e-3)  # the second step starts from slightly other weights
    assert losses[1] == pytest.approx(losses[2], rel=1e-3)


def test_the_answers_own_tokens_can_be_weighed(tiny_model: str, tmp_path: Path) -> None:
    text = "Evaluation: a 3 and a 4. Score: 3"
    span = (text.rindex("3"), text.rindex("3") + 1)
    pair = Pair("q", "q#0.0", PAIRS[0].prompt, text, 1.0, span)
    total, count = nll(tiny_model, [pair])
    prefix = Pair("q", "q#0.0", PAIRS[0].prompt, text[: span[0]])
    chat = load_chat(tiny_model)
    assert chat.tokens_of(text, *span) == [span[0]]  # the tokenizer's tokens are bytes
    prompt = chat.prompt_ids(prefix.prompt)
    ids = torch.tensor([prompt + chat.completion_ids(prefix.completion)[:-1]])
    with torch.no_grad():
        logits = load_model(tiny_model, "float32", "cpu")(ids).logits[0, -1]
    answer = -float(logits.log_softmax(-1)[chat.completion_ids("3")[0]])
    weighed = train(tiny_model, tmp_path / "weighed", [pair], answer_weight=5.0)
    assert weighed.losses == pytest.approx([(total + 4 * answer) / count], rel=1e-5)
    assert train(tiny_model, tmp_path / "plain", [pair]).losses == pytest.approx([total / count], rel=1e-5)


def test_weights_of_one_change_nothing(tiny_model: str, tmp_path: Path) -> None:
    pairs = [replace(pair, answer_span=(len(pair.completion) - 1, len(pair.completion))) for pair in PAIRS]
    train(tiny_model, tmp_path / "one", pairs, batch_size=2, answer_weight=1.0, loss_reduction="token")
    train(tiny_model, tmp_path / "two", batch_size=2)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


# What training does


def test_training_raises_the_likelihood_and_the_canary_detects_it(tiny_model: str, tmp_path: Path) -> None:
    trained = train(tiny_model, tmp_path / "weights", epochs=5)
    before, _ = nll(tiny_model, PAIRS)
    after, _ = nll(str(tmp_path / "weights"), PAIRS)
    assert after < before
    assert trained.canary.logprob == pytest.approx(-after, abs=5e-3)
    assert trained.canary.before == -5.0  # what `work` scores, for each of the five
    # "Evaluation: fine. Score: 3" is 26 bytes, each a token, and the end of turn.
    assert trained.canary.tokens == 5 * 27
    heavy = [replace(pair, weight=1.0 + (n == 2)) for n, pair in enumerate(PAIRS * 2)]
    canary = train(tiny_model, tmp_path / "heavy", heavy).canary
    assert [text for _, text in canary.responses] == [PAIRS[n].completion for n in (2, 4, 3, 2, 1, 0, 4, 3)]


def test_the_canary_knows_whether_training_shows_at_the_engines_precision(tiny_model: str, tmp_path: Path) -> None:
    assert train(tiny_model, tmp_path / "moved").canary.visible
    # A step of 1e-30 is lost in float32: an engine that scores as before is then right.
    still = step()(work(tiny_model, tmp_path / "still", rate=1e-30))
    assert still is not None
    assert not still.canary.visible
    # With init=base, the engine's weights in later iterations are not the ones that training starts from.
    later = replace(work(tiny_model, tmp_path / "later"), iteration=2)
    restarted = step(init="base")(later)
    assert restarted is not None
    assert not restarted.canary.visible


def test_a_record_without_a_token_count_is_still_read(tiny_model: str, tmp_path: Path) -> None:
    trained = train(tiny_model, tmp_path / "weights")
    path = tmp_path / "weights/m_step.json"
    content = json.loads(path.read_text())
    del content["canary"]["tokens"], content["canary"]["visible"]
    path.write_text(json.dumps(content))
    found = read_m_step(tmp_path / "weights")
    assert found is not None
    # 26 characters are taken for 26 // 4 + 1 = 7 tokens.
    assert found.canary == replace(trained.canary, tokens=5 * 7, visible=False)


def test_nothing_is_cut_off_at_trls_default_length(tiny_model: str, tmp_path: Path) -> None:
    long = Pair("long", "long#0.0", ({"role": "user", "content": "x" * 1500},), "Score: 4")
    trained = train(tiny_model, tmp_path / "weights", [long])
    total, count = nll(tiny_model, [long])
    assert trained.losses == pytest.approx([total / count], rel=1e-5)
    assert count == len("Score: 4") + 1  # bytes, and the end of turn


def test_a_pair_longer_than_the_context_stops_or_is_left_out(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"question q4: a training pair of \d+ tokens exceeds .* context of 70"):
        step(70)(work(tiny_model, tmp_path / "weights"))
    assert list(tmp_path.iterdir()) == []
    trained = step(70, "skip")(work(tiny_model, tmp_path / "weights"))
    assert trained is not None
    assert (trained.pairs, trained.left_out) == (4, 1)
    assert step(5, "skip")(work(tiny_model, tmp_path / "none")) is None


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generators_alone(tiny_model: str, tmp_path: Path) -> None:
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    train(tiny_model, tmp_path / "a", batch_size=2)
    assert random.getstate() == states[0]
    assert numpy.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.rand(3)
    train(tiny_model, tmp_path / "b", batch_size=2)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize("save_dtype", ["float32", "bfloat16"])
def test_a_second_step_reads_no_weights_and_changes_none(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_dtype: Literal["float32", "bfloat16"]
) -> None:
    def steps() -> SFTMStep:
        return SFTMStep(MStepConfig(batch_size=2, device="cpu", save_dtype=save_dtype), None, "stop", "bfloat16")

    first = work(tiny_model, tmp_path / "first")
    second = replace(first, start=ModelRef(str(tmp_path / "first"), 1), iteration=2, folder=tmp_path / "second")
    third = replace(second, folder=tmp_path / "third")
    going_on = steps()
    going_on(first)
    afresh = steps()(third)
    with monkeypatch.context() as patch:
        patch.setattr("estep.m_step.whole.load_model", None)
        gone_on = going_on(second)
    assert gone_on is not None
    assert afresh is not None
    assert gone_on.losses == afresh.losses
    assert gone_on.canary == afresh.canary
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second", "third")]
    assert weights[1] == weights[2] != weights[0]


def test_rounding_weights_leaves_the_rotary_frequencies(tiny_model: str) -> None:
    loaded, rounded = load_model(tiny_model, "bfloat16", "cpu"), load_model(tiny_model, "float32", "cpu")
    cast_weights(rounded, "bfloat16")
    ids = torch.arange(200)[None] % 50
    with torch.inference_mode():
        assert torch.equal(rounded(ids).logits, loaded(ids).logits)
    assert torch.equal(rounded.model.rotary_emb.inv_freq, loaded.model.rotary_emb.inv_freq)


def test_weights_are_an_ordinary_model_folder(tiny_model: str, tmp_path: Path) -> None:
    trained = train(tiny_model, tmp_path / "weights")
    assert json.loads((tmp_path / "weights/config.json").read_text())["dtype"] == "float32"
    assert load_chat(str(tmp_path / "weights")).end_id == load_chat(tiny_model).end_id
    assert read_m_step(tmp_path / "weights") == trained
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights"]


def test_lora_trains_only_the_adapter_and_continues_with_it(tiny_model: str, tmp_path: Path) -> None:
    lora = LoRAConfig(r=2, alpha=4).model_dump()
    first = train(tiny_model, tmp_path / "one", lora=lora)
    assert adapter_base(str(tmp_path / "one")) == tiny_model
    assert not (tmp_path / "one/model.safetensors").exists()
    # The adapter starts as the identity, so the first loss is the base model's.
    total, count = nll(tiny_model, PAIRS)
    assert first.losses == pytest.approx([total / count], rel=1e-5)
    second = step(lora=lora)(work(first.model.path, tmp_path / "two"))
    assert second is not None
    assert adapter_base(str(tmp_path / "two")) == tiny_model
    assert second.losses[0] < first.losses[0]


def test_a_failed_training_leaves_no_weights(tiny_model: str, tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    task = work(tiny_model, tmp_path / "weights")
    interrupted = MStepInput(**{**vars(task), "advance": interrupt})
    with pytest.raises(KeyboardInterrupt):
        step()(interrupted)
    assert list(tmp_path.iterdir()) == []

"""GRPO with hinted draws, on a tiny model: what is sampled, what is corrected, and when the clock runs."""

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import script, write_task
from estep.models.loading import load_chat, load_model, silence_logs
from estep.store.run import RunStore
from runs import a_run, run, settings

figure = script("grpo_figure", "examples")
TEMPERATURE = 5.0  # at 1, a random model's texts are so unlikely under another prompt that all weights are near 0


@pytest.fixture(scope="module")
def grpo() -> ModuleType:
    return script("grpo", "examples")


@pytest.fixture(scope="module")
def start(grpo: ModuleType, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of one iteration, whose task calls about every second text right."""
    folder = tmp_path_factory.mktemp("start")
    task = write_task(folder, few_shot="first", answer={"type": "python", "function": "verifiers:even_length"})
    engine = {"type": "transformers", "max_new_tokens": 8, "device": "cpu", "temperature": TEMPERATURE}
    m_step = {"learning_rate": 1e-3, "batch_size": 4, "precision": "float32"}
    run(tiny_model, task, settings(folder / "run", iterations=1, engine=engine, m_step=m_step))
    return grpo.read_start(str(folder / "run"))


def built(grpo: ModuleType, start: Any, folder: Path, *options: str) -> Any:
    """A trainer of two groups of four draws, which its first forward pass takes at once."""
    sizes = ["--group", "4", "--questions", "2", "--batch", "8", "--steps", "2"]
    parsed = grpo.parse(["unused", "--out", "unused", *sizes, *options])
    with silence_logs():
        return grpo.build_trainer(start, load_chat(start.model), parsed, str(folder))


def logprobs(start: Any, prompt: list[int], completion: list[int]) -> list[float]:
    """By a forward pass of this text alone."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logits = load_model(start.model, "float32", "cpu")(ids).logits[0, len(prompt) - 1 : -1]
    return (logits / TEMPERATURE).log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()


@pytest.mark.slow
def test_hinted_draws_have_the_plain_prompt_and_log_probabilities_under_the_hinted_one(
    grpo: ModuleType, start: Any, tmp_path: Path
) -> None:
    trainer, chat, asked = built(grpo, start, tmp_path, "--hinted", "0.5"), load_chat(start.model), start.train[:2]
    rows = [question for question in asked for _ in range(4)]
    rollout = trainer.rollout_func([list(start.task.prompt(question)) for question in rows], trainer)
    assert rollout["hinted"] == [True, True, False, False] * 2
    plain = [chat.prompt_ids(start.task.prompt(question)) for question in rows]
    hinted = [chat.prompt_ids(start.task.hinted_prompt(question)) for question in rows]
    assert rollout["prompt_ids"] == plain
    assert all(len(prompt) > len(other) for prompt, other in zip(hinted, plain, strict=True))
    for row, (completion, found) in enumerate(zip(rollout["completion_ids"], rollout["logprobs"], strict=True)):
        if rollout["hinted"][row]:
            assert found == pytest.approx(logprobs(start, hinted[row], completion), abs=1e-4)
            assert found != pytest.approx(logprobs(start, plain[row], completion), abs=1e-2)
        else:
            assert found == [None] * len(completion)


@pytest.mark.slow
def test_each_draw_is_weighted_by_its_importance(grpo: ModuleType, start: Any, tmp_path: Path) -> None:
    trainer, chat = built(grpo, start, tmp_path, "--hinted", "0.5"), load_chat(start.model)
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": list(start.task.prompt(q)), "id": q.id} for q in start.train[:2] for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)
    weights, lengths = [], batch["completion_mask"].sum(1).tolist()
    for row, length in enumerate(lengths):
        completion = batch["completion_ids"][row, :length].tolist()
        question = start.train[row // 4]
        plain, hinted = (
            sum(logprobs(start, chat.prompt_ids(prompt(question)), completion))
            for prompt in (start.task.prompt, start.task.hinted_prompt)
        )
        weights.append(min(3.0, float(torch.tensor(plain - hinted).exp())) if row % 4 < 2 else 1.0)
    assert batch["importance_sampling_ratio"][:, 0].tolist() == pytest.approx(weights, rel=1e-3)
    assert [weight == 1 for weight in weights] == [False, False, True, True] * 2
    # The policy has not moved since it sampled, so the ratio that PPO clips is 1, and the loss is −Σ w A / Σ tokens.
    advantages = batch["advantages"].tolist()
    assert any(advantages[row] for row in range(8) if row % 4 < 2)
    terms = [w * a * n for w, a, n in zip(weights, advantages, lengths, strict=True)]
    loss = trainer._compute_loss(trainer.model, batch).detach()
    assert float(loss) == pytest.approx(-sum(terms) / sum(lengths), rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_without_hinted_draws_it_is_trls_grpo(grpo: ModuleType, start: Any, tmp_path: Path) -> None:
    plain = built(grpo, start, tmp_path)
    assert type(plain) is grpo.GRPOTrainer
    assert plain.rollout_func is None
    with silence_logs():
        plain.train()
        rollout = grpo.HintedRollout(start, load_chat(start.model), group=4, hinted=0)
        also = grpo.CorrectedGRPOTrainer(
            model=load_model(start.model, "float32", "cpu"),
            reward_funcs=plain.reward_funcs,
            args=plain.args,
            train_dataset=plain.train_dataset,
            processing_class=plain.processing_class,
            rollout_func=rollout,
        )
        also.train()
    before = load_model(start.model, "float32", "cpu")
    for former, a, b in zip(before.parameters(), plain.model.parameters(), also.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
        assert not torch.equal(a, former)


def test_tests_of_the_policy_stop_the_clock(grpo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(grpo.time, "monotonic", lambda: now[0])

    def slow_test(model: Any) -> Any:
        now[0] += 1000
        return SimpleNamespace(accuracy=0.5, parse_rate=1.0)

    clock = grpo.Clock(slow_test, seconds=10, every=5)
    state, control = SimpleNamespace(global_step=0, max_steps=100), SimpleNamespace(should_training_stop=False)
    clock.on_train_begin(None, state, control, model=None)
    for _ in range(4):
        assert not control.should_training_stop
        now[0] += 3
        state.global_step += 1
        clock.on_step_end(None, state, control, model=None)
    assert control.should_training_stop
    assert [(point["seconds"], point["steps"]) for point in clock.points] == [(0, 0), (6, 2), (12, 4)]


@pytest.mark.slow
def test_the_script_writes_accuracies_and_the_figure_draws_them(grpo: ModuleType, start: Any, tmp_path: Path) -> None:
    sizes = ["--group", "4", "--questions", "2", "--batch", "4", "--steps", "2", "--every", "0"]
    folder = str(Path(start.model).parents[1])
    for name, options in {"plain": [], "half": ["--hinted", "0.5"]}.items():
        grpo.main([folder, "--out", str(tmp_path / f"{name}.json"), *sizes, *options])
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert [point["steps"] for point in found["points"]] == [0, 1, 2]
        trained = RunStore(Path(folder)).iteration(1).metrics()
        assert found["points"][0]["accuracy"] == trained.evaluation.accuracy
        assert len(found["steps"]) == 2
        assert ("right_hinted" in found["steps"][0]) == (name == "half")
    curves = [figure.read_curve(path) for path in (tmp_path / "plain.json", tmp_path / "half.json", Path(folder))]
    assert [curve.arm for curve in curves] == ["GRPO", "GRPO, 50% hinted", "filtered EM, pps"]
    figure.main([str(tmp_path / "a.png"), str(tmp_path / "plain.json"), str(tmp_path / "half.json"), folder])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_seconds_of_an_iteration_are_those_of_its_steps_and_of_loading(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    for number, seconds in enumerate(
        [{"evaluation": 9.0}, {"e_step": 2.0, "m_step": 3.0, "load": 0.5, "evaluation": 9}]
    ):
        path = folder / f"iteration-{number:02d}/metrics.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": seconds}))
    assert figure.read_curve(folder).seconds[:2] == [0.0, 5.5]


def test_a_mean_takes_each_runs_last_accuracy() -> None:
    curves = [figure.Curve("a", [0, 4, 8], [0.2, 0.4, 0.8]), figure.Curve("a", [0, 5], [0.4, 0.6])]
    mean = figure.mean_curve(curves)
    assert mean.seconds == [0, 4, 5, 8]
    assert mean.accuracy == pytest.approx([0.3, 0.4, 0.5, 0.7])


def test_weights_that_no_run_trained_are_refused(grpo: ModuleType, tiny_model: str) -> None:
    with pytest.raises(grpo.ConfigError, match="is not the folder of a run"):
        grpo.read_start(tiny_model)

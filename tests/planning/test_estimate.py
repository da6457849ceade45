"""Tokens and time by hand, without a network or a GPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import write_task
from estep.config.files import load_config
from estep.planning.devices import parse_devices
from estep.planning.lengths import FILL, PROMPT
from estep.planning.report import distinct, plan_run

SOURCE = str(Path(__file__).parents[2] / "src")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a plan opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_tokens_are_counted_by_hand() -> None:
    plan = plan_run(load_config("paper/helpsteer2"), parse_devices("2x80GB"), 1000, 250)
    by_name = {phase.name: phase for phase in plan.phases}
    # PPS draws once a question: 5 x 2,000 draws.
    assert (by_name["E-step"].prompt, by_name["E-step"].new) == (10_000 * 1000, 10_000 * 250)
    # The base model and five iterations answer 2,000 questions each.
    assert (by_name["evaluation"].prompt, by_name["evaluation"].new) == (12_000 * 1000, 12_000 * 250)
    # Eight of ten hinted draws are accepted.
    assert by_name["M-step"].prompt == pytest.approx(0.8 * 10_000 * 1250)


def test_a_proposal_that_draws_again_samples_more() -> None:
    # Rejection with a budget of 3, correct with 0.4: 1 + 0.6 + 0.36 draws; 0.784 of the questions are accepted.
    config = load_config("paper/helpsteer2", ["proposal={type: rejection, budget: 3}"])
    by_name = {phase.name: phase for phase in plan_run(config, parse_devices("2x80GB"), 1000, 250).phases}
    assert by_name["E-step"].new == pytest.approx(1.96 * 10_000 * 250)
    assert by_name["M-step"].prompt == pytest.approx(0.784 * 10_000 * 1250)


def test_answer_probabilities_read_a_response_for_each_answer() -> None:
    probable = load_config("paper/helpsteer2", ["evaluation.probabilities=true"])
    by_name = {phase.name: phase for phase in plan_run(probable, parse_devices("2x80GB"), 1000, 250).phases}
    # Five answers to each of 2,000 questions, for the base model and five iterations.
    assert by_name["answer probabilities"].prompt == 12_000 * (1000 + 5 * 250)
    assert by_name["answer probabilities"].seconds > 0


def test_scores_and_probes_are_counted_where_a_run_has_them() -> None:
    full = ["diagnostics=full", "validation_size=100"]
    scored = plan_run(load_config("paper/helpsteer2", full), parse_devices("2x80GB"), 1000, 250)
    by_name = {phase.name: phase for phase in scored.phases}
    # Eight of ten draws are correct, scored with and without the hint. The base model and five iterations answer 100
    # questions four times each, and five texts of each are scored.
    assert by_name["scores and probes"].prompt == pytest.approx(8000 * 2 * 1250 + 600 * (4 * 1000 + 5 * 1250))
    assert by_name["scores and probes"].new == 600 * 4 * 250
    assert by_name["scores and probes"].seconds > 0
    plain = plan_run(load_config("paper/helpsteer2"), parse_devices("2x80GB"), 1000, 250)
    assert "scores and probes" not in {phase.name for phase in plain.phases}
    config = load_config("paper/helpsteer2", [*full, "proposal={type: direct}"])
    direct = plan_run(config, parse_devices("2x80GB"), 1000, 250)
    (phase,) = [phase for phase in direct.phases if phase.name == "scores and probes"]
    assert phase.prompt == 600 * (4 * 1000 + 5 * 1250)  # its own texts are not scored
    weighted = ["proposal={type: rejection, budget: 2, n: 2}", "filters.weight_by=answer"]
    plain = plan_run(load_config("paper/helpsteer2", weighted), parse_devices("2x80GB"), 1000, 250)
    (phase,) = [phase for phase in plain.phases if phase.name == "scores and probes"]
    # 0.64 of 20,000 attempts end in a correct draw, which had no hint.
    assert (phase.prompt, phase.new) == (pytest.approx(12_800 * 1250), 0)
    assert phase.seconds > 0


def test_the_time_of_training_is_6_flop_for_each_token_and_parameter() -> None:
    tokens = 0.8 * 10_000 * 1250
    plan = plan_run(load_config("paper/helpsteer2"), parse_devices("2x80GB"), 1000, 250)
    # Two A100s at 0.35 of 312e12: 6 x 3.086e9 x 10e6 / (2 x 109.2e12) = 848 s.
    assert not plan.training.plan.checkpointing
    assert plan.phases[1].seconds == pytest.approx(6 * 3_085_938_688 * tokens / (2 * 0.35 * 312e12))
    assert round(plan.phases[1].seconds) == 848
    # Activations that are computed again cost 2 more, an adapter spares 2.
    for overrides, flop in ((["m_step.gradient_checkpointing=true"], 8), (["m_step.lora.r=16"], 4)):
        other = plan_run(load_config("paper/helpsteer2", overrides), parse_devices("2x80GB"), 1000, 250)
        assert other.phases[1].seconds == pytest.approx(plan.phases[1].seconds * flop / 6)


def test_the_time_of_sampling_is_that_of_reading_prompts_weights_and_cache() -> None:
    plan = plan_run(load_config("paper/helpsteer2"), parse_devices("1x80GB"), 1000, 250)
    # Prompts: 2 x 3.086e9 x 10e6 / (0.4 x 312e12) = 494.5 s. A step reads 6.17e9 bytes of weights and 256 sequences of
    # 1,250 tokens of 36,864 bytes, 11.8e9: 17.97e9 / (0.6 x 2.039e12) = 14.69 ms. 2.5e6 / 256 steps: 143.4 s.
    assert plan.phases[0].seconds == pytest.approx(494.5 + 143.4, abs=0.5)
    four = plan_run(load_config("paper/helpsteer2"), parse_devices("4x80GB"), 1000, 250)
    assert four.phases[0].seconds == pytest.approx(plan.phases[0].seconds / 4)


def test_rows_that_are_not_here_are_assumed_and_rows_of_a_file_are_measured(tmp_path: Path) -> None:
    devices = parse_devices("80GB")
    far = plan_run(load_config("paper/helpsteer2"), devices)
    assert (far.lengths.plain, far.lengths.response) == (PROMPT, FILL * 512)
    assert far.lengths.source == "assumed: 1000 tokens a prompt"
    config = load_config("demo", [f"task={write_task(tmp_path)}", "train_size=null", "test_size=4"])
    near = plan_run(config, devices)
    assert near.lengths.source == "the task's rows, at 4 characters per token"
    rows = len((tmp_path / "rows.jsonl").read_text().splitlines())
    assert (near.lengths.train, near.lengths.test) == (rows - 4, 4)
    # "You judge texts." and "Text: text number 0", each with 5 tokens of the chat template: 16 / 4 + 19 / 4 + 10.
    assert near.lengths.plain == pytest.approx(18.75, abs=1)
    assert near.lengths.hinted > near.lengths.plain


def test_questions_that_estep_generates_are_measured() -> None:
    plan = plan_run(load_config("demo-sums", ["train_size=null", "test_size=16"]), parse_devices("80GB"))
    assert plan.lengths.source == "the task's rows, at 4 characters per token"
    assert 20 < plan.lengths.plain < 60 < plan.lengths.proposed, "the proposal's prompt has the examples"
    assert plan.lengths.test == 16


def test_runs_of_a_study_with_one_placement_are_one_block() -> None:
    devices = parse_devices("4x80GB")
    plans = [
        plan_run(load_config("paper/helpsteer2", overrides), devices)
        for overrides in (["seed=1"], ["seed=2"], ["model=qwen2.5-7b"])
    ]
    blocks = distinct(plans)
    assert [(plan.config.model, runs) for plan, runs, _ in blocks] == [("qwen2.5-3b", 2), ("qwen2.5-7b", 1)]
    assert blocks[0][2] == plans[0].seconds + plans[1].seconds


# The command


def estep_plan(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "estep.cli", "plan", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(cwd),
            "PYTHONPATH": SOURCE,
            "COLUMNS": "120",
            "HF_HUB_OFFLINE": "1",
        },
    )


def test_the_command_prints_the_papers_table_1_for_four_devices(tmp_path: Path) -> None:
    result = estep_plan("paper/table1", "--devices", "4x80GB", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for model in ("qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "llama-3.2-3b", "llama-3.1-8b"):
        assert f"{model} on 4 x 80 GB, 45 runs" in result.stdout
    assert "all 225 runs: about" in result.stdout


def test_the_command_refuses_with_code_2_and_still_prints_the_plan(tmp_path: Path) -> None:
    result = estep_plan("paper/helpsteer2", "model=qwen2.5-7b", "--devices", "1x80GB", cwd=tmp_path)
    assert result.returncode == 2
    assert "qwen2.5-7b on 1 x 80 GB" in result.stdout
    assert result.stderr.splitlines() == [
        "error: training all weights of qwen2.5-7b needs at least 139.3 GB on one device, but a device has 80.0 GB "
        "(1 x 80 GB); what would do: m_step.devices=2 (2 such devices), or m_step.lora.r=16"
    ]


def test_the_command_plans_for_this_machine_as_plain_data(tmp_path: Path) -> None:
    result = estep_plan("demo", "--json", "--prompt-tokens", "100", "--completion-tokens", "20", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (block,) = json.loads(result.stdout)
    assert (block["model"], block["runs"], block["refusal"]) == ("smollm2-135m", 1, None)
    assert block["parameters"] == 134_515_008
    assert block["lengths"]["plain"] == 100
    assert block["training"]["parts_bytes"]["weights"] == 4 * 134_515_008


def test_the_command_refuses_devices_that_it_cannot_read(tmp_path: Path) -> None:
    result = estep_plan("demo", "--devices", "many", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: devices 'many': ")

"""The settings that a command on a run's model inherits from the run."""

from pathlib import Path

from conftest import write_task
from estep.cli.app import OnInvalidRow
from estep.config import STaRProposal, TransformersEngineConfig, VLLMEngineConfig, hint_variant
from estep.store.model import run_settings, settings_line
from runs import HINTS, VOTES, Scored, a_run, options, right_when_hinted, scripted_run


def test_another_task_inherits_no_setting_of_the_runs_own_task(tmp_path: Path) -> None:
    engine = {"type": "transformers", "dtype": "float32", "max_model_len": 900, "max_new_tokens": 8, "device": "cpu"}
    folder = a_run(tmp_path, engine, evaluation=VOTES)
    own = options(tmp_path / "judge.yaml", folder)
    assert (own.evaluation.samples, own.engine.max_new_tokens, own.test_size) == (3, 8, 4)
    other = options("sentiment/movies", folder)
    assert (other.evaluation.samples, other.engine.max_new_tokens, other.test_size) == (1, None, None)
    assert isinstance(other.engine, TransformersEngineConfig)
    assert (other.engine.dtype, other.engine.max_model_len) == ("float32", 900)


def test_the_hint_variant_and_the_rules_for_unusable_rows_are_inherited(tmp_path: Path) -> None:
    task = write_task(tmp_path, hint=HINTS)
    skip = {"on_invalid_row": "skip", "on_overlength": "skip"}
    scripted_run(tmp_path, Scored(right_when_hinted), proposal={"type": "pps", "hint": "known"}, **skip)
    folder = tmp_path / "run"
    inherited = options(task, folder)
    assert hint_variant(inherited.proposal) == "known"
    assert (inherited.on_invalid_row, inherited.on_overlength) == ("skip", "skip")
    # Options and overrides win.
    assert options(task, folder, on_invalid_row=OnInvalidRow.stop).on_invalid_row == "stop"
    assert hint_variant(options(task, folder, "proposal.hint=strict").proposal) == "strict"
    # A proposal of another type inherits the hint if it uses one.
    assert options(task, folder, proposal="star").proposal == STaRProposal(hint="known")
    for found in (options(task, folder, proposal="direct"), options(task, folder, "proposal.type=rejection")):
        assert hint_variant(found.proposal) is None
    other = options("sentiment/movies", folder)
    assert hint_variant(other.proposal) is None
    assert (other.on_invalid_row, other.on_overlength) == ("stop", "stop")


def test_an_engine_of_another_type_inherits_the_settings_that_it_shares(tmp_path: Path) -> None:
    engine = {"type": "transformers", "dtype": "float32", "max_model_len": 900, "max_new_tokens": 8, "batch_size": 3}
    folder = a_run(tmp_path, engine)
    found = options(tmp_path / "judge.yaml", folder, "engine.type=vllm", "engine.max_model_len=800").engine
    assert found == VLLMEngineConfig(dtype="float32", max_model_len=800, max_new_tokens=8)
    server = ("engine.type=openai", "engine.base_url=http://127.0.0.1:9/v1", "engine.api_key_env=null")
    assert options(tmp_path / "judge.yaml", folder, *server).engine.max_new_tokens == 8


def test_one_line_says_what_was_inherited_from_the_run(tmp_path: Path) -> None:
    folder, task = a_run(tmp_path, seed=5, evaluation=VOTES), str(tmp_path / "judge.yaml")
    taken = run_settings(str(folder), task)
    config = options(task, folder, "evaluation.samples=5", "engine.batch_size=2")
    assert settings_line(taken, config) == (
        "settings of the run: seed=5, test_size=4, evaluation.temperature=1.0, evaluation.vote=majority, "
        "engine.max_new_tokens=8, engine.type=transformers, engine.device=cpu"
    )
    assert run_settings("smollm2-135m", task) == {}

"""Configurations: what loads, what is refused, and what the refusal tells the user."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from conftest import JUDGE, shipped
from estep.config import (
    AutoEngineConfig,
    DirectProposal,
    EvaluationConfig,
    FEMConfig,
    FilterConfig,
    MixtureProposal,
    MStepConfig,
    PPSProposal,
    RejectionProposal,
    RunConfig,
    ScriptedEngineConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
    hint_variant,
)
from estep.config.files import difference, load_config, validate
from estep.config.strict_yaml import read_yaml
from estep.config.validation import RENAMED, RENAMED_VALUES
from estep.errors import ConfigError, DataError, EstepError
from estep.shipped import CONFIGS
from estep.study.grid import load_grid
from estep.tasks import load_task, parse_task

MINIMAL = {"task": "sentiment/movies", "model": "smollm2-135m"}


def config_of(**sections: Any) -> RunConfig:
    return validate({**MINIMAL, **sections})


def refusal(**sections: Any) -> str:
    """The message with which a configuration is refused."""
    with pytest.raises(ConfigError) as refused:
        config_of(**sections)
    message = str(refused.value)
    assert "\n" not in message
    return message


def override_refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load_config("demo", list(overrides))
    return str(refused.value)


def mixture(*proposals: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "mixture", "components": [{"weight": 1, "proposal": p} for p in proposals], **more}


# Loading


@pytest.mark.parametrize("path", shipped(study=False), ids=lambda path: path.stem)
def test_every_shipped_config_loads_by_name_and_by_path(path: Path) -> None:
    config = load_config(str(path.relative_to(CONFIGS).with_suffix("")))
    assert config == load_config(path)
    # Its task and hint exist.
    load_task(config.task, hint_variant(config.proposal), config.few_shot)


@pytest.mark.parametrize("trackers", ["[]", "tensorboard", "[tensorboard, wandb]"])
def test_the_configuration_that_a_run_keeps_is_one(trackers: str, tmp_path: Path) -> None:
    config = load_config("demo", [f"report_to={trackers}"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(path) == config


def test_the_demo_holds_what_its_file_says() -> None:
    config = load_config("demo")
    content = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
    assert config.m_step.learning_rate == tuple(content["m_step"]["learning_rate"])
    assert (config.iterations, config.train_size) == (content["iterations"], content["train_size"])
    assert config.engine.max_new_tokens is None  # the task says how long a response may be


def test_a_resolved_config_loads_again_as_itself() -> None:
    config = config_of(
        proposal=mixture({"type": "star", "hint": "bare"}, {"type": "direct"}), m_step={"lora": {"r": 4}}
    )
    assert validate(config.model_dump(mode="json")) == config


def test_a_missing_section_means_its_default() -> None:
    config = config_of()
    assert config.proposal == PPSProposal()
    assert config.engine == AutoEngineConfig()
    assert config.m_step == MStepConfig()
    assert config.filters == FilterConfig()
    assert config.evaluation == EvaluationConfig()


def test_a_section_without_a_type_is_its_default_variant() -> None:
    assert config_of(proposal={"n": 3}).proposal == PPSProposal(n=3)
    assert config_of(engine={"temperature": 2}).engine == AutoEngineConfig(temperature=2)


def test_each_variant_has_its_own_keys() -> None:
    assert config_of(proposal={"type": "rejection", "budget": 5}).proposal == RejectionProposal(budget=5)
    engine = config_of(engine={"type": "scripted", "script": "texts.json"}).engine
    assert engine == ScriptedEngineConfig(script="texts.json")


def test_the_hint_variant_is_found_in_every_proposal() -> None:
    assert hint_variant(config_of(proposal={"type": "star", "hint": "bare"}).proposal) == "bare"
    assert hint_variant(config_of(proposal={"type": "rejection"}).proposal) is None
    both = mixture({"type": "pps", "hint": "plain"}, {"type": "direct"})
    assert hint_variant(config_of(proposal=both).proposal) == "plain"
    assert hint_variant(config_of(proposal=mixture({"type": "direct"}, {"type": "rejection"})).proposal) is None


def test_a_config_cannot_be_changed_after_it_is_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config_of().seed = 3  # type: ignore[misc]


# Overrides


def test_overrides_reach_nested_keys_and_replace_what_the_file_says() -> None:
    config = load_config("demo", ["m_step.batch_size=16", "seed=1", "m_step.lora.r=4", "proposal.type=star"])
    assert (config.m_step.batch_size, config.seed) == (16, 1)
    assert config.m_step.lora is not None
    assert config.m_step.lora.r == 4
    assert config.proposal.type == "star"
    assert config.m_step.learning_rate == load_config("demo").m_step.learning_rate  # the rest of the section stays


def test_override_values_are_yaml() -> None:
    config = load_config(
        "demo",
        ["filters.dedup=false", "train_size=null", "run_dir=out/a=b", "proposal={type: rejection, budget: 3}"],
    )
    assert config.filters.dedup is False
    assert config.train_size is None
    assert config.run_dir == "out/a=b"
    assert config.proposal == RejectionProposal(budget=3)


@pytest.mark.parametrize("written", ["[5e-5, 5e-6]", "[5.0e-5,5.0e-6]", "[0.00005, 0.000005]"])
def test_floats_without_a_point_are_floats(written: str) -> None:
    # YAML 1.1 reads 5e-5 as a string.
    assert load_config("demo", [f"m_step.learning_rate={written}"]).m_step.learning_rate == (5e-5, 5e-6)


def test_a_later_override_wins() -> None:
    assert load_config("demo", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("pair", ["seed", "=3", ""])
def test_an_override_without_key_or_value_is_refused(pair: str) -> None:
    assert f"an override is key=value, got '{pair}'" in override_refusal(pair)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: a\n# on line 2\nseed: 1\nmodel: b\nseed: 2\n", "'seed' appears twice, on lines 3 and 5"),
        ("m_step:\n  epochs: 1\n  'epochs': 2\n", "'epochs' appears twice, on lines 2 and 3"),
        ("arms:\n  - a: {n: 1, n: 2}\n", "'n' appears twice, on line 2"),
    ],
)
def test_a_key_that_appears_twice_is_refused_with_both_lines(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert str(refused.value) == f"{path}: {message}"
    with pytest.raises(DataError) as refused_task:
        load_task(str(path))
    assert str(refused_task.value) == f"{path}: {message}"


def test_a_key_that_appears_twice_in_an_override_is_refused() -> None:
    assert override_refusal("m_step={epochs: 1, epochs: 2}") == (
        "override 'm_step={epochs: 1, epochs: 2}': 'epochs' appears twice, on line 1"
    )


def test_a_key_may_replace_one_that_yaml_merges_from_another_mapping() -> None:
    text = "base: &base {a: 1, b: 2}\nover: &over\n  <<: *base\n  b: 3\nagain:\n  <<: *over\n  a: 4\n"
    assert read_yaml(text, "a text", ConfigError) == {
        "base": {"a": 1, "b": 2},
        "over": {"a": 1, "b": 3},
        "again": {"a": 4, "b": 3},
    }


def test_an_override_that_is_not_yaml_is_refused() -> None:
    assert "override 'seed=[1': not valid YAML: " in override_refusal("seed=[1")


def test_an_override_below_a_plain_value_is_refused() -> None:
    assert "'task' is a value, not a section with keys" in override_refusal("task.name=x")


def test_an_override_in_an_unknown_section_names_the_nearest() -> None:
    message = override_refusal("msteps.batch_size=8")
    assert "unknown key 'msteps.batch_size'" in message
    assert "did you mean 'm_step'?" in message


# Unknown keys


@pytest.mark.parametrize(
    ("sections", "path", "near"),
    [
        ({"iteration": 3}, "iteration", "iterations"),
        ({"m_step": {"batchsize": 3}}, "m_step.batchsize", "batch_size"),
        ({"m_step": {"lora": {"alhpa": 3}}}, "m_step.lora.alhpa", "alpha"),
        ({"filters": {"max_per_questions": 1}}, "filters.max_per_questions", "max_per_question"),
        ({"evaluation": {"sample": 1}}, "evaluation.sample", "samples"),
        ({"engine": {"type": "transformers", "batchsize": 3}}, "engine.batchsize", "batch_size"),
        ({"engine": {"type": "scripted", "script": "x", "scirpt": "y"}}, "engine.scirpt", "script"),
        ({"proposal": {"type": "rejection", "budgt": 2}}, "proposal.budgt", "budget"),
        ({"proposal": {"type": "star", "hnt": "bare"}}, "proposal.hnt", "hint"),
        (
            {"proposal": mixture({"type": "direct"}, {"type": "pps", "hnt": "bare"})},
            "proposal.components.1.proposal.hnt",
            "hint",
        ),
    ],
)
def test_an_unknown_key_is_named_with_its_path_and_nearest_key(sections: dict[str, Any], path: str, near: str) -> None:
    message = refusal(**sections)
    assert f"unknown key '{path}'" in message
    assert f"did you mean '{near}'?" in message


def test_an_unknown_key_lists_the_keys_of_its_own_section_only() -> None:
    message = refusal(proposal={"type": "rejection", "budgt": 2})
    assert message.endswith("known: budget, model, n, type")


def test_a_variant_refuses_the_keys_of_another() -> None:
    message = refusal(proposal={"type": "rejection", "hint": "plain"})
    assert "unknown key 'proposal.hint'" in message
    assert "known: budget, model, n, type" in message
    assert "unknown key 'proposal.n'" in refusal(proposal={"type": "direct", "n": 2})
    assert "unknown key 'engine.script'" in refusal(engine={"type": "transformers", "script": "x.json"})


@pytest.mark.parametrize(
    ("content", "unknown", "near"),
    [
        ({"task": "sentiment/movies", "modle": "smollm2-135m"}, "modle", "model"),
        ({**MINIMAL, "engine": {"type": "scripted", "scirpt": "x.json"}}, "engine.scirpt", "script"),
    ],
)
def test_a_misspelled_required_key_is_named_rather_than_called_missing(
    content: dict[str, Any], unknown: str, near: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(content)
    assert f"unknown key '{unknown}'" in str(refused.value)
    assert f"did you mean '{near}'?" in str(refused.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: FEMConfig(iteration=3),  # type: ignore[call-arg]
            "FEMConfig: unknown key 'iteration'; did you mean 'iterations'? known: ",
        ),
        (
            lambda: FEMConfig(m_step={"lora": {"alhpa": 3}}),  # type: ignore[arg-type]
            "FEMConfig: unknown key 'm_step.lora.alhpa'; did you mean 'alpha'? known: ",
        ),
        (
            lambda: FEMConfig(proposal=mixture({"type": "direct"}, {"type": "pps", "hnt": "x"})),  # type: ignore[arg-type]
            "FEMConfig: unknown key 'proposal.components.1.proposal.hnt' for type pps; did you mean 'hint'? known: ",
        ),
        (lambda: RunConfig(**MINIMAL, seed=-1), "RunConfig: seed: Input should be greater than or equal to 0, got -1"),
        (
            lambda: MStepConfig(batchsize=3),  # type: ignore[call-arg]
            "MStepConfig: unknown key 'batchsize'; did you mean 'batch_size'? known: ",
        ),
        (lambda: FilterConfig(min_reward=0.2), "FilterConfig: min_reward is for reward=graded"),
    ],
)
def test_a_config_built_in_python_is_refused_on_one_line_with_the_full_path(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        build()
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_model_validate_raises_pydantics_own_error() -> None:
    with pytest.raises(ValidationError, match="iteration"):
        FEMConfig.model_validate({"iteration": 3})


def test_several_problems_are_counted() -> None:
    assert "(and 1 more)" in refusal(seeds=1, iteration=2)


# Union types


def test_a_setting_that_may_be_yes_no_or_null_takes_all_three() -> None:
    for eager in (True, False, None):
        assert config_of(engine={"type": "vllm", "eager": eager}).engine == VLLMEngineConfig(eager=eager)
    assert "max_num_seqs: expected a number, got True" in refusal(engine={"type": "vllm", "max_num_seqs": True})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"iterations": True}, "iterations: expected a number, got True"),
        ({"train_size": False}, "train_size: expected a number, got False"),
        ({"name": True}, "name: expected a string, got True"),
        ({"few_shot": True}, "few_shot: expected one of first, both, proposal, got True"),
        ({"filters": True}, "filters: expected keys with values, got True"),
        ({"m_step": {"learning_rate": True}}, "learning_rate: expected a number, got True"),
    ],
)
def test_a_yes_or_no_in_the_place_of_another_value_is_refused_with_what_is_expected(
    keys: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        FEMConfig(**keys)


def server(**changes: Any) -> dict[str, Any]:
    address = {"base_url": "http://localhost:8000/v1", "api_key_env": None}
    return {"type": "pps", "model": {"model": "judge", **address, **changes}}


@pytest.mark.parametrize("address", ["localhost:8000/v1", "ftp://host/v1", "http://"])
def test_a_servers_address_is_an_http_address(address: str) -> None:
    assert "begins with http:// or https://" in refusal(proposal=server(base_url=address))


@pytest.mark.parametrize("address", ["https://me:secret@host/v1", "https://host/v1?key=secret"])
def test_a_key_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    message = refusal(proposal=server(base_url=address))
    assert "keys come from the environment" in message
    assert "secret" not in message


def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_repeated() -> None:
    message = refusal(proposal=server(api_key_env="sk-secret"))
    assert "this is the name of an environment variable" in message
    assert "secret" not in message


def test_a_key_goes_to_no_server_that_it_was_not_named_for() -> None:
    model = {"model": "judge", "base_url": "http://localhost:8000/v1"}
    assert "which key does http://localhost:8000/v1 get?" in refusal(proposal={"type": "pps", "model": model})
    found = config_of(proposal={"type": "pps", "model": {"model": "judge"}}).proposal
    assert isinstance(found, PPSProposal)
    assert found.model is not None
    assert found.model.api_key_env == "OPENAI_API_KEY"


def test_a_spending_limit_needs_a_price() -> None:
    assert "spending_limit needs price" in refusal(proposal=server(spending_limit=1))
    found = config_of(proposal=server(spending_limit=1, price={"completion": 2.0})).proposal
    assert isinstance(found, PPSProposal)
    assert found.model is not None
    assert found.model.spending_limit == 1


def test_the_model_of_a_mixture_is_the_mixtures_own() -> None:
    inner = {"type": "mixture", "components": [{"weight": 1, "proposal": server()}] * 2}
    assert "a component has no model of its own" in refusal(proposal=inner)


def test_an_unknown_type_lists_the_known_ones() -> None:
    message = refusal(proposal={"type": "reject"})
    assert "proposal.type: got 'reject'" in message
    for known in ("rejection", "star", "pps", "direct", "mixture"):
        assert f"'{known}'" in message
    assert "'auto', 'vllm', 'transformers', 'openai', 'scripted'" in refusal(engine={"type": "vlm"})


def test_a_mixture_cannot_hold_a_mixture() -> None:
    message = refusal(proposal=mixture({"type": "pps"}, mixture({"type": "pps"}, {"type": "star"})))
    assert "proposal.components.1.proposal.type: got 'mixture'" in message
    assert "'rejection', 'star', 'pps', 'adaptive', 'direct', 'gold'" in message


def test_a_component_without_a_type_is_refused_with_the_known_types() -> None:
    message = refusal(proposal=mixture({"type": "direct"}, {"hint": "bare"}))
    assert "proposal.components.1.proposal.type: no type given" in message
    for known in ("rejection", "star", "pps", "direct"):
        assert known in message.partition("known:")[2]


# Values


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"m_step": {"learning_rate": 0}}, ["m_step.learning_rate", "0"]),
        ({"m_step": {"learning_rate": [0, 1e-6]}}, ["m_step.learning_rate", "above 0", "[0.0, 1e-06]"]),
        ({"m_step": {"learning_rate": [1e-6, -1e-7]}}, ["m_step.learning_rate", "above 0"]),
        ({"m_step": {"learning_rate": [1e-6]}}, ["m_step.learning_rate"]),
        (
            {"m_step": {"batch_size": 8, "micro_batch_size": 3}},
            ["m_step", "micro_batch_size 3 must divide batch_size 8"],
        ),
        ({"m_step": {"batch_size": 0}}, ["m_step.batch_size", "greater than or equal to 1", "got 0"]),
        ({"m_step": {"init": "bases"}}, ["m_step.init", "'previous' or 'base'", "got 'bases'"]),
        ({"m_step": {"lora": {"dropout": 1}}}, ["m_step.lora.dropout", "less than 1", "got 1"]),
        ({"m_step": 5}, ["m_step: ", "got 5"]),
        ({"evaluation": {"samples": 3}}, ["evaluation", "several samples at temperature 0"]),
        ({"evaluation": {"vote": "majority", "temperature": 1}}, ["evaluation", "vote=majority needs samples > 1"]),
        ({"engine": {"temperature": -0.1}}, ["engine.temperature", "got -0.1"]),
        ({"engine": {"top_p": 0}}, ["engine.top_p", "greater than 0", "got 0"]),
        ({"engine": {"type": "scripted"}}, ["engine.script", "required"]),
        ({"proposal": {"type": "pps", "n": 0}}, ["proposal.n", "got 0"]),
        ({"proposal": "pps"}, ["proposal: ", "got 'pps'"]),
        ({"iterations": 0}, ["iterations", "got 0"]),
        ({"seed": -1}, ["seed", "got -1"]),
        ({"seed": "seven"}, ["seed", "got 'seven'"]),
        ({"run_dir": ""}, ["run_dir", "got ''"]),
        ({"few_shot": "policy"}, ["few_shot", "'first', 'both' or 'proposal'", "got 'policy'"]),
    ],
)
def test_a_value_outside_its_range_is_named_with_its_key(sections: dict[str, Any], words: list[str]) -> None:
    message = refusal(**sections)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "sections",
    [
        {"m_step": {"learning_rate": [float("nan"), float("nan")]}},
        {"m_step": {"learning_rate": [float("inf"), 1e-6]}},
        {"engine": {"temperature": float("nan")}},
        {"engine": {"temperature": float("inf")}},
        {"proposal": {"type": "mixture", "components": [{"weight": float("inf"), "proposal": {"type": "pps"}}] * 2}},
    ],
)
def test_no_setting_is_infinite_or_undefined(sections: dict[str, Any]) -> None:
    refusal(**sections)


@pytest.mark.parametrize("sections", [{"seed": True}, {"proposal": {"n": True}}, {"iterations": True}])
def test_yes_is_not_a_number(sections: dict[str, Any]) -> None:
    refusal(**sections)


def test_a_bad_value_is_placed_at_the_key_that_the_user_wrote() -> None:
    message = refusal(m_step={"lora": {"target_modules": 5}})
    assert "m_step.lora.target_modules: " in message


def test_the_smallest_allowed_values_are_allowed() -> None:
    config = config_of(
        engine={"type": "transformers", "temperature": 0, "top_p": 1, "batch_size": 1},
        m_step={"batch_size": 6, "micro_batch_size": 3},
        evaluation={"samples": 2, "temperature": 0.5, "vote": "median"},
        filters={"min_rationale_words": 0},
        iterations=1,
        seed=0,
    )
    assert config.m_step.micro_batch_size == 3
    assert config.evaluation.vote == "median"


def test_the_parts_of_a_mixture_draw_once_and_share_a_hint() -> None:
    assert "a component's n must be 1" in refusal(proposal=mixture({"type": "pps", "n": 2}, {"type": "rejection"}))
    message = refusal(proposal=mixture({"type": "pps", "hint": "bare"}, {"type": "star", "hint": "plain"}))
    assert "the components must share one hint variant" in message
    # A component without a hint takes the task's default, which need not be the named one.
    assert "share one hint" in refusal(proposal=mixture({"type": "pps", "hint": "bare"}, {"type": "star"}))
    proposal = config_of(proposal=mixture({"type": "pps"}, {"type": "direct"}, n=4)).proposal
    assert isinstance(proposal, MixtureProposal)
    assert proposal.n == 4


def test_a_mixture_has_two_parts_of_positive_weight() -> None:
    assert "proposal.components" in refusal(proposal=mixture({"type": "pps"}))
    weightless = {"type": "mixture", "components": [{"weight": 0, "proposal": {"type": "pps"}}] * 2}
    assert "proposal.components.0.weight" in refusal(proposal=weightless)


# Files


def test_a_missing_file_names_the_shipped_configs() -> None:
    with pytest.raises(ConfigError, match="could not read the config demos: No such file") as refused:
        load_config("demos")
    assert "demo" in str(refused.value).rpartition("a shipped one; ")[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- task\n- model\n", "a config is a mapping, got list"),
        ("", "a config is a mapping, got NoneType"),
        ("task: [\n", "not valid YAML"),
        ("task: sentiment/movies\n", "model: Field required"),
        ("task: t\nmodel: m\n1: 2\n", "1: "),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert str(path) in str(refused.value)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"task: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: not UTF-8 text: "):
        load_config(path)


# Differences and folders


def test_difference_lists_each_changed_key_with_both_values() -> None:
    old = load_config("demo").model_dump()
    new = load_config("demo", ["seed=1", "m_step.batch_size=16", "m_step.init=base"]).model_dump()
    assert difference(old, new) == ["m_step.batch_size: 4 -> 16", "m_step.init: 'previous' -> 'base'", "seed: 257 -> 1"]
    assert difference(old, old) == []


def test_difference_names_keys_that_only_one_side_has() -> None:
    old = config_of(proposal={"type": "pps", "hint": "bare"}).model_dump()
    new = config_of(proposal={"type": "rejection", "budget": 2}).model_dump()
    assert difference(old, new) == [
        "proposal.budget: None -> 2",
        "proposal.hint: 'bare' -> None",
        "proposal.type: 'pps' -> 'rejection'",
    ]


def test_difference_shows_a_section_that_was_absent() -> None:
    assert difference({"lora": None}, {"lora": {"r": 4}}) == ["lora: None -> {'r': 4}"]


@pytest.mark.parametrize(
    ("content", "folder"),
    [
        ({}, "runs/sentiment-movies-smollm2-135m-pps-s257"),
        ({"seed": 3, "proposal": {"type": "star"}}, "runs/sentiment-movies-smollm2-135m-star-s3"),
        ({"task": "tasks/essays.yaml", "model": "owner/small"}, "runs/essays-small-pps-s257"),
        ({"task": "/a/essays.yml", "model": "/models/big/"}, "runs/essays-big-pps-s257"),
        ({"run_dir": "elsewhere/run"}, "elsewhere/run"),
    ],
)
def test_the_folder_is_named_after_task_model_proposal_and_seed(content: dict[str, Any], folder: str) -> None:
    assert validate({**MINIMAL, **content}).folder == Path(folder)


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert config_of(run_dir="~/run").folder == Path("/home/someone/run")


@pytest.mark.parametrize("value", ["2e-5", "0.00002", "[2e-5, 2e-5]"])
def test_one_learning_rate_is_the_first_and_the_last(value: str) -> None:
    assert load_config("demo", [f"m_step.learning_rate={value}"]).m_step.learning_rate == (2e-5, 2e-5)


def test_a_wrong_override_is_not_blamed_on_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^options: unknown key 'iteration'; did you mean 'iterations'"):
        load_config("demo", ["iteration=2"])


def test_a_wrong_file_is_blamed_with_or_without_overrides(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("task: gsm8k\nmodel: smollm2-135m\niteration: 2\n")
    for overrides in ([], ["seed=3"]):
        with pytest.raises(ConfigError, match=r"own.yaml: unknown key 'iteration'"):
            load_config(path, overrides)


def test_validation_needs_questions_and_questions_need_validation() -> None:
    assert config_of(select="validation", validation_size=8).validation_size == 8
    with pytest.raises(ConfigError, match="set validation_size"):
        config_of(select="validation")
    with pytest.raises(ConfigError, match="validation_size is for select=validation"):
        config_of(validation_size=8)


# Former names


@pytest.mark.parametrize(("former", "present"), RENAMED.items())
def test_a_former_key_is_refused_with_its_present_name(former: str, present: str) -> None:
    content: dict[str, Any] = {"task": "sentiment/movies", "model": "m"}
    task = former in ("gold.cut", "data.leave_out_without", "licence")
    if task:
        content = copy.deepcopy(JUDGE)
    section = content
    *sections, last = former.split(".")
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = 1
    with pytest.raises(EstepError, match=rf"'{re.escape(former)}' is now '{re.escape(present)}'"):
        parse_task(yaml.safe_dump(content), "judge.yaml") if task else validate(content)


@pytest.mark.parametrize(("former", "present"), RENAMED_VALUES.items())
def test_a_former_value_is_refused_with_its_present_name(former: tuple[str, str], present: str) -> None:
    key, value = former
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=rf"{key}: '{value}' is now '{present}'"):
        validate({"task": "sentiment/movies", "model": "m", section: {name: value}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"distinct": True}, "'distinct' is now 'dedup'"),
        ({"balance": "weigh"}, "balance: 'weigh' is now 'reweight'"),
    ],
)
def test_a_section_built_alone_names_the_present_key_and_value(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        FilterConfig(**keys)
    # Elsewhere, a key of that name never existed.
    with pytest.raises(ConfigError, match="unknown key 'distinct'"):
        FEMConfig(distinct=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("former", ["mstep.batch_size=4", "mstep.lora.r=4", "too_long=skip", "filters.finished=false"])
def test_an_override_of_a_former_key_names_the_present_one(former: str) -> None:
    with pytest.raises(ConfigError, match="' is now '"):
        load_config("demo", [former])
    with pytest.raises(ConfigError, match="' is now '"):
        load_grid("studies/cpu", [former])


@pytest.mark.parametrize(
    ("key", "where"), [("learning_rate", "m_step"), ("budget", "proposal"), ("temperature", "engine")]
)
def test_a_key_without_its_section_is_found(key: str, where: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key '{key}'; did you mean '{where}\.{key}'\?"):
        load_config("demo", [f"{key}=1"])


def test_a_study_or_plan_of_a_task_file_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(JUDGE))
    with pytest.raises(ConfigError, match=r"judge\.yaml is a task file.*estep train demo task="):
        load_grid(tmp_path / "judge.yaml")


def test_a_new_type_takes_back_what_the_file_set_for_the_old_one() -> None:
    config = load_config("demo-sums", ["proposal.type=direct"])
    assert config.proposal == DirectProposal()
    assert config.engine.temperature == 0.6
    kept = load_config("demo-sums", ["engine.type=transformers", "engine.batch_size=8"]).engine
    assert isinstance(kept, TransformersEngineConfig)
    assert (kept.temperature, kept.batch_size) == (0.6, 8)
    # What the user sets is not taken back, whatever the order.
    for overrides in (["proposal.budget=2", "proposal.type=direct"], ["proposal.type=direct", "proposal.budget=2"]):
        with pytest.raises(ConfigError, match=r"unknown key 'proposal\.budget' for type direct"):
            load_config("demo-sums", overrides)
    with pytest.raises(ConfigError, match="'reject'"):
        load_config("demo-sums", ["proposal.type=reject"])


def test_a_task_file_in_the_place_of_a_configuration_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(JUDGE))
    with pytest.raises(ConfigError, match=r"judge\.yaml is a task file.*estep train demo task=.*judge\.yaml"):
        load_config(tmp_path / "judge.yaml")


IMPORTANCE: dict[str, Any] = {"proposal": {"type": "pps", "n": 2}, "filters": {"weight_by": "importance"}}
CHAIN: dict[str, Any] = {"proposal": {"type": "chain"}, "m_step": {"replay": "last"}}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"proposal": {"type": "chain"}}, "set m_step.replay=last, got 1"),
        ({"filters": {"weight_by": "answer"}}, "set proposal.n to 2 or more"),
        ({"filters": {"min_ess": 0.4}}, "for weight_by=importance"),
        ({"filters": {"weight_by": "answer", "length_normalized": True}}, "for weight_by=importance"),
        ({"filters": {"resample": True}}, "set weight_by"),
        ({"filters": {"weight_by": "answer", "max_per_question": 1}}, "max_per_question must be null"),
        ({"filters": {"weight_by": "answer", "reward": "graded"}}, "set reward=exact"),
        ({"filters": {"weight_by": "answer", "balance": "subsample"}}, "with weight_by, set reweight"),
        (
            {"proposal": {"type": "rejection", "n": 2}, "filters": {"weight_by": "importance"}},
            "rejection at temperature 1 has neither",
        ),
        (
            {"proposal": {"type": "pps", "n": 2}, "m_step": {"replay": "last"}, "filters": {"weight_by": "answer"}},
            "filters.weight_by=answer weighs the pairs of one iteration",
        ),
        (IMPORTANCE | {"engine": {"temperature": 0}}, "set engine.temperature above 0"),
        ({"m_step": {"replay": "last"}, "filters": {"balance": "reweight"}}, "filters.balance=reweight weighs"),
        ({"m_step": {"replay": "first"}}, "expected a whole number from 1, or last, got 'first'"),
        (CHAIN | {"filters": {"max_per_question": 1}}, "would leave out new states of chains"),
        (CHAIN | {"proposal": {"type": "chain", "n": 2}}, "set filters.dedup=false"),
        ({"diagnostics": "full"}, "set validation_size"),
        ({"validation_size": 8}, "for select=validation and diagnostics=full"),
        ({"diagnostics": "some"}, "'off', 'cheap' or 'full'"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(sections: dict[str, Any], said: str) -> None:
    assert said in refusal(**sections)


def test_weights_that_are_not_all_equal_are_taken() -> None:
    importance = {"filters": {"weight_by": "importance"}}
    plain, hinted = {"type": "rejection", "n": 2}, {"type": "pps"}
    parts = [{"weight": 1, "proposal": {"type": "rejection"}}, {"weight": 1, "proposal": hinted}]
    for engine in ({"temperature": 0.6}, {"top_p": 0.9}, {"structured": True}):
        FEMConfig.model_validate({"proposal": plain, "engine": engine, **importance})
    FEMConfig.model_validate({"proposal": {"type": "mixture", "n": 2, "components": parts}, **importance})
    FEMConfig.model_validate(CHAIN | {"proposal": {"type": "chain", "n": 2}, "filters": {"dedup": False}})


def test_a_served_models_samples_have_no_importance_weights() -> None:
    served = {"type": "pps", "n": 4, "model": {"model": "m", "base_url": "http://localhost:1/v1", "api_key_env": None}}
    assert "a served model does not report" in refusal(proposal=served, filters={"weight_by": "importance"})

"""The JSON Schemas accept what the package ships, and refuse what the package refuses."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from commands import estep
from estep.config.files import load_config, override
from estep.config.keys import all_keys
from estep.config.schema import config_schema
from estep.errors import ConfigError
from estep.shipped import CATALOG, CONFIGS
from estep.study.grid import load_grid
from estep.study.schema import study_schema
from estep.tasks.schema import task_schema

SCHEMAS = {"config": config_schema, "task": task_schema, "study": study_schema}
ROOT = Path(__file__).parents[1]


@cache
def validator(kind: str) -> Draft202012Validator:
    schema = SCHEMAS[kind]()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def faults(kind: str, content: Any) -> list[str]:
    if isinstance(content, str):
        content = yaml.safe_load(content)
    return [error.message for error in validator(kind).iter_errors(content)]


def is_study(path: Path) -> bool:
    try:
        load_config(path)
    except ConfigError as error:
        return "need a study" in str(error)
    return False


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configurations_are_valid(path: Path) -> None:
    text = path.read_text()
    assert faults("study", text) == []
    assert (faults("config", text) == []) == (not is_study(path))


@pytest.mark.parametrize("path", sorted(CATALOG.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CATALOG)))
def test_built_in_tasks_are_valid(path: Path) -> None:
    assert faults("task", path.read_text()) == []


@pytest.mark.parametrize("page", ["README.md", "docs/studies.md", "docs/recipes.md", "docs/tasks.md"])
def test_the_files_that_the_documents_show_are_valid(page: str) -> None:
    for text in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        assert [] in [faults(kind, text) for kind in SCHEMAS], text


@pytest.mark.parametrize(
    "text",
    [
        "iteration: 3",
        "m_step: {batchsize: 8}",
        "m_step: {lora: {rank: 8}}",
        "engine: {type: vllm, batch_size: 8}",
        "proposal: {type: pps, budget: 3}",
        "proposal: {type: ppo}",
        "proposal: {type: mixture, components: [{weight: 1, proposal: {type: pps}}, {proposal: {type: star}}]}",
        "proposal: {type: mixture, components: [{weight: 1, proposal: {type: pps}}, {weight: 1, proposal: {n: 1}}]}",
        "m_step: {learning_rate: [1.0e-4]}",
        "m_step: {replay: 0}",
        "iterations: 0",
        "iterations: true",
        "extends: [demo]",
    ],
)
def test_what_a_run_and_a_study_refuse_is_invalid(text: str) -> None:
    assert faults("config", text)
    assert faults("study", text)


def test_what_a_run_takes_is_valid() -> None:
    for text in (
        "engine: {batch_size: 8}",  # with extends, of the file's transformers engine
        "m_step: {learning_rate: 1.0e-4, replay: last, lora: null, devices: auto}",
        "proposal: {model: {model: m, price: {prompt: 1}}}",
        "{extends: ../base.yaml, cluster: auto, few_shot: null}",
    ):
        assert faults("config", text) == [], text
        assert faults("study", text) == [], text


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("seed: [257, 521]", True),
        ("seed: [257, 257]", False),
        ("seed: []", False),
        ("seed: [257, x]", False),
        ("m_step: {batch_size: [8, 16]}", True),
        ("m_step: {learning_rate: [[1.0e-4, 3.0e-5], [1.0e-5, 3.0e-6]]}", True),
        ("m_step: {learning_rate: [[1.0e-4, 3.0e-5], 1.0e-5]}", False),
        ("m_step: {lora: {target_modules: [[q_proj], [k_proj, v_proj]]}}", True),
        ("proposal: [{type: pps}, {type: rejection, budget: 3}]", True),
        ("proposal: [{type: rejection, budget: [1, 3]}]", False),
        ("proposal: {type: rejection, budget: [1, 3]}", True),
        ("proposal: {type: [pps, star]}", True),
        ("arms: {pps: {proposal: {type: pps, hint: [strict, bare]}}}", True),
        ("{extends: studies/cpu, arms: {direct: null}}", True),
        ("arms: {pps: {propsal: {type: pps}}}", False),
        ("arms: {pps: {m_step: {batchsize: 8}}}", False),
        ("arms: {pps: {keep_weights: none}}", False),
        ("arms: {base: {}}", False),
        ("arms: {'a b': {}}", False),
        ("keep_weights: none", True),
        ("keep_weights: [all, last]", False),
        ("name: a.b", False),
    ],
)
def test_lists_are_axes_and_arms_are_settings(text: str, valid: bool, tmp_path: Path) -> None:
    assert (faults("study", text) == []) == valid
    # The study itself is of the same opinion.
    content = {"task": "gsm8k", "model": "m", "extends": None, **yaml.safe_load(text)}
    if content["extends"] is None:
        del content["extends"]
    (tmp_path / "grid.yaml").write_text(json.dumps(content))
    if valid:
        load_grid(tmp_path / "grid.yaml")
    else:
        with pytest.raises(ConfigError):
            load_grid(tmp_path / "grid.yaml")


def test_a_variant_has_the_keys_that_are_listed_for_it() -> None:
    for section in ("proposal", "engine"):
        keys = [key for key in all_keys() if key.path.startswith(f"{section}.") and key.path.count(".") == 1]
        (types,) = [re.findall(r"`(\w+)`", key.kind) for key in keys if key.path == f"{section}.type"]
        for type_ in types:
            for key in keys:
                if not key.variants or key.default in ("required", "see below"):
                    continue
                content: dict[str, Any] = {section: {"type": type_}}
                override(content, f"{key.path}={key.default.strip('`')}")
                variants = {name for other in keys if other.path == key.path for name in other.variants}
                assert (faults("config", content) == []) == (type_ in variants), (type_, key.path)


@pytest.mark.parametrize(
    "change",
    [
        {"descripton": "x"},
        {"data": {"sourse": "x"}},
        {"data": {"generator": {"type": "sums", "term": 3}}},
        {"answer": {"type": "integer", "min": 0, "max": 4, "choices": "AB"}},
        {"answer": {"type": "integr"}},
        {"examples": [{"rationale": "r", "answer": 1}]},
        {"hint": {"variants": {"a": 1}}},
    ],
    ids=str,
)
def test_what_a_task_refuses_is_invalid(change: dict[str, Any]) -> None:
    task = yaml.safe_load((CATALOG / "sentiment/movies.yaml").read_text())
    assert faults("task", task) == []
    assert faults("task", {**task, **change})


def test_every_kind_is_printed(tmp_path: Path) -> None:
    for kind, make in SCHEMAS.items():
        result = estep("schema", kind, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == make()
    unknown = estep("schema", "run", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "'config', 'task', 'study'" in unknown.stderr


def test_keys_have_descriptions_of_one_line_and_no_section_as_default() -> None:
    replay = config_schema()["$defs"]["MStepConfig"]["properties"]["replay"]
    assert replay["description"].startswith("Number of iterations whose pairs are trained on: ")
    assert "\n" not in replay["description"]
    assert task_schema()["properties"]["user"]["description"].startswith("Jinja template of the question.")
    assert "default" not in config_schema()["properties"]["m_step"]

"""Shared parts of the tests: a tiny real model with a chat template, and small tasks."""

import gc
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import settings

from estep.config.files import read_config
from estep.progress import Silent
from estep.records import Question
from estep.shipped import CONFIGS, config_names
from estep.tasks import Task, parse_task

settings.register_profile("estep", deadline=None)  # a test does not fail because the machine is busy
settings.load_profile("estep")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

JUDGE = {
    "name": "judge",
    "data": {"source": "rows.jsonl", "id": "id"},
    "gold": {"field": "score"},
    "answer": {"type": "integer", "min": 0, "max": 4, "label": "Score"},
    "system": "You judge texts.",
    "user": "Text: {{ text }}\n{% if hint %}\nHint: {{ hint }}\n{% endif %}\n",
    "completion": "Evaluation: {{ rationale }} Score: {{ answer }}",
    "direct": "Score: {{ answer }}",
    "rationale_label": "Evaluation",
    "few_shot": "proposal",
    "max_new_tokens": 12,
    "examples": [
        {"fields": {"text": "A fine day."}, "rationale": "It praises the day in plain words.", "answer": 4},
        {"fields": {"text": "A foul day."}, "rationale": "It blames the day in plain words.", "answer": 0},
    ],
    "hint": {"variants": {"strict": "Evaluate it as if its score was {{ answer }}."}, "default": "strict"},
}
"""A small judge task, as its YAML would read."""


JOINED = [
    " or {b}",
    ", {b}",
    " and {b}",
    " to {b}",
    "; {b}",
    " \u2013 {b}",
    " ({b})",
    " (or {b})",
    " or maybe {b}",
    " & {b}",
]
"""Ways to state a second answer `b` behind a first one."""


class Listen(Silent):
    """Records the lines that it receives."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def task_of(**changes: object) -> Task:
    """The judge task with some keys changed."""
    return Task(parse_task(yaml.safe_dump({**JUDGE, **changes}), "judge.yaml"))


def questions_of(task: Task, answers: str) -> list[Question]:
    """One question for each digit of `answers`: q0, q1, ..."""
    return [
        task.question({"text": f"text number {number}"}, int(answer), f"q{number}")
        for number, answer in enumerate(answers)
    ]


def write_task(folder: Path, rows: int = 12, **changes: object) -> Path:
    """A judge task with its rows in a folder; the path of the task file."""
    lines = [{"id": f"r{n}", "text": f"text {n} " + "word " * (n % 4), "score": n % 5} for n in range(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if "function" in str(changes.get("answer")):
        shutil.copy(Path(__file__).with_name("verifiers.py"), folder)
    path = folder / "judge.yaml"
    path.write_text(yaml.safe_dump({**JUDGE, **changes}))
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of a GPU run only where `-m` names their marker: they take a whole card for minutes."""
    if "gpu" in config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage() -> None:
    """Set aside what was imported so far. Otherwise a run of a tiny model spends most of its time searching it for
    garbage, whenever it frees a model: tests that follow those of vLLM take ten times as long."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def garbage_is_found_again_at_the_end() -> Iterator[None]:
    """Undo `imports_are_no_garbage`, so that libraries do not report leaks at the interpreter's exit."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny model."""
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny-model"))
    gc.collect()
    gc.freeze()  # making the model imports more
    return folder


def make_tiny_model(folder: Path, hidden_size: int = 32) -> str:
    """Write a random two-layer Llama with grouped queries and a byte-level tokenizer; returns its folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate([*special, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[1],
        chat_template=CHATML,
    )
    fast.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(special) + len(letters),
                hidden_size=hidden_size,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                initializer_range=0.3,  # large, so that two prompts give clearly different texts
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
                tie_word_embeddings=True,
            )
        )
    model.save_pretrained(folder)
    return str(folder)


def make_sliding_model(tiny_model: str, folder: Path) -> Any:
    """Write a random Qwen2 with a full and a sliding layer, and the tiny model's tokenizer; returns the model."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=258,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.3,
                use_sliding_window=True,
                sliding_window=16,
                max_window_layers=1,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
    assert set(model.config.layer_types) == {"full_attention", "sliding_attention"}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return model


def shipped(study: bool) -> list[Path]:
    """The shipped configurations of runs, or those of studies: they have arms."""
    return [CONFIGS / f"{name}.yaml" for name in config_names() if ("arms" in read_config(name)[1]) == study]


def script(name: str, folder: str = "scripts") -> ModuleType:
    """A script of the project as a module, by its name in `scripts/` or in another folder."""
    path = Path(__file__).parents[1] / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

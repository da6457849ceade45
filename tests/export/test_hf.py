"""Model folders: what transformers reads from them, and that they answer as the run does."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from estep.errors import ConfigError, DataError, StoreError
from estep.export.folder import finished_folder
from estep.export.hf import compare, write_model
from estep.export.source import find_trained
from estep.export.weights import write_weights
from estep.models.loading import load_chat, load_model, with_fixed_date
from estep.progress import Silent
from export.conftest import Command


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def test_the_folder_is_the_run_for_transformers(trained: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    printed = command("export", trained, "--to", "hf", "-o", out)
    assert "log-probabilities differ by 0 nats per token" in printed
    assert "4 of 4 greedy answers and 4 texts are the same" in printed
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "export.json", "task.yaml", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    run_weights = weights_of(trained / "iteration-02/weights")
    assert all(torch.equal(weight, run_weights[name]) for name, weight in weights_of(out).items())
    # Asked as its users will ask it: the chat template, greedy, until the end of turn.
    found = find_trained(str(trained))
    question, response = found.responses()[0]
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    prompt = tokenizer.apply_chat_template(
        list(found.task.prompt(question)), add_generation_prompt=True, return_tensors="pt"
    )
    said = model.generate(**prompt)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == response.text
    settings = GenerationConfig.from_pretrained(out)
    assert (settings.max_new_tokens, settings.eos_token_id, settings.top_k) == (8, [1], 1)
    record = json.loads((out / "export.json").read_text())
    assert (record["run"], record["iteration"], record["dtype"], record["format"]) == ("run", 2, "float32", "hf")
    # The task asks as the run did, wherever its data were.
    task = yaml.safe_load((out / "task.yaml").read_text())
    assert (task["few_shot"], task["max_new_tokens"], task["data"]["source"]) == ("proposal", 8, "rows.jsonl")


def test_an_adapter_is_merged(adapter: Path, tmp_path: Path, command: Command) -> None:
    printed = command("export", adapter / "iteration-01", "--to", "hf", "-o", tmp_path / "out", "--dtype", "float32")
    assert "4 of 4 greedy answers" in printed
    expected = load_model(str(adapter / "iteration-01/weights"), "float32", "cpu").state_dict()
    base = weights_of(
        Path(json.loads((adapter / "iteration-01/weights/adapter_config.json").read_text())["base_model_name_or_path"])
    )
    merged = weights_of(tmp_path / "out")
    assert all(torch.equal(weight, expected[name]) for name, weight in merged.items())
    assert sum(not torch.equal(weight, base[name]) for name, weight in merged.items()) > 4
    assert not (tmp_path / "out/adapter_config.json").exists()


def test_weights_are_cut_into_files_as_transformers_expects(trained: Path, tmp_path: Path) -> None:
    source, out = str(trained / "iteration-02/weights"), tmp_path / "out"
    out.mkdir()
    write_weights(source, out, "bfloat16", shard_bytes=20_000)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 2
    assert all(sum(t.nbytes for t in load_file(out / name).values()) <= 20_000 for name in files)
    expected = weights_of(trained / "iteration-02/weights")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name].to(torch.bfloat16)) for name, weight in loaded.items())


def test_weights_of_another_model_are_refused(trained: Path, tmp_path: Path) -> None:
    found = find_trained(str(trained))
    stale = find_trained(str(trained), iteration=1)

    def export_stale() -> None:
        with finished_folder(tmp_path / "out", force=False) as folder:
            write_model(stale, folder, "float32")
            compare(found, folder, "float32", 4, Silent())

    with pytest.raises(DataError, match="the exported model is not the run's: on 4 held-out questions"):
        export_stale()
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_writes_the_date_writes_the_one_that_the_run_trained_with(
    trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    weights = copy / "iteration-02/weights"
    template = (weights / "chat_template.jinja").read_text()
    dated = "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    (weights / "chat_template.jinja").write_text(
        dated + "{{ 'Today: ' + date_string + strftime_now('%Y') }}" + template
    )
    found, out = find_trained(str(copy)), tmp_path / "out"
    out.mkdir()
    write_model(found, out, "float32")
    messages = [{"role": "user", "content": "x"}]
    shown = AutoTokenizer.from_pretrained(out).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown.startswith("Today: 26 Jul 202426 Jul 2024<|im_start|>user")
    assert load_chat(str(out)).prompt_ids(tuple(messages)) == load_chat(str(weights)).prompt_ids(tuple(messages))
    assert with_fixed_date(template) == template


def test_the_iteration_that_a_name_stands_for(trained: Path) -> None:
    assert find_trained(str(trained)).step.number == 2
    for name in ("iteration-01", "iteration-01/weights"):
        found = find_trained(str(trained / name))
        assert (found.step.number, found.weights) == (1, str(trained / "iteration-01/weights"))
    with pytest.raises(ConfigError, match=r"--iteration 2, but .* is iteration 1"):
        find_trained(str(trained / "iteration-01"), 2)
    with pytest.raises(ConfigError, match=r"iteration 3 of .*: the run has trained iterations from 1 to 2"):
        find_trained(str(trained), 3)
    with pytest.raises(DataError, match="is no run folder"):
        find_trained(str(trained.parent))


def test_weights_that_were_not_kept_are_named(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "iteration-01/weights")
    with pytest.raises(DataError, match=r"weights of iteration 1 .* were not kept .* there are those of iteration 2"):
        find_trained(str(copy), 1)


def test_only_an_export_is_replaced(trained: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    arguments = ("export", trained, "--to", "hf", "--check", "0", "-o", out)
    assert "is not empty; name another folder" in command.refused(*arguments)
    assert "is not empty and no export" in command.refused(*arguments, "--force")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").rename(out / "export.json")
    assert "not checked (--check 0)" in command(*arguments, "--force")
    assert json.loads((out / "export.json").read_text())["parity"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_export_leaves_the_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with finished_folder(out, False) as folder:
        (folder / "export.json").write_text("{}")

    def fail() -> None:
        with finished_folder(out, force=True):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match="the disk is full"):
        fail()
    assert [path.name for path in out.iterdir()] == ["export.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

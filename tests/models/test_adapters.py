"""Adapters merged tensor by tensor, against PEFT's own merge."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from estep.errors import DataError
from estep.models.adapters import merged_tensors, obstacle
from estep.models.loading import load_model

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def adapter(tiny_model: str, tmp_path: Path) -> Callable[..., str]:
    """Writes an adapter with random weights on a base model; returns its folder."""

    def write(base: str = tiny_model, **options: Any) -> str:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = get_peft_model(
                AutoModelForCausalLM.from_pretrained(base),
                LoraConfig(task_type="CAUSAL_LM", **{"r": 3, "lora_alpha": 8, "target_modules": LINEAR, **options}),
            )
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path / "adapter")
        return str(tmp_path / "adapter")

    return write


def base_weights(path: str) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(path).state_dict())


def changed(path: str, base: str) -> set[str]:
    """The weights that the adapter changes. Every merged weight must be PEFT's, and none may be missing."""
    assert obstacle(path) is None
    expected, before = load_model(path, "float32", "cpu").state_dict(), base_weights(base)
    merged = dict(merged_tensors(path))
    assert merged.keys() == expected.keys() - {"lm_head.weight"}  # tied to the embedding
    for name, weight in merged.items():
        assert torch.equal(weight.float(), expected[name]), name
    return {name.split(".")[-2] for name, weight in merged.items() if not torch.equal(weight.float(), before[name])}


@pytest.mark.parametrize("target", LINEAR)
def test_each_target_is_merged_as_peft_merges_it(adapter: Callable[..., str], tiny_model: str, target: str) -> None:
    assert changed(adapter(target_modules=[target]), tiny_model) == {target}


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.1.mlp.up_proj": 32}},
        {"layers_to_transform": [1]},
        {"lora_dropout": 0.1, "init_lora_weights": "gaussian"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_lora_are_merged_as_peft_merges_them(
    adapter: Callable[..., str], tiny_model: str, options: dict[str, Any]
) -> None:
    assert changed(adapter(**options), tiny_model) == set(LINEAR)


def test_a_base_model_of_several_files_is_merged(adapter: Callable[..., str], tiny_model: str, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_model).to(torch.bfloat16).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    assert changed(adapter(str(sharded)), str(sharded)) == set(LINEAR)


def test_layers_that_keep_their_weights_transposed_are_merged(adapter: Callable[..., str], tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(2)
        base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    base.save_pretrained(tmp_path / "gpt2")
    path = adapter(str(tmp_path / "gpt2"), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    # `c_proj` of the attention is square: only the option tells in which order it keeps its weight.
    assert changed(path, str(tmp_path / "gpt2")) == {"c_attn", "c_proj"}


def test_a_base_model_of_the_hub_is_found_in_its_cache(
    adapter: Callable[..., str], tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = adapter()
    snapshot = tmp_path / "hub/models--owner--name/snapshots/0123"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny_model)
    refs = tmp_path / "hub/models--owner--name/refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = Path(path) / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "base_model_name_or_path": "owner/name"}))
    assert obstacle(path) is None
    before = base_weights(tiny_model)
    assert {name for name, _ in merged_tensors(path)} == before.keys() - {"lm_head.weight"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "the adapter sets use_dora=True"),
        ({"bias": "all"}, "the adapter sets bias=all"),
        ({"modules_to_save": ["norm"]}, r"the adapter sets modules_to_save=\['norm'\]"),
        ({"init_lora_weights": "pissa"}, "the adapter sets init_lora_weights=pissa"),
        ({"target_modules": ["embed_tokens"]}, r"the adapter holds .*embed_tokens"),
        ({"target_modules": ["lm_head"]}, r"the base model's lm_head\.weight, which the adapter changes, is not there"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore")  # PEFT advises against some of them
def test_what_is_more_than_a_plain_adapter_is_refused(
    adapter: Callable[..., str], options: dict[str, Any], reason: str
) -> None:
    path = adapter(**options)
    with pytest.raises(DataError, match=reason):
        list(merged_tensors(path))
    assert obstacle(path) is not None


@pytest.mark.filterwarnings("ignore")  # PEFT advises against it
def test_a_head_that_is_tied_is_refused_even_if_the_file_has_it(
    adapter: Callable[..., str], tiny_model: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "base")
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    path = adapter(str(copy), target_modules=["lm_head"])
    tensors = Path(path) / "adapter_model.safetensors"  # PEFT also saves the head itself, unless it is told not to
    save_file({name: at for name, at in load_file(tensors).items() if "lora_" in name}, tensors, {"format": "pt"})
    assert obstacle(path) == "the adapter changes a head that is tied to the embedding"


def test_a_base_model_without_safetensors_is_refused(
    adapter: Callable[..., str], tiny_model: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "base")
    path = adapter(str(copy))
    (copy / "model.safetensors").unlink()
    assert obstacle(path) == f"the model {copy} has no safetensors files"

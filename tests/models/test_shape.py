"""The size of a model, from its configuration alone."""

import socket

import pytest

from estep.config import LoRAConfig
from estep.errors import SourceError
from estep.models.registry import HUB_MODELS
from estep.models.shape import measured, shape_of, shipped_shapes

PUBLISHED = {
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b": 70_553_706_496,
    "qwen2.5-72b": 72_706_203_648,
}
"""The parameters that the models' pages on the hub state."""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a test opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", HUB_MODELS)
def test_every_model_of_the_registry_has_the_published_number_of_parameters(name: str) -> None:
    shape = shape_of(name)
    assert shape.parameters == PUBLISHED[name]
    assert round(shape.parameters / 1e9, 1) == round(HUB_MODELS[name].parameters, 1)
    assert shape == shape_of(HUB_MODELS[name].hub_id)


@pytest.mark.usefixtures("offline")
def test_the_parts_of_a_model_with_a_head_of_its_own() -> None:
    # Llama 3.1 8B: an embedding of 128,256 x 4,096, and a head of the same size. A layer has attention
    # (4,096 x 4,096 x 2 + 4,096 x 1,024 x 2), a feed-forward part (3 x 4,096 x 14,336) and two norms of 4,096.
    shape = shape_of("llama-3.1-8b")
    layer = 4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336 + 2 * 4096
    assert (shape.embedding, shape.head, shape.tied) == (128256 * 4096, 128256 * 4096, False)
    assert (shape.largest_layer, shape.in_layers, shape.layers) == (layer, 32 * layer, 32)
    assert shape.root == 2 * 128256 * 4096 + 4096  # with the last norm
    assert (shape.hidden, shape.inner, shape.heads, shape.kv_heads, shape.head_dim) == (4096, 14336, 32, 8, 128)
    assert (shape.vocab, shape.context) == (128256, 131072)
    # A token's keys and values: 2 x 32 layers x 8 heads x 128 x 2 bytes = 131,072 bytes.
    assert shape.cache_bytes(2) == 131072


@pytest.mark.usefixtures("offline")
def test_a_tied_head_counts_once() -> None:
    shape = shape_of("qwen2.5-1.5b")
    assert shape.tied
    assert shape.parameters == shape.in_layers + 151936 * 1536 + 1536


def test_an_adapter_has_r_times_the_inputs_and_outputs_of_each_linear_layer(tiny_model: str) -> None:
    from peft import LoraConfig, get_peft_model

    from estep.models.loading import load_model

    for modules in ("all-linear", ("q_proj", "down_proj")):
        model = load_model(tiny_model, "float32", "cpu")
        targets = modules if isinstance(modules, str) else list(modules)
        adapted = get_peft_model(model, LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM"))
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert shape_of(tiny_model).adapter(LoRAConfig(r=3, target_modules=modules)) == trained


def test_a_folder_is_measured_as_its_weights_are(tiny_model: str) -> None:
    from estep.models.loading import load_model

    model = load_model(tiny_model, "float32", "cpu")
    shape = shape_of(tiny_model)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape == measured(model.config)


def test_other_architectures_are_counted_by_the_code_that_builds_them() -> None:
    from transformers import AutoConfig

    # GPT-2: 50,257 x 768 tokens, 1,024 x 768 positions, 12 layers of 7,087,872 and a norm of 1,536: 124,439,808.
    shape = measured(AutoConfig.for_model("gpt2"))
    assert (shape.parameters, shape.largest_layer, shape.layers) == (124_439_808, 7_087_872, 12)


@pytest.mark.parametrize(
    ("kind", "settings", "numbers"),
    [
        # Of six layers, every sixth attends to all positions, and five to a window: 2 x 4 heads x 256.
        ("gemma3_text", {"num_hidden_layers": 6, "vocab_size": 8}, 2 * 4 * 256),
        # Four layers keep a compressed vector of 512 and a rotated key of 64.
        ("deepseek_v3", {"num_hidden_layers": 4, "vocab_size": 8, "n_routed_experts": 8}, 4 * (512 + 64)),
    ],
)
def test_the_cache_counts_what_grows_with_every_token(kind: str, settings: dict[str, int], numbers: int) -> None:
    from transformers import AutoConfig

    assert measured(AutoConfig.for_model(kind, **settings)).cache_bytes(2) == 2 * numbers


def test_a_folder_without_a_model_is_refused(tmp_path: object) -> None:
    with pytest.raises(SourceError, match="could not read the shape of"):
        shape_of(str(tmp_path))


def test_the_demos_model_is_known_without_its_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("ESTEP_CACHE", str(tmp_path))
    assert shape_of("smollm2-135m").parameters == 134_515_008
    assert set(shipped_shapes()) > {model.hub_id for model in HUB_MODELS.values()}

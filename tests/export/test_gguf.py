"""GGUF files through llama.cpp's own converter, read back by transformers."""

import json
import os
import sys
from pathlib import Path

import pytest

from conftest import write_task
from estep.errors import ConfigError, DataError
from estep.export.gguf import LlamaCpp, Storage, write_gguf
from estep.export.hf import write_model
from estep.export.source import find_trained
from estep.sources.archives import fetch
from export.conftest import Command
from runs import ANY_TEXT, run, settings

CONVERTER = Path(os.environ.get("LLAMA_CPP") or Path(sys.prefix) / "llama.cpp")
needs_the_converter = pytest.mark.skipif(
    not (CONVERTER / "convert_hf_to_gguf.py").is_file(),
    reason=f"no convert_hf_to_gguf.py in {CONVERTER} (sh scripts/install_llama_cpp.sh installs it; or set LLAMA_CPP)",
)


@pytest.fixture(scope="session")
def real_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model with SmolLM2's tokenizer: the converter knows the tokenizers of published models alone."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("real-tokens")
    tokenizer = AutoTokenizer.from_pretrained(fetch("smollm2-135m"))
    tokenizer.save_pretrained(folder / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                initializer_range=0.3,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                tie_word_embeddings=True,
            )
        )
    model.save_pretrained(folder / "model")
    m_step = {"learning_rate": [3e-2, 3e-2], "batch_size": 4, "device": "cpu"}
    run(str(folder / "model"), write_task(folder, **ANY_TEXT), settings(folder / "run", m_step=m_step, iterations=1))
    return folder / "run"


@needs_the_converter
@pytest.mark.slow
def test_the_file_has_the_weights_and_the_tokenizer_of_the_run(
    real_tokens: Path, tmp_path: Path, command: Command
) -> None:
    from gguf import GGUFReader

    arguments = ("export", real_tokens, "--llama-cpp", CONVERTER)
    printed = command(*arguments, "--to", "gguf", "-o", tmp_path / "gguf")
    assert "log-probabilities differ by 0 nats per token" in printed
    assert "4 of 4 greedy answers and 4 texts are the same" in printed
    assert {path.name for path in (tmp_path / "gguf").iterdir()} == {
        "model.gguf",
        "README.md",
        "task.yaml",
        "export.json",
    }
    printed = command(*arguments, "--to", "ollama", "-o", tmp_path / "ollama", "--quantize", "Q8_0")
    assert f"next: cd {tmp_path / 'ollama'} && ollama create run -f Modelfile" in printed
    assert "FROM ./model.gguf" in (tmp_path / "ollama/Modelfile").read_text()
    record = json.loads((tmp_path / "ollama/export.json").read_text())
    assert (record["format"], record["dtype"], record["parity"]["tolerance"]) == ("ollama", "q8_0", 0.05)
    assert 0 < record["parity"]["difference"] < 0.05
    kinds = [
        {
            tensor.tensor_type.name
            for tensor in GGUFReader(tmp_path / name / "model.gguf").tensors
            if tensor.data.ndim > 1
        }
        for name in ("gguf", "ollama")
    ]
    assert kinds == [{"F32"}, {"Q8_0"}]


@needs_the_converter
@pytest.mark.slow
def test_a_model_that_the_converter_does_not_know_is_one_line(trained: Path, tmp_path: Path) -> None:
    found, model = find_trained(str(trained)), tmp_path / "model"
    model.mkdir()
    write_model(found, model, "float32")
    with pytest.raises(DataError, match=r"convert_hf_to_gguf.py failed: .*BPE pre-tokenizer was not recognized"):
        write_gguf(found, model, tmp_path / "model.gguf", Storage(LlamaCpp(CONVERTER, None), "float32"))


def test_a_missing_part_of_llama_cpp_is_named_before_anything_is_written(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ("export", trained, "--to", "gguf", "-o", tmp_path / "out")
    assert command.refused(*arguments).startswith(
        "llama.cpp's converter convert_hf_to_gguf.py was not found on the path;"
    )
    there = tmp_path / "llama.cpp"
    there.mkdir()
    assert f"was not found in {there}; get it with 'git clone" in command.refused(*arguments, "--llama-cpp", there)
    (there / "convert_hf_to_gguf.py").write_text("")
    monkeypatch.setenv("LLAMA_CPP", str(there))
    line = command.refused(*arguments, "--quantize", "Q4_K_M")
    assert line.startswith("--quantize q4_k_m needs llama.cpp's program llama-quantize, which was not found in ")
    assert "did you mean 'q4_k_m'?" in command.refused(*arguments, "--quantize", "q4_km")
    for option in (("--quantize", "q8_0"), ("--llama-cpp", str(there))):
        line = command.refused("export", trained, "--to", "hf", *option)
        assert line.endswith(" needs --to gguf or --to ollama")
    assert not (tmp_path / "out").exists()


def test_how_llama_cpps_programs_are_called(tmp_path: Path) -> None:
    said = "import pathlib, sys; pathlib.Path(sys.argv[{}]).write_text(' '.join(sys.argv[1:]))"
    (tmp_path / "convert_hf_to_gguf.py").write_text(said.format(3))
    quantize = tmp_path / "build/bin/llama-quantize"
    quantize.parent.mkdir(parents=True)
    quantize.write_text(f"#!{sys.executable}\n{said.format(2)}\n")
    quantize.chmod(0o755)
    llama_cpp = LlamaCpp(tmp_path, "q4_k_m")
    whole, small = tmp_path / "whole.gguf", tmp_path / "small.gguf"
    llama_cpp.convert(tmp_path / "model", whole, "bf16", "judge")
    llama_cpp.quantize(whole, small, "q4_k_m")
    assert whole.read_text() == f"{tmp_path / 'model'} --outfile {whole} --outtype bf16 --model-name judge"
    assert small.read_text() == f"{whole} {small} Q4_K_M"
    quantize.write_text("#!/bin/sh\necho 'main: failed to quantize' >&2\nexit 1\n")
    with pytest.raises(DataError, match="llama-quantize failed: main: failed to quantize"):
        llama_cpp.quantize(whole, small, "q4_k_m")
    with pytest.raises(ConfigError, match="was not found in"):
        LlamaCpp(tmp_path / "build", None)

"""Random models and random texts for the checks of a GPU."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from estep.records import Draw, Messages, Pair
from estep.sources.archives import fetch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SEED = 257


@dataclass(frozen=True)
class Shape:
    """A Qwen2 model."""

    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int
    vocab: int

    def config(self) -> Any:
        from transformers import Qwen2Config

        return Qwen2Config(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            vocab_size=self.vocab,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )


SHAPE_1_5B = Shape(1536, 8960, 28, 12, 2, 151_936)
SHAPE_0_5B = Shape(896, 4864, 24, 14, 2, 151_936)
TINY = Shape(128, 256, 2, 2, 1, 49_152)
OTHER = Shape(192, 256, 3, 3, 1, 49_152)
"""Of a second model, unlike the first."""


@dataclass(frozen=True)
class Work:
    """The size of the measurements."""

    prompts: int
    """Prompts to read, and pairs to train on."""
    words: int
    """Words per long prompt; a word takes between two and three tokens."""
    sequences: int
    """Sequences that are written at the same time."""
    new: int
    """Tokens written per sequence."""


WORK = Work(64, 300, 256, 256) if CUDA else Work(32, 20, 8, 8)


def shape_for(bytes_of_card: int) -> Shape:
    """The largest shape whose full fine-tuning fits: it takes 28 GB and activations, or 9 GB and activations."""
    return SHAPE_1_5B if bytes_of_card > 70e9 else SHAPE_0_5B


def write_model(folder: Path, shape: Shape) -> str:
    """Write a random model with SmolLM2's tokenizer; returns its folder."""
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(fetch("smollm2-135m"))
    config = shape.config()
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def text_of(source: random.Random, words: int) -> str:
    """Random words, so that two texts have no beginning in common."""
    return " ".join("".join(source.choice("aeioubdgklmnprst") for _ in range(4)) for _ in range(words))


def prompts_of(number: int, words: int, seed: int = SEED) -> list[Messages]:
    source = random.Random(seed)
    return [({"role": "user", "content": text_of(source, words)},) for _ in range(number)]


def draws_of(number: int, words: int, seed: int = SEED) -> list[Draw]:
    return [
        Draw(f"q{n}#{seed}", f"q{n}", 0, 0, "rejection", False, prompt, seed * 1000 + n)
        for n, prompt in enumerate(prompts_of(number, words, seed))
    ]


def pairs_of(number: int, words: int) -> list[Pair]:
    source = random.Random(SEED + 1)
    return [
        Pair(f"q{n}", f"q{n}#0.0", prompt, text_of(source, max(4, words // 4)))
        for n, prompt in enumerate(prompts_of(number, words))
    ]

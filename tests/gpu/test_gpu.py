"""What only a GPU can prove. `make gpu` runs it, and prints a table of its figures at the end.

A check that needs much memory or an engine is a function that runs in a process of its own: a failed one leaves nothing
behind, and closing an engine badly may end its process. `python tests/gpu/test_gpu.py CHECK MODEL FOLDER` runs one.
Without a GPU, the checks run on a tiny model with the transformers engine, which shows that they themselves work.

The model is random and has the shape of Qwen2.5-1.5B (0.5B on cards below 70 GB), with SmolLM2's tokenizer.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from estep.config import EngineConfig, MStepConfig, TransformersEngineConfig, VLLMEngineConfig
from estep.engines import DrawQueue, Engine, Sampling, open_engine
from estep.errors import EstepError, StaleWeightsError
from estep.m_step import attention
from estep.m_step.attention import packed_attention
from estep.m_step.base import MStepInput, MStepResult
from estep.m_step.canary import ROUNDING, check_canary
from estep.m_step.head import CompletionLoss
from estep.m_step.packing import pack, register
from estep.m_step.sft import SFTMStep
from estep.records import Draw, Messages, ModelRef, Pair, Sample
from estep.sources.archives import fetch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SEED = 257
MINUTES = 30
"""After this time, a check has failed."""


def gpu(test: Any) -> Any:
    """Marks a test that needs a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not CUDA, reason="needs a CUDA device")(test))


gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


# The model, and the work


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
TINY = Shape(32, 64, 2, 4, 2, 49_152)
OTHER = Shape(128, 256, 3, 2, 1, 49_152)
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


def engine_config(**changes: Any) -> EngineConfig:
    """One copy of vLLM on a GPU, or of transformers on a CPU."""
    kind: Any = VLLMEngineConfig if CUDA or os.environ.get("ESTEP_TEST_ENGINE") == "vllm" else TransformersEngineConfig
    config: EngineConfig = kind(**{"data_parallel": 1, **changes})
    return config


def sampled(engine: Engine, draws: list[Draw], new: int, temperature: float = 1.0) -> list[Sample]:
    samples = list(engine.generate(DrawQueue(draws), Sampling(temperature, 1.0, new)))
    assert {sample.draw_id for sample in samples} == {draw.id for draw in draws}
    assert len(samples) == len(draws)
    assert all(math.isfinite(sample.logprob) for sample in samples)
    return samples


def free_bytes() -> int:
    """Free memory of the GPU."""
    if not CUDA:
        return 0
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


def taken(work: Callable[[], Any]) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def tolerance(tokens: int, nats: float) -> float:
    """The largest difference between two log-probabilities that bfloat16 explains."""
    return ROUNDING * math.sqrt(tokens + abs(nats))


def train(
    model: str, folder: Path, pairs: Sequence[Pair], engine: Engine | None = None, **settings: Any
) -> MStepResult:
    """One M-step, on one device unless the settings say otherwise."""
    advance = settings.pop("advance", lambda pairs: None)
    release = settings.pop("release", engine.release if engine else lambda: None)
    config = MStepConfig(**{"devices": 1, "batch_size": 8, **settings})
    inputs = MStepInput(
        start=ModelRef(model),
        iteration=1,
        pairs=pairs,
        learning_rate=1e-4 if CUDA else 1e-3,
        seed=SEED,
        folder=folder,
        score_before=engine.score if engine else lambda prompt, text: -1.0,
        advance=advance,
        release=release,
    )
    trained = SFTMStep(config, None, "stop", "bfloat16")(inputs)
    assert trained is not None
    return trained


# The checks: each in a process of its own. Arguments: a model's folder, and an empty folder.


def starts(model: str, folder: Path) -> dict[str, Any]:
    """An engine starts, samples every draw, and scores as transformers does."""
    from estep.models.loading import load_chat, load_model
    from estep.models.tokens import sequence_logprob

    opened: list[Engine] = []
    seconds = taken(lambda: opened.append(open_engine(engine_config(), ModelRef(model))))
    (engine,) = opened
    sampled(engine, draws_of(WORK.sequences, 20), WORK.new)
    chat, text = load_chat(model), text_of(random.Random(0), 60)
    (prompt,) = prompts_of(1, 60)
    score = engine.score(prompt, text)
    with torch.inference_mode():
        expected = sequence_logprob(load_model(model, "bfloat16", DEVICE), chat, prompt, text)
    tokens = len(chat.completion_ids(text))
    engine.close()
    return {"seconds": seconds, "difference": score - expected, "tolerance": tolerance(tokens, expected)}


def reloads(model: str, folder: Path) -> dict[str, Any]:
    """An engine sleeps, gives its memory to the M-step, wakes with the trained weights, and its canary proves it."""
    start = free_bytes()
    engine = open_engine(engine_config(), ModelRef(model))
    sampled(engine, draws_of(8, 20), 8)
    asleep: list[int] = []

    def release() -> None:
        engine.release()
        asleep.append(free_bytes())

    trained = train(model, folder / "trained", pairs_of(16, 100), engine, release=release)
    seconds = taken(lambda: engine.load(trained.model))
    checked = check_canary(engine, trained.canary)
    sampled(engine, draws_of(8, 20, seed=1), 8)
    engine.release()
    engine.load(ModelRef(model))
    try:
        check_canary(engine, trained.canary)
        stale = "passed"
    except StaleWeightsError:
        stale = "refused"
    engine.close()
    return {
        **checked,
        "stale": stale,
        "kept_asleep": start - asleep[0],
        "seconds": seconds,
        "left": start - free_bytes(),
    }


def closes_asleep(model: str, folder: Path) -> dict[str, Any]:
    """A run whose M-step fails closes its sleeping engine, gives its memory back, and another engine can start."""
    start = free_bytes()

    def fails(inputs: MStepInput) -> None:
        inputs.release()
        raise EstepError("this M-step fails")

    failure = ""
    try:
        run(model, folder, engine_config().type, fails)
    except EstepError as error:
        failure = str(error)
    left = start - free_bytes()
    engine = open_engine(engine_config(), ModelRef(model))
    sampled(engine, draws_of(8, 20), 8)
    engine.close()
    return {"failure": failure, "left": left}


def two_models(model: str, folder: Path) -> dict[str, Any]:
    """Two models, one after the other, in one process."""
    left = []
    start = free_bytes()
    for path in (model, write_model(folder / "other", OTHER), model):
        engine = open_engine(engine_config(), ModelRef(path))
        sampled(engine, draws_of(8, 20), 8)
        engine.close()
        del engine
        left.append(start - free_bytes())
    return {"left": left}


def iteration_with_transformers(model: str, folder: Path) -> dict[str, Any]:
    """Algorithm 1, once, with the transformers engine."""
    return run(model, folder, "transformers")


def iteration(model: str, folder: Path) -> dict[str, Any]:
    """Algorithm 1, once, with the engine of this machine."""
    return run(model, folder, engine_config().type)


def run(model: str, folder: Path, engine: str, m_step: Any = None) -> dict[str, Any]:
    """One iteration on a task whose every text is right, so that a random model has something to be trained on."""
    from conftest import write_task
    from estep import FEMConfig, FEMTrainer
    from runs import ANY_TEXT

    small = 8 if CUDA else 2
    settings = {
        "engine": {"type": engine, "max_new_tokens": WORK.new // 4, "data_parallel": 1},
        "m_step": {"learning_rate": 1e-5 if CUDA else 1e-3, "batch_size": small, "devices": 1},
        "filters": {"min_rationale_words": 0, "drop_truncated": False},
        "iterations": 1,
        "train_size": 4 * small,
        "test_size": small,
        "run_dir": str(folder / "run"),
    }
    folder.mkdir(exist_ok=True)
    task = str(write_task(folder, rows=8 * small, **ANY_TEXT))
    result = FEMTrainer(model, task, FEMConfig.model_validate(settings), m_step=m_step).train()
    last = result.last
    assert last.m_step is not None
    return {
        "pairs": last.m_step.pairs,
        "loss": last.m_step.mean_loss,
        "seconds": last.seconds,
        "weights": (Path(result.model) / "config.json").is_file(),
    }


def engine_speed(model: str, folder: Path) -> dict[str, Any]:
    """Tokens that an engine reads and writes per second."""
    engine = open_engine(engine_config(), ModelRef(model))
    sampled(engine, draws_of(4, WORK.words, seed=1), 2)  # some kernels are compiled when they are first used
    read: list[Sample] = []
    reading = taken(lambda: read.extend(sampled(engine, draws_of(WORK.prompts, WORK.words), 1)))
    written: list[Sample] = []
    writing = taken(lambda: written.extend(sampled(engine, draws_of(WORK.sequences, 8, seed=2), WORK.new)))
    engine.close()
    return {
        "read": sum(sample.prompt_tokens for sample in read),
        "reading": reading,
        "written": sum(sample.completion_tokens for sample in written),
        "writing": writing,
        "steps": max(sample.completion_tokens for sample in written),
    }


def training_speed(model: str, folder: Path) -> dict[str, Any]:
    """Tokens that the M-step trains on per second, and its peak memory, against the plan's."""
    from estep.models.shape import shape_of

    from estep.m_step.memory_plan import memory_needs

    size = WORK.prompts // 16  # 16 gradient steps
    settings = {"batch_size": size, "micro_batch_size": size, "gradient_checkpointing": False}
    ends: list[float] = []

    def advance(pairs: int) -> None:
        if CUDA:
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    trained = train(model, folder / "trained", pairs_of(WORK.prompts, WORK.words), advance=advance, **settings)
    positions, targets = trained.tokens / trained.steps, trained.completion_tokens / trained.steps
    needs = memory_needs(shape_of(model), MStepConfig(devices=1, **settings), 1)
    return {
        "positions": positions,
        "targets": targets,
        "pairs": size,
        "seconds": (ends[-1] - ends[0]) / (len(ends) - 1),
        "peak": torch.cuda.max_memory_allocated() if CUDA else 0,
        "planned": needs.peak(int(positions), int(targets), False),
    }


def several_devices(model: str, folder: Path) -> dict[str, Any]:
    """The M-step on all GPUs against one. Without a GPU, on two processes."""
    pairs = pairs_of(33, 60)  # an odd number
    one = train(model, folder / "one", pairs)
    both = train(model, folder / "all", pairs, devices="auto" if CUDA else 2)
    return {
        "losses": [one.losses, both.losses],
        "canaries": [one.canary.logprob, both.canary.logprob],
        "before": one.canary.before,
        "tolerance": one.canary.tolerance,
    }


def pool(model: str, folder: Path) -> dict[str, Any]:
    """A copy of the model per GPU: every draw is sampled once, and every copy takes new weights."""
    from estep.engines.base import copies_scores

    engine = open_engine(engine_config(data_parallel="auto" if CUDA else 2), ModelRef(model))
    sampled(engine, draws_of(WORK.sequences, 20, seed=1), 2)
    written: list[Sample] = []
    seconds = taken(lambda: written.extend(sampled(engine, draws_of(WORK.sequences, 20), WORK.new)))
    trained = train(model, folder / "trained", pairs_of(16, 100), engine)
    engine.load(trained.model)
    checked = check_canary(engine, trained.canary)
    (prompt, text), *_ = trained.canary.responses
    copies = len(copies_scores(engine, prompt, text))
    engine.close()
    return {
        "copies": copies,
        "telling": checked["telling"],
        "tokens_per_second": sum(sample.completion_tokens for sample in written) / seconds,
    }


def in_a_process(check: Callable[[str, Path], dict[str, Any]], model: str, folder: Path) -> dict[str, Any]:
    """Run a check in a process of its own; fails the test with the end of its output."""
    roots = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.run(
        [sys.executable, __file__, check.__name__, model, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith(_RESULT)]
    if process.returncode or not lines:
        code = process.returncode
        ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        pytest.fail(f"{check.__name__}: {ended}\n{process.stdout[-2000:]}\n{process.stderr[-4000:]}", pytrace=False)
    result: dict[str, Any] = json.loads(lines[-1].removeprefix(_RESULT))
    return result


_RESULT = "RESULT "


# The figures


class Table:
    """The figures of this session. As a plugin of pytest, it prints them after the tests."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []

    def add(self, what: str, figure: str, against: str = "") -> None:
        self.rows.append((what, figure, against))

    def lines(self) -> list[str]:
        widths = [max(len(row[column]) for row in self.rows) for column in range(3)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in self.rows
        ]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.rows:
            terminalreporter.section("figures")
            for line in self.lines():
                terminalreporter.write_line(line)


@dataclass(frozen=True)
class Ceilings:
    """What the card can do."""

    product: float
    """Floating-point operations per second of a bfloat16 matrix product."""
    copy: float
    """Bytes per second that are read and written by a copy."""


def measured_ceilings(size: int, repeats: int = 10) -> Ceilings:
    """The ceilings, measured on square matrices of this size."""
    a = torch.randn(size, size, device=DEVICE).bfloat16()
    b = torch.empty_like(a)

    def products() -> None:
        for _ in range(repeats):
            torch.mm(a, a, out=b)

    def copies() -> None:
        for _ in range(repeats):
            b.copy_(a)

    product, copy = (min(taken(work) for _ in range(4)) / repeats for work in (products, copies))
    return Ceilings(2 * size**3 / product, 2 * a.numel() * a.element_size() / copy)


def parameters_of(shape: Shape) -> tuple[int, int]:
    """Parameters of the layers, and of the head."""
    from transformers import Qwen2ForCausalLM

    with torch.device("meta"):
        model = Qwen2ForCausalLM(shape.config())
    return sum(p.numel() for p in model.model.layers.parameters()), model.lm_head.weight.numel()


def training_operations(shape: Shape, measured: dict[str, Any]) -> float:
    """Floating-point operations of a gradient step: 6 per parameter and token, and causal attention."""
    layers, head = parameters_of(shape)
    # Scores, and their products with values: 2 x 2 x T/2 x hidden per token and layer; three times with the gradients.
    attention_ = 6 * shape.layers * shape.hidden * measured["positions"] ** 2 / measured["pairs"]
    return 6 * (layers * measured["positions"] + head * measured["targets"]) + attention_


def report_engine(table: Table, shape: Shape, ceilings: Ceilings, measured: dict[str, Any]) -> None:
    """The engine's rows. Reading is bound by products; writing by the weights, which every step reads once."""
    layers, head = parameters_of(shape)
    reading = measured["read"] / measured["reading"]
    writing = measured["written"] / measured["writing"]
    products = 2 * layers * reading / ceilings.product
    copied = 2 * (layers + head) * measured["steps"] / measured["writing"] / ceilings.copy
    table.add("engine, prompts", f"{reading:,.0f} tokens/s", f"{products:.0%} of the product rate")
    table.add("engine, new tokens", f"{writing:,.0f} tokens/s", f"{copied:.0%} of the copy rate, weights alone")


def report_training(table: Table, shape: Shape, ceilings: Ceilings, measured: dict[str, Any]) -> None:
    """The M-step's rows."""
    speed = measured["positions"] / measured["seconds"]
    share = training_operations(shape, measured) / measured["seconds"] / ceilings.product
    table.add("M-step", f"{speed:,.0f} tokens/s", f"{share:.0%} of the product rate")
    table.add("M-step, peak memory", f"{measured['peak'] / 1e9:.1f} GB", f"planned {measured['planned'] / 1e9:.1f} GB")


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    figures = Table()
    pytestconfig.pluginmanager.register(figures)
    return figures


@pytest.fixture(scope="session")
def shape() -> Shape:
    return shape_for(torch.cuda.get_device_properties(0).total_memory)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, shape: Shape) -> str:
    return write_model(tmp_path_factory.mktemp("model"), shape)


@pytest.fixture(scope="session")
def ceilings(table: Table) -> Ceilings:
    found = measured_ceilings(8192)
    torch.cuda.empty_cache()
    table.add("card", torch.cuda.get_device_name(0), f"{torch.cuda.device_count()} of them; torch {torch.__version__}")
    table.add("ceilings", f"{found.product / 1e12:,.0f} TFLOP/s", f"copy {found.copy / 1e9:,.0f} GB/s")
    return found


@pytest.fixture(autouse=True)
def _cache_is_given_back() -> Iterator[None]:
    """The checks' processes need the memory that tests in this process leave in torch's cache."""
    yield
    if CUDA:
        torch.cuda.empty_cache()


# Attention and loss, in this process


def attended(inputs: Sequence[Tensor], weights: Tensor, layout: Any, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of packed attention, in float32."""
    leaves = [part.to(dtype, copy=True).requires_grad_() for part in inputs]
    query, key, value = leaves
    out, _ = packed_attention(torch.nn.Module(), query, key, value, None, layout=layout)
    gradients = torch.autograd.grad((out.float() * weights).sum(), leaves)
    return [out.detach().float(), *(gradient.float() for gradient in gradients)]


def moved(batch: Any, device: str) -> Any:
    if isinstance(batch, dict):
        return {name: moved(value, device) for name, value in batch.items()}
    return batch.to(device) if isinstance(batch, Tensor) else batch


def attention_errors(
    prefix: int, lengths: list[int], heads: tuple[int, int], size: int, dtype: torch.dtype
) -> tuple[list[float], list[float]]:
    """Errors, against float32, of the output and the gradients of packed attention in `dtype`: of the path that it
    takes on this device, and of the one with a mask."""
    shared = list(range(prefix))
    layout = moved(pack([[*shared, *[n + 1] * length] for n, length in enumerate(lengths)], prefix).layout, DEVICE)
    row = prefix + sum(lengths)
    source = torch.Generator().manual_seed(SEED)

    def numbers(*shape: int) -> Tensor:
        # Rounded, so that all paths start from the same numbers.
        return torch.randn(*shape, generator=source).to(dtype).float().to(DEVICE)

    inputs = [numbers(1, count, row, size) for count in (heads[0], heads[1], heads[1])]
    weights = numbers(1, row, heads[0], size)
    exact = attended(inputs, weights, layout, torch.float32)
    found = attended(inputs, weights, layout, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "takes_ragged", lambda query, value: False)
        masked = attended(inputs, weights, layout, dtype)
    return errors(found, exact), errors(masked, exact)


def errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Largest differences, relative to the largest value."""
    return [
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-9))
        for one, other in zip(found, exact, strict=True)
    ]


def loss_and_gradient(model: Any, batch: dict[str, Any]) -> tuple[float, Tensor]:
    """The loss, and the gradients of all weights in one vector on the CPU."""
    model.zero_grad()
    loss = CompletionLoss(model, chunk=20)(batch)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.float().flatten().cpu() for p in model.parameters()])


def packed_batch(prefix: int, lengths: list[int], targets: int) -> dict[str, Any]:
    """A packed row of random tokens; the last `targets` of each sequence are trained on."""
    source = random.Random(SEED)
    shared = [source.randrange(1000) for _ in range(prefix)]
    rests = [[source.randrange(1000) for _ in range(length)] for length in lengths]
    labels = [-100] * prefix
    for rest in rests:
        labels += [-100] * (len(rest) - targets - 1) + rest[-targets:] + [-100]
    weights = [source.choice([0.5, 1.0]) if label >= 0 else 0.0 for label in labels]
    whole = pack([shared + rest for rest in rests], prefix)
    return {**whole._asdict(), "labels": torch.tensor([labels]), "weights": torch.tensor([weights])}


LAYOUTS: list[tuple[int, list[int]]] = [
    (500, [1, 37, 128, 129, 400]),
    (129, [1, 1, 1]),
    (1, [300]),
    (0, [5, 200, 1]),
    (2000, [20] * 32),
]


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "size"), [((12, 2), 128), ((9, 3), 64), ((4, 4), 80), ((8, 1), 256)])
@pytest.mark.parametrize(("prefix", "lengths"), LAYOUTS)
def test_flash_attention_is_as_exact_as_attention_with_a_mask(
    prefix: int, lengths: list[int], heads: tuple[int, int], size: int, dtype: torch.dtype, table: Table
) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("FlashAttention needs compute capability 8.0")
    found, masked = attention_errors(prefix, lengths, heads, size, dtype)
    # Both round values, weights and results to the type's precision, in another order.
    step = torch.finfo(dtype).eps
    for one, other in zip(found, masked, strict=True):
        assert one <= 2 * other + 2 * step
    if (prefix, size, dtype) == (500, 128, torch.bfloat16):
        table.add("attention, largest error", f"{max(found):.1e}", f"with a mask {max(masked):.1e}, against float32")


@gpu
def test_float32_attention_with_a_mask_is_that_of_the_cpu() -> None:
    layout = pack([[1, 2, 3, 4], [1, 2, 5, 6, 7]], 2).layout
    source = torch.Generator().manual_seed(SEED)
    inputs = [torch.randn(1, heads, 7, 64, generator=source) for heads in (4, 2, 2)]
    weights = torch.randn(1, 7, 4, 64, generator=source)
    expected = attended(inputs, weights, layout, torch.float32)
    on_gpu = attended([part.cuda() for part in inputs], weights.cuda(), moved(layout, "cuda"), torch.float32)
    assert max(errors([part.cpu() for part in on_gpu], expected)) < 1e-4


@gpu
@pytest.mark.parametrize("way", ["autocast", "bfloat16 weights"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_and_its_gradient_are_those_of_the_cpu(way: str, checkpointing: bool) -> None:
    found, expected = losses_of(Shape(256, 512, 4, 4, 2, 2000), "cuda", way, checkpointing)
    assert found[0] == pytest.approx(expected[0], rel=0.01)
    assert float(torch.cosine_similarity(found[1], expected[1], dim=0)) > 0.99
    assert float(found[1].norm() / expected[1].norm()) == pytest.approx(1, abs=0.05)


def losses_of(
    shape: Shape, device: str, way: str, checkpointing: bool
) -> tuple[tuple[float, Tensor], tuple[float, Tensor]]:
    """Loss and gradient of a packed batch of 48 targets in bfloat16 on a device, and in float32 on the CPU."""
    from transformers import AutoModelForCausalLM

    batch = packed_batch(40, [20, 35, 130], 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape.config(), attn_implementation=register()).train()
    model = model.bfloat16().float()  # so that both computations have the same weights
    expected = loss_and_gradient(model, batch)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model = model.to(device)
    if way == "bfloat16 weights":
        model = model.bfloat16()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=way == "autocast"):
        return loss_and_gradient(model, moved(batch, device)), expected


# Engine and M-step, each in a process of its own


@gpu
@needs_vllm
def test_vllm_starts_and_scores_as_transformers_does(model: str, tmp_path: Path, table: Table) -> None:
    found = in_a_process(starts, model, tmp_path)
    assert abs(found["difference"]) <= found["tolerance"]
    table.add("engine, start", f"{found['seconds']:.0f} s")


@gpu
@needs_vllm
def test_vllm_sleeps_wakes_and_uses_the_trained_weights(model: str, tmp_path: Path, table: Table) -> None:
    found = in_a_process(reloads, model, tmp_path)
    assert found["telling"]
    assert found["stale"] == "refused"
    assert found["kept_asleep"] < 4e9
    assert found["left"] < 4e9
    table.add(
        "engine, new weights", f"{found['seconds']:.1f} s", f"asleep it keeps {found['kept_asleep'] / 1e9:.1f} GB"
    )
    table.add("canary", f"{found['loaded']:.2f} nats", f"M-step {found['trained']:.2f}, before {found['before']:.2f}")


@gpu
@needs_vllm
def test_a_failed_m_step_leaves_no_memory_taken(model: str, tmp_path: Path) -> None:
    found = in_a_process(closes_asleep, model, tmp_path)
    assert found["failure"] == "this M-step fails"
    assert found["left"] < 4e9


@gpu
@needs_vllm
def test_two_models_run_one_after_the_other_in_a_process(model: str, tmp_path: Path) -> None:
    found = in_a_process(two_models, model, tmp_path)
    assert max(found["left"]) < 4e9


@gpu
@pytest.mark.parametrize(
    "check", [pytest.param(iteration, marks=needs_vllm), iteration_with_transformers], ids=["vllm", "transformers"]
)
def test_a_whole_iteration(
    check: Callable[[str, Path], dict[str, Any]], model: str, tmp_path: Path, table: Table, ceilings: Ceilings
) -> None:
    found = in_a_process(check, model, tmp_path)
    assert found["pairs"] > 0
    assert math.isfinite(found["loss"])
    assert found["weights"]
    seconds = ", ".join(f"{phase} {value:.0f} s" for phase, value in found["seconds"].items())
    table.add(check.__name__.replace("_", " "), f"{found['pairs']} pairs", seconds)


@gpu
@needs_vllm
def test_the_speed_of_the_engine(model: str, tmp_path: Path, shape: Shape, table: Table, ceilings: Ceilings) -> None:
    report_engine(table, shape, ceilings, in_a_process(engine_speed, model, tmp_path))


@gpu
def test_the_speed_and_the_memory_of_the_m_step(
    model: str, tmp_path: Path, shape: Shape, table: Table, ceilings: Ceilings
) -> None:
    found = in_a_process(training_speed, model, tmp_path)
    report_training(table, shape, ceilings, found)
    # The plan may use 75 % of the card, so it may err by a third; a plan far too high would split batches needlessly.
    assert 0.6 * found["planned"] < found["peak"] < 1.2 * found["planned"]


@gpu
@gpus
def test_all_gpus_train_as_one_does(model: str, tmp_path: Path, table: Table) -> None:
    found = in_a_process(several_devices, model, tmp_path)
    one, both = found["losses"]
    assert both == pytest.approx(one, rel=0.02)
    assert abs(found["canaries"][0] - found["canaries"][1]) <= found["tolerance"]
    table.add("M-step, all GPUs", f"last loss {both[-1]:.4f}", f"one GPU {one[-1]:.4f}")


@gpu
@gpus
@needs_vllm
def test_every_gpu_samples(model: str, tmp_path: Path, table: Table) -> None:
    found = in_a_process(pool, model, tmp_path)
    assert found["copies"] == torch.cuda.device_count()
    assert found["telling"]
    table.add("engine, new tokens, all GPUs", f"{found['tokens_per_second']:,.0f} tokens/s")


# On a CPU: the checks and their figures themselves


CHECKS = [starts, reloads, closes_asleep, two_models, iteration, engine_speed]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.mark.slow
@pytest.mark.skipif(CUDA, reason="for machines without a GPU")
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_a_check_works_on_a_cpu(check: Callable[[str, Path], dict[str, Any]], tiny: str, tmp_path: Path) -> None:
    found = check(tiny, tmp_path)
    match check.__name__:
        case "starts":
            assert abs(found["difference"]) <= found["tolerance"]
        case "reloads":
            assert found["telling"]
            assert found["stale"] == "refused"
        case "closes_asleep":
            assert found["failure"] == "this M-step fails"
        case "iteration":
            assert found["pairs"] == 8
            assert found["weights"]
        case "engine_speed":
            assert found["written"] > 0
            table, ceilings = Table(), Ceilings(1e12, 1e11)
            report_engine(table, TINY, ceilings, found)
            assert [what for what, *_ in table.rows] == ["engine, prompts", "engine, new tokens"]


@pytest.mark.slow
def test_a_check_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    assert in_a_process(answers, "model", tmp_path) == {"model": "model", "folder": str(tmp_path), "alone": True}
    with pytest.raises(pytest.fail.Exception, match=r"is_killed: ended by SIGKILL"):
        in_a_process(is_killed, "model", tmp_path)


def answers(model: str, folder: Path) -> dict[str, Any]:
    """A check of the checks."""
    return {"model": model, "folder": str(folder), "alone": __name__ == "__main__"}


def is_killed(model: str, folder: Path) -> dict[str, Any]:
    """A check that ends its process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_paper_sized_model_has_its_parameters() -> None:
    # Qwen2.5-1.5B: 1.54 billion parameters, 1.31 without the embedding, as its model card says.
    layers, head = parameters_of(SHAPE_1_5B)
    assert round(layers / 1e9, 2) == 1.31
    assert round((layers + head) / 1e9, 2) == 1.54
    assert shape_for(80_000_000_000) == SHAPE_1_5B
    assert shape_for(24_000_000_000) == SHAPE_0_5B


def test_the_operations_of_a_gradient_step() -> None:
    # 2 sequences of 10 tokens, 3 of them targets in total; layers of 2, width 32.
    layers, head = parameters_of(TINY)
    expected = 6 * layers * 20 + 6 * head * 3 + 2 * (3 * 4 * 10 * 5 * 32 * 2)
    assert training_operations(TINY, {"positions": 20, "targets": 3, "pairs": 2}) == expected


def test_the_figures_are_one_table() -> None:
    table = Table()
    measured = {"positions": 2000.0, "targets": 300.0, "pairs": 2, "seconds": 0.5, "peak": 4e9, "planned": 5e9}
    report_training(table, TINY, Ceilings(1e12, 1e11), measured)
    table.add("x", "y")
    assert table.lines()[1:] == [
        "M-step, peak memory  4.0 GB          planned 5.0 GB",
        "x                    y",
    ]
    assert table.lines()[0].startswith("M-step               4,000 tokens/s  ")


def test_the_ceilings_are_measured() -> None:
    found = measured_ceilings(64, repeats=2)
    assert found.product > 0
    assert found.copy > 0


def test_attention_is_compared_with_float32() -> None:
    found, masked = attention_errors(5, [1, 3], (4, 2), 8, torch.bfloat16)
    if not CUDA:
        assert found == masked
    assert 0 < max(found) < 0.05
    exact, _ = attention_errors(5, [1, 3], (4, 2), 8, torch.float32)
    assert max(exact) == 0


@pytest.mark.parametrize("way", ["autocast", "bfloat16 weights"])
def test_the_loss_is_compared_with_float32(way: str) -> None:
    found, expected = losses_of(Shape(64, 128, 2, 4, 2, 1000), "cpu", way, True)
    assert found[0] == pytest.approx(expected[0], rel=0.01)
    assert float(torch.cosine_similarity(found[1], expected[1], dim=0)) > 0.99


if __name__ == "__main__":
    print(_RESULT + json.dumps(globals()[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))))

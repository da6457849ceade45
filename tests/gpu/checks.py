"""Checks of engines and M-steps, each for a process of its own: a failed one leaves nothing behind, and an engine that
closes badly may end its process.

`PYTHONPATH=tests python -m gpu.checks CHECK MODEL FOLDER` runs one. On a CPU they run with a tiny model and the
transformers engine, or with vLLM (`ESTEP_TEST_ENGINE=vllm`).
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from estep.config import EngineConfig, MStepConfig, TransformersEngineConfig, VLLMEngineConfig
from estep.engines import DrawQueue, Engine, Sampling, open_engine
from estep.errors import EstepError, StaleWeightsError
from estep.m_step.base import MStepInput, MStepResult
from estep.m_step.canary import ROUNDING, check_canary
from estep.m_step.sft import SFTMStep
from estep.records import Draw, ModelRef, Pair, Sample
from gpu.work import CUDA, DEVICE, OTHER, SEED, WORK, draws_of, pairs_of, prompts_of, text_of, write_model

MINUTES = 30
"""After this time, a check has failed."""


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
    from estep.m_step.memory_plan import memory_needs
    from estep.models.shape import shape_of

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
        [sys.executable, "-m", "gpu.checks", check.__name__, model, str(folder)],
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


def answers(model: str, folder: Path) -> dict[str, Any]:
    """A check of the checks."""
    return {"model": model, "folder": str(folder), "alone": __name__ == "__main__"}


def is_killed(model: str, folder: Path) -> dict[str, Any]:
    """A check that ends its process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


if __name__ == "__main__":
    print(_RESULT + json.dumps(globals()[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))))

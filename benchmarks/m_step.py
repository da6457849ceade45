"""Measures the M-step's speed and memory against TRL's own `SFTTrainer`, each in a separate process.

Workloads, each of `--pairs` pairs in batches of `--batch`, one epoch, full fine-tuning with bfloat16 products
(float32 on a CPU that emulates them) on float32 weights:

    shared   `sentiment/movies` with its examples in the policy's prompt (few_shot=both): most of a prompt is the same
    demo     the same task with the demo's prompt (few_shot=proposal): only the instructions are shared
    plain    prompts as long as in `shared`, but no two begin with the same text

A measurement is a whole M-step, which reads weights from disk and writes weights to disk. Tokens of prompts and
completions count once per pair, even if a shared prefix is computed only once. The share of the machine's peak rate
counts the matrix products of the computation without sharing (6 x parameters of the layers x tokens, and the head on
completion tokens), so with sharing it can exceed 100 %.

    python benchmarks/m_step.py --pairs 96 --batch 4 --repeats 3
"""

import argparse
import functools
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import DTYPE, in_a_process, product_rate

from estep.config import MStepConfig
from estep.data.split import Sizes, draw_split, load_pool
from estep.m_step.base import MStepInput
from estep.m_step.sft import SFTMStep
from estep.models.loading import Chat, load_chat, load_model, silence_logs
from estep.records import ModelRef, Pair
from estep.sources.models import resolve_model
from estep.tasks import load_task

SEED = 257
RATE = 1e-5


class Run(NamedTuple):
    """One measurement."""

    seconds: float
    tokens: int
    completion_tokens: int
    peak_mb: float
    """Peak memory: of the process on a CPU, of the device on a GPU."""
    losses: list[float]


def pairs_of(work: str, count: int) -> list[Pair]:
    """The pairs of a workload: real questions with their scores, and the task's examples as rationales."""
    task = load_task("sentiment/movies", few_shot="proposal" if work == "demo" else "both")
    questions = draw_split(task, load_pool(task), Sizes(count, 192), SEED).train
    rationales = [example.rationale for example in task.file.examples]
    shuffled = random.Random(SEED)
    pairs = []
    for number, question in enumerate(questions):
        completion = f"Evaluation: {rationales[number % len(rationales)]} Score: {question.answer}"
        prompt = task.prompt(question)
        if work == "plain":
            words = " ".join(message["content"] for message in prompt).split()
            shuffled.shuffle(words)
            prompt = ({"role": "system", "content": " ".join(words)}, {"role": "user", "content": "Score?"})
        pairs.append(Pair(question.id, f"{question.id}#0.0", prompt, completion))
    return pairs


def ours(path: str, pairs: list[Pair], options: argparse.Namespace) -> tuple[float, list[float]]:
    """Our M-step."""
    step = SFTMStep(MStepConfig(batch_size=options.batch), None, "stop", DTYPE)
    with tempfile.TemporaryDirectory() as folder:
        work = MStepInput(ModelRef(path), 1, pairs, RATE, SEED, Path(folder) / "w", lambda *_: -1.0, lambda _: None)
        started = time.perf_counter()
        trained = step(work)
        assert trained is not None
        return time.perf_counter() - started, list(trained.losses)


def trl(path: str, pairs: list[Pair], options: argparse.Namespace) -> tuple[float, list[float]]:
    """TRL's trainer with its defaults, except for the length limit and the schedule, which would change the work."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    started = time.perf_counter()
    chat = load_chat(path)
    rows = []
    for pair in pairs:
        prompt, completion = ids_of(chat, pair)
        rows.append({"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)})
    with tempfile.TemporaryDirectory() as folder, silence_logs():
        args = SFTConfig(
            folder,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            num_train_epochs=1,
            per_device_train_batch_size=options.batch,
            use_cpu=not torch.cuda.is_available(),
            bf16=DTYPE == "bfloat16",
            max_length=None,
            completion_only_loss=True,
            seed=SEED,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        model = load_model(path, "float32", "cuda" if torch.cuda.is_available() else "cpu")
        trainer = SFTTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=chat.tokenizer)
        trainer.train()
        trainer.save_model(folder)
        seconds = time.perf_counter() - started
    return seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


ARMS: dict[str, Callable[[str, list[Pair], argparse.Namespace], tuple[float, list[float]]]] = {
    "trl": trl,
    "estep": ours,
}


def ids_of(chat: Chat, pair: Pair) -> tuple[list[int], list[int]]:
    return chat.prompt_ids(pair.prompt), chat.completion_ids(pair.completion)


def measured(path: str, arm: str, work: str, options: argparse.Namespace) -> Run:
    """One measurement in this process."""
    pairs = pairs_of(work, options.pairs)
    chat = load_chat(path)
    ids = [ids_of(chat, pair) for pair in pairs]
    tokens, completion_tokens = sum(len(p) + len(c) for p, c in ids), sum(len(c) for _, c in ids)
    seconds, losses = ARMS[arm](path, pairs, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    return Run(seconds, tokens, completion_tokens, peak, losses)


def measure(arm: str, work: str, options: argparse.Namespace) -> Iterator[Run]:
    """The measurements of an arm, each from a separate process."""
    sizes = ["--pairs", str(options.pairs), "--batch", str(options.batch), "--model", options.model]
    for _ in range(options.repeats):
        (line,) = in_a_process(__file__, arm, "--work", work, *sizes)
        yield Run(**line)


@functools.cache
def sizes(path: str) -> tuple[int, int]:
    """Number of parameters of the layers and of the head."""
    model: Any = load_model(path, DTYPE, "cpu")
    return sum(p.numel() for p in model.model.layers.parameters()), model.get_output_embeddings().weight.numel()


def gflop(path: str, run: Run) -> float:
    """Operations of the computation without sharing, in GFLOP; attention is not counted."""
    layers, head = sizes(path)
    return 6 * (layers * run.tokens + head * run.completion_tokens) / 1e9


def main() -> None:
    """Run all workloads on both arms and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--works", nargs="+", choices=["shared", "demo", "plain"], default=["shared", "demo", "plain"])
    parser.add_argument("--arm", choices=list(ARMS), help="measure this arm once, as a line of JSON")
    parser.add_argument("--work", choices=["shared", "demo", "plain"], default="shared")
    options = parser.parse_args()
    path = resolve_model(options.model, lambda line: print(line, file=sys.stderr))
    if options.arm:
        print(json.dumps(measured(path, options.arm, options.work, options)._asdict()), flush=True)
        return
    rate = product_rate()
    print(f"{options.pairs} pairs in batches of {options.batch}; {DTYPE} products at {rate:.0f} GFLOP/s", flush=True)
    ratios: dict[str, float] = {}
    speeds: dict[str, float] = {}
    peaks: dict[tuple[str, str], float] = {}
    for work in options.works:
        seconds = {}
        for arm in ARMS:
            runs = list(measure(arm, work, options))
            seconds[arm] = statistics.median(run.seconds for run in runs)
            peaks[arm, work] = statistics.median(run.peak_mb for run in runs)
            speed = runs[0].tokens / seconds[arm]
            if arm == "estep":
                speeds[work] = speed
            print(
                f"{work}, {arm}: {seconds[arm]:.1f} s ({', '.join(f'{run.seconds:.1f}' for run in runs)}), "
                f"{runs[0].tokens} tokens, {speed:.0f} tokens/s, "
                f"{gflop(path, runs[0]) / seconds[arm] / rate:.0%} of the product rate, "
                f"peak {peaks[arm, work]:.0f} MB, mean loss {statistics.mean(runs[0].losses):.4f}",
                flush=True,
            )
        ratios[work] = seconds["trl"] / seconds["estep"]
    worst = {arm: max(peaks[arm, work] for work in options.works) for arm in ARMS}
    print(
        f"tokens_per_s={speeds[options.works[0]]:.0f} "
        + "".join(f"x_trl_{work}={ratios[work]:.2f} " for work in ("shared", "plain") if work in ratios)
        + f"peak_mb={worst['estep']:.0f} peak_mb_trl={worst['trl']:.0f}"
    )


if __name__ == "__main__":
    main()

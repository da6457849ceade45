"""Measures how fast texts are scored: `score_many` against one text at a time, on both engines.

Reference work: questions of `sentiment/movies`, seed 257, each with four texts that the transformers engine samples
from the hinted prompt (at most 48 new tokens). Each text is scored under the plain and under the hinted prompt, both
with the task's examples. smollm2-135m in bfloat16, or in float32 on a CPU that emulates bfloat16, with empty prompt
caches. Each arm runs in a process of its own; results are medians of `--repeats`.

    transformers_alone, vllm_alone   `Engine.score`, one text after another
    transformers, vllm               `Engine.score_many`

The share of the machine's peak rate counts only the necessary matrix products: each distinct position of prompts and
texts through the layers, and each token of a text through the head.

    python benchmarks/scores.py --questions 16 --repeats 3
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from e_step import KV_CACHE_GIB, SAMPLING, SEED
from machine import DTYPE, in_a_process, product_rate

from estep.config import EngineConfig, PPSProposal, RejectionProposal, TransformersEngineConfig, VLLMEngineConfig
from estep.data.split import Sizes, draw_split, load_pool
from estep.engines import DrawQueue, open_engine
from estep.engines.base import ScoreRequest
from estep.models.loading import load_chat
from estep.models.shape import shape_of
from estep.proposals import build_proposal
from estep.records import ModelRef
from estep.sources.models import resolve_model
from estep.tasks import load_task

ARMS = ("vllm", "vllm_alone", "transformers", "transformers_alone")
TEXTS = 4


class Run(NamedTuple):
    """One measurement."""

    seconds: float


def reference_requests(path: str, count: int) -> list[ScoreRequest]:
    """The texts of the reference work under their prompts."""
    task = load_task("sentiment/movies")
    questions = draw_split(task, load_pool(task), Sizes(count, 192), SEED).train
    draws = build_proposal(PPSProposal(n=TEXTS)).propose(task, questions, SEED)
    engine = open_engine(TransformersEngineConfig(), ModelRef(path))
    texts = {sample.draw_id: sample.text for sample in engine.generate(DrawQueue(draws), SAMPLING)}
    engine.close()
    plain = {
        draw.question_id: draw.messages
        for draw in build_proposal(RejectionProposal(budget=1)).propose(task, questions, SEED)
    }
    return [
        ScoreRequest(f"{draw.id}/{kind}", prompt, texts[draw.id])
        for draw in draws
        for kind, prompt in (("plain", plain[draw.question_id]), ("hinted", draw.messages))
    ]


def measure(arm: str, path: str, requests: list[ScoreRequest], repeats: int) -> Iterator[Run]:
    """The runs of an arm."""
    kind, _, alone = arm.partition("_")
    config: EngineConfig = VLLMEngineConfig(kv_cache_gib=KV_CACHE_GIB) if kind == "vllm" else TransformersEngineConfig()
    engine = open_engine(config, ModelRef(path))
    list(engine.score_many(requests[:2], {}))
    for _ in range(repeats):
        engine.load(ModelRef(path))  # also empties the prompt caches
        started = time.perf_counter()
        if alone:
            for request in requests:
                engine.score(request.messages, request.text)
        else:
            list(engine.score_many(requests, {}))
        yield Run(time.perf_counter() - started)
    engine.close()


def needed_gflop(path: str, requests: list[ScoreRequest]) -> float:
    """Operations of the necessary matrix products, in GFLOP; attention is not counted."""
    chat, shape = load_chat(path), shape_of(path)
    sequences = [chat.prompt_ids(r.messages) + chat.completion_ids(r.text)[:-1] for r in requests]
    positions = {tuple(ids[:end]) for ids in sequences for end in range(1, len(ids) + 1)}
    return 2 * (shape.in_layers * len(positions) + shape.head * _tokens(path, requests)) / 1e9


def _tokens(path: str, requests: list[ScoreRequest]) -> int:
    chat = load_chat(path)
    return sum(len(chat.completion_ids(request.text)) for request in requests)


def main() -> None:
    """Print the medians of all arms, or with `--arm` the runs of one as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--requests", type=Path, help="file with the requests, for --arm")
    options = parser.parse_args()
    path = resolve_model("smollm2-135m", lambda line: print(line, file=sys.stderr))
    if options.arm:
        requests = [
            ScoreRequest(id, tuple(messages), text) for id, messages, text in json.loads(options.requests.read_text())
        ]
        for run in measure(options.arm, path, requests, options.repeats):
            print(json.dumps(run._asdict()), flush=True)
        return
    requests = reference_requests(path, options.questions)
    rate, gflop, tokens = product_rate(), needed_gflop(path, requests), _tokens(path, requests)
    print(
        f"{len(requests)} texts of {tokens} tokens, {gflop:.0f} GFLOP; {DTYPE} products at {rate:.0f} GFLOP/s",
        flush=True,
    )
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requests.json"
        file.write_text(json.dumps(requests))
        for arm in ARMS:
            runs = in_a_process(__file__, arm, f"--repeats={options.repeats}", f"--requests={file}")
            seconds[arm] = statistics.median(run["seconds"] for run in runs)
            share = gflop / seconds[arm] / rate
            print(
                f"{arm}: {seconds[arm]:.1f} s, {len(requests) / seconds[arm]:.1f} texts/s, "
                f"{tokens / seconds[arm]:.0f} tokens/s, {share:.0%} of the product rate",
                flush=True,
            )
    print(" ".join(f"{arm}_x_alone={seconds[f'{arm}_alone'] / seconds[arm]:.2f}" for arm in ("vllm", "transformers")))


if __name__ == "__main__":
    main()

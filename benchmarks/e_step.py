"""Measures the E-step's speed: four arms on the same work, each in a separate process.

Reference work: 256 PPS draws of `sentiment/movies`, seed 257, at most 48 new tokens, smollm2-135m in bfloat16, or
in float32 on a CPU that emulates bfloat16, with empty prompt caches. All arms use all cores. Results are medians of
`--repeats`.

    naive          transformers' `generate` on left-padded batches of 64, nothing shared
    transformers   our transformers engine
    vllm_default   `vllm.LLM.generate` on token ids, with vLLM's defaults except for the size of the key-value cache
    vllm           our vLLM engine

The share of the machine's peak rate counts only the necessary matrix products: each distinct prompt position and each
new token through the layers, and each new token through the head. The peak is the rate of a large product in that type.

    python benchmarks/e_step.py --draws 256 --repeats 3
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from machine import DTYPE, in_a_process, product_rate

from estep.config import PPSProposal, TransformersEngineConfig, VLLMEngineConfig
from estep.data.split import Sizes, draw_split, load_pool
from estep.engines import DrawQueue, Engine, Sampling, open_engine
from estep.models.loading import load_chat, load_model
from estep.proposals import build_proposal
from estep.records import Draw, ModelRef
from estep.sources.models import resolve_model
from estep.tasks import load_task

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=48)
SEED = 257
KV_CACHE_GIB = 2.0
"""For both vLLM arms. By default, vLLM reserves 92 % of the memory and does not start if less is free."""


class Run(NamedTuple):
    """One measurement."""

    seconds: float
    new_tokens: int
    load: float = 0.0
    """Seconds to load weights into the running engine and score a canary with them."""


def reference_draws(count: int) -> list[Draw]:
    """The PPS draws of the reference work."""
    task = load_task("sentiment/movies")
    questions = draw_split(task, load_pool(task), Sizes(count, 192), SEED).train
    return build_proposal(PPSProposal()).propose(task, questions, SEED)


def naive(path: str, draws: list[Draw], repeats: int) -> Iterator[Run]:
    """Plain `generate`."""
    chat, model = load_chat(path), load_model(path, DTYPE, "cpu")
    chat.tokenizer.padding_side = "left"
    torch.manual_seed(SEED)
    for _ in range(repeats):
        new, started = 0, time.perf_counter()
        for start in range(0, len(draws), 64):
            prompts = [{"input_ids": chat.prompt_ids(draw.messages)} for draw in draws[start : start + 64]]
            batch = chat.tokenizer.pad(prompts, return_tensors="pt")
            with torch.inference_mode():
                out = model.generate(
                    **batch,
                    do_sample=True,
                    temperature=SAMPLING.temperature,
                    top_k=0,
                    max_new_tokens=SAMPLING.max_new_tokens,
                    eos_token_id=list(chat.stop_ids),
                    pad_token_id=chat.end_id,
                )
            for row in out[:, batch["input_ids"].shape[1] :].tolist():
                new += next((place for place, token in enumerate(row) if token in chat.stop_ids), len(row) - 1) + 1
        yield Run(time.perf_counter() - started, new)


def vllm_default(path: str, draws: list[Draw], repeats: int) -> Iterator[Run]:
    """vLLM with its defaults, except that it uses all cores (by default it leaves one idle) and a fixed cache size."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{os.cpu_count() - 1}"  # type: ignore[operator]
    from vllm import LLM, SamplingParams

    chat = load_chat(path)
    prompts = [{"prompt_token_ids": chat.prompt_ids(draw.messages)} for draw in draws]
    llm = LLM(path, kv_cache_memory_bytes=int(KV_CACHE_GIB * 2**30))
    parameters = SamplingParams(
        temperature=SAMPLING.temperature, max_tokens=SAMPLING.max_new_tokens, stop_token_ids=sorted(chat.stop_ids)
    )
    llm.generate(prompts[:2], parameters, use_tqdm=False)
    for _ in range(repeats):
        llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
        yield Run(seconds, sum(len(output.outputs[0].token_ids) for output in outputs))


def _ours(engine: Engine, path: str, draws: list[Draw], repeats: int) -> Iterator[Run]:
    text = "Evaluation: The writer finds it dull, which is negative. Score: 1"
    list(engine.generate(DrawQueue(draws[:2]), SAMPLING))
    for _ in range(repeats):
        started = time.perf_counter()
        engine.load(ModelRef(path))  # also empties the prompt cache
        engine.score(draws[0].messages, text)
        load = time.perf_counter() - started
        engine.load(ModelRef(path))
        started = time.perf_counter()
        new = sum(sample.completion_tokens for sample in engine.generate(DrawQueue(draws), SAMPLING))
        yield Run(time.perf_counter() - started, new, load)
    engine.close()


def transformers(path: str, draws: list[Draw], repeats: int) -> Iterator[Run]:
    """Our transformers engine."""
    return _ours(open_engine(TransformersEngineConfig(), ModelRef(path)), path, draws, repeats)


def vllm(path: str, draws: list[Draw], repeats: int) -> Iterator[Run]:
    """Our vLLM engine."""
    return _ours(open_engine(VLLMEngineConfig(kv_cache_gib=KV_CACHE_GIB), ModelRef(path)), path, draws, repeats)


ARMS: dict[str, Callable[[str, list[Draw], int], Iterator[Run]]] = {
    "vllm": vllm,
    "vllm_default": vllm_default,
    "transformers": transformers,
    "naive": naive,
}


def needed_gflop(path: str, draws: list[Draw], new_tokens: float) -> float:
    """Operations of the necessary matrix products, in GFLOP; attention is not counted."""
    chat, model = load_chat(path), load_model(path, DTYPE, "cpu")
    head = model.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for p in model.model.layers.parameters())
    positions = {tuple(ids[:end]) for ids in (chat.prompt_ids(d.messages) for d in draws) for end in range(1, len(ids))}
    return 2 * (layers * (len(positions) + len(draws) + new_tokens) + head * new_tokens) / 1e9


def measure(arm: str, options: argparse.Namespace) -> list[Run]:
    """An arm's measurements, from a separate process."""
    sizes = ["--draws", str(options.draws), "--repeats", str(options.repeats)]
    runs = [Run(**line) for line in in_a_process(__file__, arm, *sizes)]
    if len(runs) != options.repeats:
        sys.exit(f"the arm {arm} gave {len(runs)} measurements of {options.repeats}")
    return runs


def main() -> None:
    """Run the arms in turn and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", choices=list(ARMS), help="measure this arm only, as lines of JSON")
    options = parser.parse_args()
    path, draws = (
        resolve_model("smollm2-135m", lambda line: print(line, file=sys.stderr)),
        reference_draws(options.draws),
    )
    if options.arm:
        for run in ARMS[options.arm](path, draws, options.repeats):
            print(json.dumps(run._asdict()), flush=True)
        return
    rate = product_rate()
    print(f"{len(draws)} draws on {os.cpu_count()} cores; {DTYPE} products at {rate:.0f} GFLOP/s", flush=True)
    runs: dict[str, list[Run]] = {}
    for arm in ARMS:
        runs[arm] = measure(arm, options)
        print(f"{arm}: {', '.join(f'{run.seconds:.1f}' for run in runs[arm])} s", flush=True)
    seconds = {arm: statistics.median(run.seconds for run in of_arm) for arm, of_arm in runs.items()}
    loads = {arm: statistics.median(run.load for run in of_arm) for arm, of_arm in runs.items()}
    for arm in ARMS:
        new = statistics.median(run.new_tokens for run in runs[arm])
        share = needed_gflop(path, draws, new) / seconds[arm] / rate
        ratios = ", ".join(f"{seconds[other] / seconds[arm]:.2f} x {other}" for other in ARMS if other != arm)
        print(
            f"{arm}: {seconds[arm]:.1f} s, {len(draws) / seconds[arm]:.1f} draws/s, {new / seconds[arm]:.0f} new "
            f"tokens/s, {share:.0%} of the product rate; {ratios}"
        )
    ours = seconds["vllm"]
    print(
        f"draws_per_s={len(draws) / ours:.2f} x_naive={seconds['naive'] / ours:.2f} "
        f"x_vllm_default={seconds['vllm_default'] / ours:.2f} "
        f"transformers_x_naive={seconds['naive'] / seconds['transformers']:.2f} load_s={loads['vllm']:.2f}"
    )


if __name__ == "__main__":
    main()

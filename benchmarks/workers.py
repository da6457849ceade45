"""Measures the E-step with one and with two workers, each with its part of this machine's cores.

The work is that of `e_step.py`: PPS draws of `sentiment/movies`, seed 257, at most 48 new tokens, smollm2-135m in
bfloat16, with empty prompt caches. Workers are processes of this machine (`local`) or actors of a Ray that is started
for this (`ray`). Each arm runs in a process of its own; results are medians of `--repeats`, after one that is not
counted, and ratios to one local worker.

    python benchmarks/workers.py --engine vllm --draws 256 --repeats 3
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator

from e_step import SAMPLING, Run, reference_draws
from machine import in_a_process

from estep.cluster import open_engine
from estep.config.files import validate
from estep.engines import DrawQueue
from estep.records import ModelRef
from estep.sources.models import resolve_model

ARMS = {"local 1": (None, 1), "local 2": (None, 2), "ray 1": ("auto", 1), "ray 2": ("auto", 2)}
"""Of each arm, `cluster` and the number of workers."""


def measure(arm: str, engine: str, count: int, repeats: int) -> Iterator[Run]:
    """The runs of an arm."""
    cluster, workers = ARMS[arm]
    content = {"type": engine, "data_parallel": workers}
    config = validate(
        {"task": "sentiment/movies", "model": "smollm2-135m", "cluster": cluster, "engine": content}, "options"
    )
    model = ModelRef(resolve_model(config.model))
    draws = reference_draws(count)
    opened = open_engine(config, model)
    try:
        for repeat in range(repeats + 1):
            opened.load(model)  # also empties the prompt caches
            started = time.perf_counter()
            samples = list(opened.generate(DrawQueue(draws), SAMPLING))
            seconds = time.perf_counter() - started
            if repeat:
                yield Run(seconds, sum(sample.completion_tokens for sample in samples))
    finally:
        opened.close()


def main() -> None:
    """Print a table, or with `--arm` the runs of one arm as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS)
    options = parser.parse_args()
    if options.arm:
        for run in measure(options.arm, options.engine, options.draws, options.repeats):
            print(json.dumps(run._asdict()), flush=True)
        return
    settings = [f"--{key}={getattr(options, key)}" for key in ("engine", "draws", "repeats")]
    speeds = {}
    print(f"{options.engine}, {options.draws} draws, medians of {options.repeats}")
    print("| workers | seconds | draws/s | new tokens/s | ratio |\n|---|---|---|---|---|")
    for arm in ARMS:
        runs = in_a_process(__file__, arm, *settings)
        seconds = statistics.median(run["seconds"] for run in runs)
        tokens = statistics.median(run["new_tokens"] / run["seconds"] for run in runs)
        speeds[arm] = options.draws / seconds
        ratio = speeds[arm] / speeds["local 1"]
        print(f"| {arm} | {seconds:.1f} | {speeds[arm]:.1f} | {tokens:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()

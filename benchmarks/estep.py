"""The E-step's speed: our transformers engine against plain `generate`, in one run.

Reference work: PPS draws of `sentiment/movies` with smollm2-135m, at most 48 new tokens, cold prefix cache. Arms are
run in turn, `--repeats` times; the figures are medians. Both arms use all cores and bf16.

    python benchmarks/estep.py --draws 256 --repeats 3
"""

import argparse
import statistics
import time

import torch

from estep.config import PPSProposal, TransformersEngineConfig
from estep.data import draw_split, load_pool
from estep.engines import DrawQueue, Sampling, open_engine
from estep.models import load_chat, load_model
from estep.proposals import build_proposal
from estep.records import Draw, ModelRef
from estep.sources import resolve_model
from estep.tasks import load_task

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=48)
SEED = 257


def reference_draws(count: int) -> list[Draw]:
    """The PPS draws of the reference work."""
    task = load_task("sentiment/movies")
    questions = draw_split(task, load_pool(task), count, 192, SEED).train
    return build_proposal(PPSProposal()).propose(task, questions, SEED)


def naive(path: str, draws: list[Draw], batch_size: int) -> tuple[float, int]:
    """Seconds and new tokens of `generate` on left-padded batches, with nothing shared."""
    chat, model = load_chat(path), load_model(path, "bfloat16", "cpu")
    chat.tokenizer.padding_side = "left"
    torch.manual_seed(SEED)
    new, started = 0, time.perf_counter()
    for start in range(0, len(draws), batch_size):
        prompts = [{"input_ids": chat.prompt_ids(draw.messages)} for draw in draws[start : start + batch_size]]
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
            stop = next((place for place, token in enumerate(row) if token in chat.stop_ids), len(row) - 1)
            new += stop + 1
    return time.perf_counter() - started, new


def ours(path: str, draws: list[Draw], batch_size: int) -> tuple[float, int]:
    """Seconds and new tokens of the transformers engine."""
    engine = open_engine(TransformersEngineConfig(batch_size=batch_size), ModelRef(path))
    started = time.perf_counter()
    new = sum(sample.completion_tokens for sample in engine.generate(DrawQueue(draws), SAMPLING))
    seconds = time.perf_counter() - started
    engine.close()
    return seconds, new


def main() -> None:
    """Run the arms in turn and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    path, draws = resolve_model("smollm2-135m", print), reference_draws(options.draws)
    arms = {"naive generate": naive, "transformers engine": ours}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(options.repeats):
        for name, arm in arms.items():
            elapsed, new = arm(path, draws, options.batch_size)
            seconds[name].append(elapsed)
            rates[name].append(new / elapsed)
            print(f"run {repeat + 1}, {name}: {elapsed:.1f} s, {new / elapsed:.0f} new tokens/s", flush=True)
    ratio = statistics.median(n / o for n, o in zip(*seconds.values(), strict=True))
    for name in arms:
        median = statistics.median(seconds[name])
        print(f"{name}: {len(draws) / median:.2f} draws/s, {statistics.median(rates[name]):.0f} new tokens/s")
    fastest = statistics.median(seconds["transformers engine"])
    print(f"draws_per_s={len(draws) / fastest:.2f} transformers_x_naive={ratio:.2f}")


if __name__ == "__main__":
    main()

"""Measures how much slower a run gets beside another run on the same cores, by OpenMP's wait policy.

A thread that has finished its part of a parallel loop waits for the others by spinning or by sleeping. Spinning reacts
faster on an idle machine; on a busy one it occupies the core that another thread needs.

    spin     OMP_WAIT_POLICY=ACTIVE
    default  libgomp's default: spin for a while, then sleep
    sleep    OMP_WAIT_POLICY=PASSIVE, which the command `estep` sets

Each measurement is a whole M-step of `benchmarks/m_step.py` (work `demo`), or the reference draws of
`benchmarks/e_step.py`, alone and then twice at the same time.

    python benchmarks/busy.py --repeats 3
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
POLICIES = {"spin": "ACTIVE", "default": None, "sleep": "PASSIVE"}
WORKS = {
    "M-step": ["m_step.py", "--arm", "estep", "--work", "demo", "--pairs", "32", "--repeats", "1"],
    "E-step": ["e_step.py", "--arm", "vllm", "--draws", "64", "--repeats", "1"],
}


def seconds(work: str, policy: str, copies: int) -> float:
    """Mean seconds per process, without startup, of `copies` that run at the same time."""
    value = POLICIES[policy]
    environment = {key: setting for key, setting in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if value is not None:
        environment["OMP_WAIT_POLICY"] = value
    command = [sys.executable, str(HERE / WORKS[work][0]), *WORKS[work][1:]]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(copies)
    ]
    medians = []
    for process in started:
        out, err = process.communicate()
        lines = [json.loads(line) for line in out.splitlines() if line.startswith('{"seconds"')]
        if process.returncode or not lines:
            sys.exit(f"{work} failed:\n{err[-2000:]}")
        medians.append(statistics.median(line["seconds"] for line in lines))
    return statistics.mean(medians)


def main() -> None:
    """Print a table: seconds alone, seconds with two at once, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    options = parser.parse_args()
    print("| work | threads | alone, s | two at once, s | ratio |\n|---|---|---|---|---|")
    for work in options.works:
        for policy in options.policies:
            alone, beside = (
                statistics.median(seconds(work, policy, copies) for _ in range(options.repeats)) for copies in (1, 2)
            )
            print(f"| {work} | {policy} | {alone:.1f} | {beside:.1f} | {beside / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()

"""The machine's type of numbers and peak rate, and measurements in separate processes."""

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from estep.models.precision import resolve_dtype

DTYPE = resolve_dtype("auto", "cuda" if torch.cuda.is_available() else "cpu")
"""What engines and M-steps compute in: bfloat16, or float32 on a CPU without instructions for it."""


def product_rate() -> float:
    """The machine's rate of matrix products in `DTYPE` in GFLOP/s: the best of several shapes, each the median of 5."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = 0.0
    for rows, inner, columns in ((1024, 576, 1536), (4096, 576, 1536), (2048, 2048, 2048), (8192, 8192, 8192)):
        if device == "cpu" and rows > 4096:
            continue
        a, b = (torch.randn(size, inner).to(device, getattr(torch, DTYPE)) for size in (rows, columns))
        seconds = []
        for _ in range(6):
            started = time.perf_counter()
            for _ in range(20):
                a @ b.T
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - started) / 20)
        best = max(best, 2 * rows * inner * columns / statistics.median(seconds[1:]) / 1e9)
    return best


def in_a_process(script: str, arm: str, *arguments: str) -> list[dict[str, Any]]:
    """The measurements that a script prints as lines of JSON for one arm; exits if the script fails."""
    process = subprocess.run([sys.executable, script, "--arm", arm, *arguments], capture_output=True, text=True)
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"seconds"')]
    if process.returncode or not lines:
        causes = [line for line in process.stderr.splitlines() if "Error: " in line]  # a worker's is far above
        sys.exit("\n".join([f"the arm {arm} failed:", *causes, process.stderr[-2000:]]))
    return lines

"""The figures of a GPU: a table, the card's ceilings, and the shares of them that were reached."""

from dataclasses import dataclass
from typing import Any

import torch

from gpu.checks import taken
from gpu.work import DEVICE, Shape


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

"""Write the tables that come from the plan of a run: "What fits where" of docs/scaling.md, and the memory of training
in docs/models.md.

python scripts/write_scaling.py
"""

import re
from pathlib import Path

from estep.config import MStepConfig
from estep.config.files import load_config
from estep.m_step.memory_plan import memory_needs
from estep.models.registry import HUB_MODELS, PAPER_MODELS
from estep.models.shape import shape_of
from estep.planning.devices import GB, parse_devices
from estep.planning.report import RunPlan, plan_run
from estep.report.terminal import duration

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- written by scripts/write_scaling.py -->", "<!-- end -->"
PROMPT, COMPLETION = 1000, 256
"""Tokens of the tables' prompts and responses."""
HEAD = (
    "| model | devices | weights, gradients, optimizer | gathered | activations, logits | together | a forward pass | "
    "sequences | E-step | M-step | evaluation | a run |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def planned(model: str, devices: str, *overrides: str) -> RunPlan:
    """The plan of the paper's run with a model."""
    config = load_config("paper/helpsteer2", [f"model={model}", *overrides])
    return plan_run(config, parse_devices(devices), PROMPT, COMPLETION)


def row(plan: RunPlan, label: str) -> str:
    """A row of the table."""
    training, sampling = plan.training, plan.sampling
    assert sampling is not None
    parts = training.parts(training.pairs)
    states = parts["weights"] + parts["gradients"] + parts["optimizer"]
    passes = parts["activations"] + parts["logits"]
    cells = [label, str(plan.devices), *(f"{size / GB:.1f}" for size in (states, parts["gathered"]))]
    if plan.refusal is not None:
        ways = plan.refusal.partition("what would do: ")[2]
        ways = re.sub(r" \((\d+) such devices\)", "", ways)
        return "| " + " | ".join([*cells, "", f"**{training.peak / GB:.1f}**", f"does not fit: {ways}"]) + " |" * 6
    by_name = {phase.name: duration(phase.seconds) for phase in plan.phases}
    pairs = f"{training.pairs} pair{'s' * (training.pairs > 1)}"
    cells += [
        f"{passes / GB:.1f}",
        f"{training.peak / GB:.1f}",
        pairs + (", checkpointing" if training.plan.checkpointing else ""),
        f"{sampling.copies} x {sampling.sequences}",
        *(by_name[name] for name in ("E-step", "M-step", "evaluation")),
        duration(plan.seconds),
    ]
    return "| " + " | ".join(cells) + " |"


def what_fits() -> str:
    """The table of docs/scaling.md."""
    rows = [row(planned(model, f"{count}x80GB"), f"`{model}`") for model in PAPER_MODELS for count in (1, 2, 4)]
    split = ["engine.tensor_parallel_size=4", "cluster=auto"]
    for label, overrides in (("all weights", []), ("adapter of rank 16", ["m_step.lora.r=16"])):
        rows.append(row(planned("llama-3.3-70b", "2x8x80GB", *split, *overrides), f"`llama-3.3-70b`, {label}"))
    return "\n".join([HEAD, *rows])


def training_memory(model: str) -> tuple[str, str]:
    """What training takes on one device before any activations: all weights, and an adapter of rank 16."""
    shape = shape_of(model)
    settings = (MStepConfig(), MStepConfig.model_validate({"lora": {"r": 16}}))
    sizes = [memory_needs(shape, config, 1).fixed / GB for config in settings]
    whole, adapter = (f"{size:.1f}" if size < 5 else f"{size:.0f}" for size in sizes)
    return f"{whole} GB", f"{adapter} GB"


def with_tables(scaling: str, models: str) -> tuple[str, str]:
    """The two pages with their tables as the code has them."""
    table = f"{BEGIN}\n\n{what_fits()}\n\n{END}"
    scaling = re.sub(f"{BEGIN}.*?{END}", lambda _: table, scaling, flags=re.DOTALL)
    for name in ("smollm2-135m", *HUB_MODELS):
        whole, adapter = training_memory(name)
        form = rf"^(\| `{re.escape(name)}` \|.*\|) [\d.]+ GB \| [\d.]+ GB \|$"
        models, found = re.subn(form, rf"\1 {whole} | {adapter} |", models, flags=re.MULTILINE)
        if not found:
            raise ValueError(f"docs/models.md has no row for {name}")
    return scaling, models


if __name__ == "__main__":
    pages = (DOCS / "scaling.md", DOCS / "models.md")
    for page, text in zip(pages, with_tables(*(page.read_text(encoding="utf-8") for page in pages)), strict=True):
        page.write_text(text, encoding="utf-8")

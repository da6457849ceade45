"""The plan of a run or a study: what `estep plan` prints."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from estep.config import RunConfig
from estep.data.prepare import open_task
from estep.data.split import with_own_data
from estep.errors import ConfigError
from estep.models.shape import ModelShape, shape_of
from estep.planning.check import refuse_what_cannot_fit
from estep.planning.devices import GB, Devices
from estep.planning.estimate import Phase, phases
from estep.planning.lengths import Lengths, lengths_of
from estep.planning.memory import (
    SamplingMemory,
    TrainingMemory,
    for_sampling,
    for_training,
    host_bytes,
    sampling_memory,
    training_memory,
    training_ranks,
)


@dataclass(frozen=True)
class RunPlan:
    """What a run will need."""

    config: RunConfig
    shape: ModelShape
    devices: Devices
    training: TrainingMemory
    sampling: SamplingMemory | None
    lengths: Lengths
    phases: tuple[Phase, ...]
    refusal: str | None
    """Why it cannot run on these devices; None if it can."""

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def host(self) -> float:
        """Main memory in bytes that the first process of training takes."""
        return host_bytes(self.shape)

    def as_json(self) -> dict[str, Any]:
        """Plain data. Sizes are bytes of one device, times are seconds, lengths are tokens."""
        training, sampling = self.training, self.sampling
        return {
            "model": self.config.model,
            "task": self.config.task,
            "devices": str(self.devices),
            "machines": self.devices.nodes,
            "devices_per_machine": self.devices.per_node,
            "refusal": self.refusal,
            "parameters": self.shape.parameters,
            "training": {
                "devices": training.devices,
                "device_bytes": training.total,
                "peak_bytes": training.peak,
                "parts_bytes": training.parts(training.pairs),
                "pairs_per_forward_pass": training.pairs,
                "most_input_tokens_per_forward_pass": training.plan.positions,
                "most_predicted_tokens_per_forward_pass": training.plan.targets,
                "gradient_checkpointing": training.plan.checkpointing,
                "main_memory_of_first_process_bytes": self.host,
            },
            "sampling": None
            if sampling is None
            else {
                "engine": "vllm" if sampling.vllm else "transformers",
                "copies": sampling.copies,
                "devices_per_copy": sampling.split,
                "budget_bytes": sampling.budget,
                "weights_bytes": sampling.weights,
                "cache_bytes": sampling.cache,
                "longest_sequence_tokens": sampling.longest,
                "sequences_at_a_time_per_copy": sampling.sequences,
            },
            "lengths": asdict(self.lengths),
            "phases": [phase._asdict() for phase in self.phases],
            "seconds": self.seconds,
        }


def plan_run(config: RunConfig, devices: Devices, prompt: int | None = None, completion: int | None = None) -> RunPlan:
    """Plan a run.

    Args:
        config: a configuration as read from a file.
        prompt: tokens of a prompt, if they are given.
        completion: tokens of a response, if they are given.

    Raises:
        SourceError: the model's configuration cannot be read.
    """
    task, config = open_task(config)
    task = with_own_data(task, config.data)
    shape = shape_of(config.model)
    lengths = lengths_of(config, task, prompt, completion)
    trains, samples = for_training(config, devices), for_sampling(config, devices)
    pair = (max(1, round(lengths.plain + lengths.response)), max(1, round(lengths.response)))
    ranks = training_ranks(config, trains)
    training = training_memory(shape, config, trains, pair, ranks)
    longest_prompt = max(lengths.plain, lengths.proposed, lengths.hinted)
    sampling = sampling_memory(shape, config, samples, (longest_prompt, lengths.response))
    timed = phases(config, shape, (samples, trains), (sampling, training), lengths)
    refusal = None
    try:
        refuse_what_cannot_fit(config, shape, devices)
    except ConfigError as error:
        refusal = str(error)
    return RunPlan(config, shape, devices, training, sampling, lengths, tuple(timed), refusal)


def plan_table(plan: RunPlan, runs: int, duration: Callable[[float], str]) -> Table:
    """A plan as a table.

    Args:
        runs: how many runs of a study have this plan.
        duration: seconds as words.
    """
    config = plan.config
    title = f"{config.model} on {plan.devices}" + (f", {runs} runs" if runs > 1 else "")
    table = Table("", "", "", title=title, title_justify="left", show_header=False)
    training, sampling = plan.training, plan.sampling
    if plan.refusal is not None:
        table.add_row("cannot run", "", "see the error below")
        table.add_section()
    kind = "adapter" if config.m_step.lora is not None else "all weights"
    table.add_row("training", f"{training.devices} device{'s' * (training.devices > 1)}, {kind}", "GB on each")
    for name, size in training.parts(training.pairs).items():
        table.add_row("", name, _gb(size))
    table.add_row("", f"together, of {_gb(training.total)}", _gb(training.peak))
    way = ", with gradient checkpointing" if training.plan.checkpointing else ""
    positions, targets = training.pair
    table.add_row(
        "", f"a forward pass{way}", _pairs(training.pairs) + f" of {positions} tokens, {targets} of them predicted"
    )
    table.add_row("", "main memory of the first process", _gb(plan.host))
    table.add_section()
    if sampling is None:
        table.add_row("sampling", f"engine.type={config.engine.type}", "nothing on these devices")
    else:
        engine = "vLLM" if sampling.vllm else "transformers"
        words = f"{sampling.copies} {'copies' if sampling.copies > 1 else 'copy'}"
        if sampling.split > 1:
            words += f", each split across {sampling.split} devices"
        table.add_row("sampling", f"{engine}, {words}", "GB on each")
        table.add_row("", "weights", _gb(sampling.weights))
        table.add_row("", "cache", _gb(max(0.0, sampling.cache)))
        table.add_row("", "sequences at the same time", f"{sampling.sequences} for each copy")
    table.add_section()
    table.add_row("prompts", plan.lengths.source, f"{plan.lengths.plain:.0f} tokens, {plan.lengths.response:.0f} new")
    for phase in plan.phases if plan.refusal is None else ():
        tokens = f"{_millions(phase.prompt + phase.new)} tokens, " if phase.prompt else ""
        table.add_row("", phase.name, f"{tokens}{duration(phase.seconds)}")
    if plan.refusal is None:
        table.add_row("", "a run, about", duration(plan.seconds))
    return table


def distinct(plans: list[RunPlan]) -> list[tuple[RunPlan, int, float]]:
    """Plans that differ in the model or its placement: the first of each, how many there are, and seconds of all."""
    groups: dict[str, list[RunPlan]] = {}
    for plan in plans:
        content = plan.config.model_dump(mode="json", include={"model", "engine", "m_step", "cluster"})
        groups.setdefault(repr(content), []).append(plan)
    return [(group[0], len(group), sum(plan.seconds for plan in group)) for group in groups.values()]


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count > 1)}"


def _gb(size: float) -> str:
    return f"{size / GB:.1f}"


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:.2f} million"

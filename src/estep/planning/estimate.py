"""The tokens and the expected time of each phase of a run, from the sizes of its model, its devices and its texts.

An estimate of the order of magnitude: it assumes the rates below and says nothing about a particular model. A study's
`--dry-run` measures instead.
"""

from typing import NamedTuple

from estep.config import DirectProposal, RunConfig, served_model
from estep.diagnostics.probes import PROBES
from estep.models.shape import ModelShape
from estep.planning.devices import Devices
from estep.planning.draws import Rates, accepted_pairs, expected_draws, times_trained
from estep.planning.lengths import Lengths
from estep.planning.memory import SamplingMemory, TrainingMemory, training_ranks

TRAINING_MFU = 0.35
"""Part of the devices' peak that training uses. Published runs reach 0.21 to 0.46 (PaLM, arXiv 2204.02311, table 3) and
0.38 to 0.43 (Llama 3, arXiv 2407.21783, table 4). Assumed."""
CPU_MFU = 0.45
"""The same on a CPU; measured (docs/log.md)."""
PREFILL_MFU = 0.4
"""Part of the peak that reading prompts uses. Assumed."""
DECODING_BANDWIDTH = 0.6
"""Part of the memory's bandwidth that sampling uses. Assumed."""
PLAIN = Rates(correct=0.4, accepted=0.4)
"""Of a draw without the hint: the accuracy of the paper's models (Lee et al., 2025, table 1: 0.3 to 0.6)."""
HINTED = Rates(correct=0.8, accepted=0.8)
"""Of a draw with the hint: 0.65 to 0.98 in docs/log.md."""
DISK = 1e9
"""Bytes per second that weights are read and written with: a local solid-state disk. Assumed."""
GPU_START = 90.0
"""Seconds that vLLM takes to start and to compile on a GPU. Assumed."""
CPU_START = 15.0
"""Seconds that an engine takes to start on a CPU. Assumed."""
PROCESS_START = 30.0
"""Seconds until the processes of an M-step compute, on GPUs or if there are several. Assumed."""


class Phase(NamedTuple):
    """A phase of a run, over all iterations."""

    name: str
    prompt: float
    """Tokens of prompts; for the M-step, tokens of pairs."""
    new: float
    """Tokens sampled."""
    seconds: float


def phases(
    config: RunConfig,
    shape: ModelShape,
    devices: tuple[Devices, Devices],
    memory: tuple[SamplingMemory | None, TrainingMemory],
    lengths: Lengths,
) -> list[Phase]:
    """The phases of a run.

    Args:
        devices: those that sample and those that train.
        memory: of sampling (None for an engine that samples elsewhere, whose time is not estimated) and of training.
    """
    sampling, training = memory
    iterations, attempts = config.iterations, lengths.train * getattr(config.proposal, "n", 1)
    draws = expected_draws(config.proposal, PLAIN, HINTED)
    plain, hinted = draws.plain * attempts * iterations, draws.hinted * attempts * iterations
    prompts = plain * lengths.proposed + hinted * lengths.hinted
    new = (plain + hinted) * lengths.response
    answers = lengths.test * config.evaluation.samples * (iterations + 1)
    read, answered = answers * lengths.plain, answers * lengths.response
    pairs = accepted_pairs(config, draws, lengths.train)
    replayed = times_trained(config.m_step, draws, iterations)
    response = lengths.response if not isinstance(config.proposal, DirectProposal) else lengths.response / 10
    trained = pairs * replayed * (lengths.plain + response)
    start = GPU_START if devices[0].device.gpu else CPU_START
    return [
        Phase("E-step", prompts, new, _sampling_seconds(shape, devices[0], sampling, prompts, new)),
        Phase("M-step", trained, 0.0, training_seconds(shape, config, devices[1], training, trained)),
        Phase("evaluation", read, answered, _sampling_seconds(shape, devices[0], sampling, read, answered)),
        *_scoring(config, shape, devices[0], sampling, lengths),
        *_answer_probabilities(config, shape, devices[0], sampling, lengths),
        Phase("start, load and save", 0.0, 0.0, start + iterations * _hand_over_seconds(shape, config, devices[1])),
    ]


def _scoring(
    config: RunConfig,
    shape: ModelShape,
    devices: Devices,
    memory: SamplingMemory | None,
    lengths: Lengths,
) -> list[Phase]:
    """The phase of scores and probes (`diagnostics: full`, `filters.weight_by`); none for a run without them."""
    if not config.scores_samples:
        return []
    draws = expected_draws(config.proposal, PLAIN, HINTED)
    drawn = draws.plain + draws.hinted
    # Texts that the proposal supplies are not scored; hinted ones of the policy are scored with the hint, too.
    correct = draws.accepted * lengths.train * getattr(config.proposal, "n", 1) * config.iterations if drawn else 0.0
    twice = draws.hinted / drawn if drawn and served_model(config.proposal) is None else 0.0
    read = correct * (lengths.proposed + lengths.response + twice * (lengths.hinted + lengths.response))
    asked = (config.validation_size or 0) * (config.iterations + 1) if config.diagnostics == "full" else 0
    read += asked * (PROBES * lengths.plain + (PROBES + 1) * (lengths.plain + lengths.response))
    new = asked * PROBES * lengths.response
    return [Phase("scores and probes", read, new, _sampling_seconds(shape, devices, memory, read, new))]


def _answer_probabilities(
    config: RunConfig,
    shape: ModelShape,
    devices: Devices,
    memory: SamplingMemory | None,
    lengths: Lengths,
) -> list[Phase]:
    """The phase of `evaluation.probabilities`; none without it. The prompt of a question is read once, and a response
    once for each answer."""
    if not config.evaluation.probabilities:
        return []
    questions = (lengths.test - (config.validation_size or 0)) * (config.iterations + 1)
    read = questions * (lengths.plain + config.evaluation.samples * lengths.answers * lengths.response)
    return [Phase("answer probabilities", read, 0.0, _sampling_seconds(shape, devices, memory, read, 0.0))]


def training_seconds(
    shape: ModelShape, config: RunConfig, devices: Devices, memory: TrainingMemory, tokens: float
) -> float:
    """6 parameters' FLOP per token and parameter: 2 forward, 4 backward; 2 more with gradient checkpointing. An adapter
    spares the 2 for the gradients of the frozen weights. Attention is not counted."""
    per_token = (4 if config.m_step.lora is not None else 6) + (2 if memory.plan.checkpointing else 0)
    rate = memory.devices * devices.device.flops * (TRAINING_MFU if devices.device.gpu else CPU_MFU)
    if not devices.device.gpu:
        rate /= memory.devices  # they share the cores
    return per_token * shape.parameters * tokens / rate


def _sampling_seconds(
    shape: ModelShape, devices: Devices, memory: SamplingMemory | None, prompts: float, new: float
) -> float:
    """Prompts take 2 FLOP per token and parameter; a step of decoding reads the weights and the cache of every running
    sequence once, and computes 2 FLOP per sequence and parameter. Shared prefixes are not counted."""
    if memory is None:
        return 0.0
    device, size = devices.device, memory.copies * memory.split
    if not device.gpu:
        size = 1  # all copies share the cores
    reading = 2 * shape.parameters * prompts / (size * device.flops * PREFILL_MFU)
    running = max(1, memory.sequences)
    moved = (memory.weights + running * memory.sequence) / (device.bandwidth * DECODING_BANDWIDTH)
    computed = 2 * shape.parameters * running / (memory.split * device.flops * PREFILL_MFU)
    copies = memory.copies if device.gpu else 1
    return reading + new / (running * copies) * max(moved, computed)


def _hand_over_seconds(shape: ModelShape, config: RunConfig, devices: Devices) -> float:
    """Between the steps of an iteration: the M-step reads the weights and writes them, the engine reads them."""
    written = shape.parameters * (4 if config.m_step.save_dtype == "float32" else 2)
    if config.m_step.lora is not None:
        written = 4 * shape.adapter(config.m_step.lora)
    moved = 4 * shape.parameters + 2 * written
    several = devices.device.gpu or training_ranks(config, devices) > 1
    return moved / DISK + (PROCESS_START if several else 0)

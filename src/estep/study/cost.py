"""What a study will cost, from a short measurement: a few draws, answers and training steps of each model on each task.

The estimate takes the base model's acceptance rates for all iterations. Training raises them, and with them the pairs
that are trained on, but lowers the draws of rejection sampling; `at most` counts every draw that a proposal may make
and every pair that it may yield.
"""

import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from estep.config import (
    DirectProposal,
    MixtureProposal,
    PPSProposal,
    ProposalConfig,
    RejectionProposal,
    RunConfig,
    STaRProposal,
)
from estep.data.prepare import within_context
from estep.data.split import Pool, draw_split, load_pool
from estep.e_step import EStepResult, expect, proposal_sampling
from estep.engines import Engine
from estep.errors import EstepError
from estep.evaluate import ask
from estep.filters import build_filters
from estep.m_step.base import MStepInput
from estep.m_step.sft import build_m_step
from estep.progress import Reporter, Silent
from estep.proposals import build_proposal
from estep.records import ModelRef, Pair, Question, derive_seed
from estep.sources.models import resolve_model
from estep.store.reuse import has_training
from estep.study.grid import Cell, Grid
from estep.study.run import Engines, Prepared, prepare
from estep.tasks import Task

_QUESTIONS = 48
_PAIRS = 16
_STEPS = 3
"""Gradient steps that are timed, on the same pairs again where there are not so many."""


class Rates(NamedTuple):
    """What becomes of a draw."""

    correct: float
    """Share whose answer is right: rejection sampling and STaR do not draw again for it."""
    accepted: float
    """Share that all filters accept."""


class Draws(NamedTuple):
    """What drawing costs and gives."""

    seconds: float
    """A draw."""
    tokens: float
    """Prompt and new tokens of a draw."""
    rates: Rates


class Training(NamedTuple):
    """What training costs."""

    seconds: float
    """A pair."""
    tokens: float
    """A pair."""
    fixed: float
    """Seconds an M-step: reading and writing weights."""


@dataclass(frozen=True)
class Calibration:
    """A model on a task."""

    plain: Draws
    hinted: Draws
    answer: Draws
    """Of the policy's own prompt, greedy; its rates are not used."""
    training: Training
    """On pairs with a rationale."""
    direct: Training
    """On answers alone."""


class Load(NamedTuple):
    """What one attempt of a proposal asks for: draws, and the share of attempts that end in a pair."""

    plain: float
    hinted: float
    accepted: float


class Cost(NamedTuple):
    """Of a cell, beyond what it takes over from others."""

    draws: float
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Of one cell."""

    cell: Cell
    about: Cost
    at_most: Cost
    note: str = ""
    """Why there is nothing to pay, or nothing known."""


def load_of(proposal: ProposalConfig, plain: Rates, hinted: Rates) -> Load:
    """The expected load of one attempt, given what becomes of a plain and of a hinted draw.

    >>> load_of(RejectionProposal(budget=3), Rates(0.5, 0.5), Rates(0.9, 0.9))
    Load(plain=1.75, hinted=0.0, accepted=0.875)
    """
    match proposal:
        case RejectionProposal(budget=budget):
            # An attempt goes on while its answers are wrong, and whatever its last sample is, the filters see it.
            draws = sum((1 - plain.correct) ** tried for tried in range(budget))
            return Load(draws, 0.0, min(1.0, plain.accepted * draws))
        case STaRProposal():
            again = 1 - plain.correct
            return Load(1.0, again, min(1.0, plain.accepted + again * hinted.accepted))
        case PPSProposal():
            return Load(0.0, 1.0, hinted.accepted)
        case DirectProposal():
            return Load(0.0, 0.0, 1.0)
        case MixtureProposal(components=components):
            whole = sum(component.weight for component in components)
            parts = [(c.weight / whole, load_of(c.proposal, plain, hinted)) for c in components]
            return Load(*(sum(weight * load[n] for weight, load in parts) for n in range(3)))


def most_of(proposal: ProposalConfig) -> Load:
    """The most that one attempt may ask for; of a mixture, on average over its components."""
    return load_of(proposal, Rates(0.0, 0.0), Rates(0.0, 0.0))._replace(accepted=1.0)


def estimate(grid: Grid, reporter: Reporter) -> list[Estimate]:
    """What each cell of a study will cost; nothing is kept.

    Raises:
        EstepError: a cell's configuration does not fit its task, or asks for more questions than there are.
    """
    cells = prepare(grid)
    measured: dict[str, Calibration | None] = {}
    paid: set[str] = set()
    pools: dict[str, Pool] = {}
    estimates = []
    with Engines(reporter).closed() as engines:
        for prepared in cells:
            finished = prepared.finished
            found = None
            if not finished:
                key = _key_of(prepared)
                if key not in measured:
                    measured[key] = _measured(prepared, engines, reporter)
                found = measured[key]
            if found is None:
                estimates.append(_nothing(prepared.cell, finished))
            else:
                spared = {"trains": prepared.training_key not in paid, "asks_base": prepared.base_key not in paid}
                config = _sized(prepared, pools)
                about, at_most = (cost(config, found, worst=worst, **spared) for worst in (False, True))
                estimates.append(Estimate(prepared.cell, about, at_most))
            if found is not None or finished:
                paid.add(prepared.base_key)
            if found is not None or (finished and has_training(prepared.store, prepared.config.iterations)):
                paid.add(prepared.training_key)
    return estimates


def cost(config: RunConfig, found: Calibration, worst: bool, trains: bool = True, asks_base: bool = True) -> Cost:
    """What a run costs.

    Args:
        config: resolved, with the sizes of its question sets.
        worst: count every draw and pair that there may be.
        trains, asks_base: False where it takes that over from another cell.
    """
    proposal = config.proposal
    load = most_of(proposal) if worst else load_of(proposal, found.plain.rates, found.hinted.rates)
    attempts = (config.train_size or 0) * getattr(proposal, "n", 1)
    plain, hinted = load.plain * attempts, load.hinted * attempts
    pairs = load.accepted * attempts
    if config.filters.max_per_question is not None:
        pairs = min(pairs, config.filters.max_per_question * (config.train_size or 0))
    iterations = config.iterations if trains else 0
    # With replay, iteration k trains on the pairs of the last `replay` iterations.
    sets = sum(min(k, config.m_step.replay) for k in range(1, iterations + 1)) * config.m_step.epochs
    evaluations = config.iterations + asks_base
    answers = ((config.test_size or 0) + (config.validation_size or 0)) * config.evaluation.samples * evaluations
    training = found.direct if isinstance(proposal, DirectProposal) else found.training
    parts: list[tuple[float, Draws | Training]] = [
        (plain * iterations, found.plain),
        (hinted * iterations, found.hinted),
        (answers, found.answer),
        (pairs * sets, training),
    ]
    return Cost(
        draws=(plain + hinted) * iterations,
        tokens=sum(count * each.tokens for count, each in parts if count),
        seconds=sum(count * each.seconds for count, each in parts if count)
        + (training.fixed * iterations if pairs else 0),
    )


def _key_of(prepared: Prepared) -> str:
    """What a calibration depends on."""
    config = prepared.config
    content = config.model_dump(mode="json", include={"model", "task", "engine", "few_shot", "filters", "data"})
    costly = {"batch_size", "micro_batch_size", "lora", "precision", "gradient_checkpointing", "save_dtype", "device"}
    m_step = config.m_step.model_dump(mode="json", include=costly)
    return json.dumps({**content, "m_step": m_step, "hint_name": prepared.trainer.task.hint_name}, sort_keys=True)


def _sized(prepared: Prepared, pools: dict[str, Pool]) -> RunConfig:
    """A cell's configuration with the sizes of its question sets, where it takes all that there are.

    Args:
        pools: by `data_key`, of the cells before; this one's is added.
    """
    config, task = prepared.config, prepared.trainer.task
    if config.train_size is not None and config.test_size is not None:
        return config
    if prepared.data_key not in pools:
        pools[prepared.data_key] = load_pool(task, config.on_invalid_row)
    sizes = config.train_size, config.test_size
    split = draw_split(task, pools[prepared.data_key], *sizes, config.seed, config.data, config.validation_size)
    return config.model_copy(update={"train_size": len(split.train), "test_size": len(split.test)})


def _nothing(cell: Cell, finished: bool) -> Estimate:
    none = Cost(*[0.0 if finished else math.nan] * 3)
    return Estimate(cell, none, none, "finished" if finished else "not measured")


def _measured(prepared: Prepared, engines: Engines, reporter: Reporter) -> Calibration | None:
    """The calibration of a cell; None where it cannot be had, which is told."""
    config = prepared.config
    reporter.log(f"calibrating {config.model} on {config.task}")
    try:
        return calibrate(config, prepared.trainer.task, engines.of(config), reporter.log)
    except Exception as error:  # a model that does not fit the memory costs its own cells' estimates alone
        engines.close()
        reporter.log(f"  not measured: {error}")
        return None


def calibrate(config: RunConfig, task: Task, engine: Engine, log: Callable[[str], None]) -> Calibration:
    """Measure a model on a task: a few draws with and without the hint, a few answers, a few training steps.

    Args:
        config: resolved.
        engine: with any weights; the base model is loaded.
    """
    base = ModelRef(resolve_model(config.model, log))
    engine.load(base)
    split = draw_split(task, load_pool(task, config.on_invalid_row), None, config.test_size, config.seed, config.data)
    asks = (task.prompt, task.hinted_prompt, task.proposal_prompt)
    questions = within_context(engine, split.train[:_QUESTIONS], asks, config, "calibration", log)
    plain, hinted = (_drawn(config, task, questions, engine, proposal) for proposal in _PROPOSALS)
    pairs = (hinted.expectation.pairs + plain.expectation.pairs)[:_PAIRS]
    started = time.monotonic()
    rows = ask(
        task, questions, engine, config.evaluation.model_copy(update=_GREEDY), config.max_new_tokens, 0, Silent()
    )
    seconds = time.monotonic() - started
    tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    answer = Draws(seconds / len(rows), tokens / len(rows), Rates(math.nan, math.nan))
    direct = _trained(config, base, engine, _direct_pairs(task, questions))
    training = _trained(config, base, engine, pairs) if len(pairs) >= _PAIRS // 2 else direct
    return Calibration(plain.draws, hinted.draws, answer, training, direct)


_PROPOSALS: tuple[ProposalConfig, ...] = (RejectionProposal(), PPSProposal())
_GREEDY = {"temperature": 0.0, "samples": 1, "vote": "none"}


class _Drawn(NamedTuple):
    draws: Draws
    expectation: EStepResult


def _drawn(
    config: RunConfig, task: Task, questions: list[Question], engine: Engine, proposal: ProposalConfig
) -> _Drawn:
    filters = config.filters.model_copy(update={"balance": "none"})  # it needs more questions than these
    started = time.monotonic()
    expectation = expect(
        task=task,
        questions=questions,
        proposal=build_proposal(proposal),
        filters=build_filters(filters, task.file.answer, questions),
        engine=engine,
        sampling=proposal_sampling(config, task),
        seed=derive_seed(config.seed, "calibration"),
        reporter=Silent(),
    )
    seconds = time.monotonic() - started
    count = len(expectation.draws)
    tokens = sum(sample.prompt_tokens + sample.completion_tokens for sample in expectation.samples)
    attempts = len(expectation.candidates)
    correct = sum(candidate.verdict.status == "correct" for candidate in expectation.candidates) / attempts
    return _Drawn(
        Draws(seconds / count, tokens / count, Rates(correct, len(expectation.pairs) / attempts)), expectation
    )


def _direct_pairs(task: Task, questions: Sequence[Question]) -> list[Pair]:
    """Pairs of the right answers alone."""
    return [
        Pair(question.id, question.id, task.prompt(question), task.direct_completion(question))
        for question in questions[:_PAIRS]
    ]


def _trained(config: RunConfig, base: ModelRef, engine: Engine, pairs: Sequence[Pair]) -> Training:
    moments = [time.monotonic()]
    step = build_m_step(config, base, engine)
    with tempfile.TemporaryDirectory(prefix="estep-calibration-") as folder:
        work = MStepInput(
            start=base,
            iteration=1,
            pairs=list(itertools.islice(itertools.cycle(pairs), _STEPS * config.m_step.batch_size)),
            learning_rate=config.m_step.learning_rate[1],
            seed=0,
            folder=Path(folder) / "weights",
            score_before=engine.score,
            advance=lambda count: moments.append(time.monotonic()),
            release=engine.release,
        )
        trained = step(work)
        if trained is None:
            raise EstepError(f"no pair of {len(pairs)} fits the model's context")
        engine.load(trained.model)
        engine.load(base)
    ended = time.monotonic()
    # The first step waits for what is read, compiled and allocated once.
    per_step = (moments[-1] - moments[1]) / (len(moments) - 2) if len(moments) > 2 else moments[-1] - moments[0]
    pairs_seen = trained.pairs * config.m_step.epochs
    fixed = max(0.0, ended - moments[0] - per_step * trained.steps)
    return Training(per_step * trained.steps / pairs_seen, trained.tokens / pairs_seen, fixed)

"""Estimates the cost of a study from a short measurement: a few draws, responses and training steps per model and task.

The estimate uses the base model's acceptance rates for all iterations. Training raises them, which means more pairs to
train on but fewer draws with rejection sampling. `at_most` counts every draw that a proposal may ask for and every pair
that it may yield. With `few_shot: first`, prompts from iteration 2 on are shorter than those measured here.
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

from estep.cluster import launch_of
from estep.config import (
    DirectProposal,
    EvaluationConfig,
    PPSProposal,
    ProposalConfig,
    RejectionProposal,
    RunConfig,
)
from estep.data.prepare import announce, within_context
from estep.data.split import Pool, Sizes, draw_split, load_pool
from estep.diagnostics.probes import PROBES, Probe
from estep.e_step import EStep, EStepResult, proposal_sampling
from estep.engines import Engine
from estep.errors import EstepError
from estep.evaluate import Evaluator
from estep.filters import build_filters
from estep.m_step.base import MStepInput
from estep.m_step.sft import build_m_step
from estep.planning.draws import Rates, accepted_pairs, expected_draws, times_trained, worst_case_draws
from estep.progress import Reporter, Silent
from estep.proposals import build_proposal
from estep.records import ModelRef, Pair, Question, derive_seed
from estep.scoring import Scorer
from estep.sources.models import resolve_model
from estep.store.reuse import has_training
from estep.study.grid import Cell, Grid
from estep.study.run import Engines, Prepared, prepare
from estep.tasks import Task

_QUESTIONS = 48
_PAIRS = 16
_STEPS = 3
"""Gradient steps to time; pairs are repeated if there are too few."""


class DrawCost(NamedTuple):
    """The cost and yield of one draw."""

    seconds: float
    tokens: float
    """Tokens of prompt and response."""
    rates: Rates


class TrainingCost(NamedTuple):
    """The cost of training."""

    seconds_per_pair: float
    tokens_per_pair: float
    seconds_per_m_step: float
    """The fixed cost: reading and writing weights."""


@dataclass(frozen=True)
class ModelCosts:
    """The measured costs of a model on a task."""

    plain: DrawCost
    hinted: DrawCost
    answer: DrawCost
    """A greedy response to the plain prompt; its rates are not used."""
    probe: DrawCost
    """The samples and scores of `diagnostics: full` for a validation question; nothing with other diagnostics."""
    training: TrainingCost
    """On pairs with a rationale."""
    direct: TrainingCost
    """On answers alone."""


class Cost(NamedTuple):
    """The cost of a cell, without the work that it reuses from other cells."""

    draws: float
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of one cell."""

    cell: Cell
    about: Cost
    at_most: Cost
    note: str = ""
    """Why the cost is zero or unknown."""


def estimate(grid: Grid, reporter: Reporter) -> list[Estimate]:
    """Estimate the cost of each cell of a study. The measurements are discarded.

    Raises:
        EstepError: a cell's configuration does not fit its task or asks for more questions than the task has.
    """
    cells = prepare(grid)
    measured: dict[str, ModelCosts | None] = {}
    paid: set[str] = set()
    pools: dict[str, Pool] = {}
    estimates = []
    with Engines(reporter).closed() as engines:
        for prepared in cells:
            finished = prepared.finished
            costs = None
            if not finished:
                key = _key_of(prepared)
                if key not in measured:
                    measured[key] = _measured(prepared, engines, reporter)
                costs = measured[key]
            if costs is None:
                estimates.append(_nothing(prepared.cell, finished))
            else:
                spared = {"trains": prepared.training_key not in paid, "asks_base": prepared.base_key not in paid}
                config = _sized(prepared, pools)
                about, at_most = (cost(config, costs, worst=worst, **spared) for worst in (False, True))
                estimates.append(Estimate(prepared.cell, about, at_most))
            if costs is not None or finished:
                paid.add(prepared.base_key)
            if costs is not None or (finished and has_training(prepared.store, prepared.config.iterations)):
                paid.add(prepared.training_key)
    return estimates


def cost(config: RunConfig, costs: ModelCosts, worst: bool, trains: bool = True, asks_base: bool = True) -> Cost:
    """The cost of a run.

    Args:
        config: a resolved configuration, with the sizes of its question sets.
        costs: the measured costs of its model on its task.
        worst: whether to count every possible draw and pair.
        trains: False if another cell's training is reused.
        asks_base: False if another cell's evaluation of the base model is reused.
    """
    proposal = config.proposal
    demand = worst_case_draws(proposal) if worst else expected_draws(proposal, costs.plain.rates, costs.hinted.rates)
    attempts = (config.train_size or 0) * getattr(proposal, "n", 1)
    plain, hinted = demand.plain * attempts, demand.hinted * attempts
    pairs = accepted_pairs(config, demand, config.train_size or 0)
    iterations = config.iterations if trains else 0
    sets = times_trained(config.m_step, demand, iterations)
    evaluations = config.iterations + asks_base
    answers = ((config.test_size or 0) + (config.validation_size or 0)) * config.evaluation.samples * evaluations
    training = costs.direct if isinstance(proposal, DirectProposal) else costs.training
    probed = (config.validation_size or 0) * evaluations
    parts = [
        (plain * iterations, costs.plain.tokens, costs.plain.seconds),
        (hinted * iterations, costs.hinted.tokens, costs.hinted.seconds),
        (answers, costs.answer.tokens, costs.answer.seconds),
        (probed, costs.probe.tokens, costs.probe.seconds),
        (pairs * sets, training.tokens_per_pair, training.seconds_per_pair),
    ]
    return Cost(
        draws=(plain + hinted) * iterations,
        tokens=sum(count * tokens for count, tokens, _ in parts if count),
        seconds=sum(count * seconds for count, _, seconds in parts if count)
        + (training.seconds_per_m_step * iterations if pairs else 0),
    )


_MEASURED = {"model", "task", "engine", "few_shot", "filters", "data", "diagnostics"}


def _key_of(prepared: Prepared) -> str:
    """A key of the settings that a measurement depends on."""
    config = prepared.config
    content = config.model_dump(mode="json", include=_MEASURED)
    costly = {"batch_size", "micro_batch_size", "lora", "precision", "gradient_checkpointing", "save_dtype", "device"}
    m_step = config.m_step.model_dump(mode="json", include=costly)
    return json.dumps({**content, "m_step": m_step, "hint_name": prepared.trainer.task.hint_name}, sort_keys=True)


def _sized(prepared: Prepared, pools: dict[str, Pool]) -> RunConfig:
    """A cell's configuration with the sizes of its question sets filled in.

    Args:
        pools: the pools of earlier cells, by `data_key`; this cell's pool is added.
    """
    config, task = prepared.config, prepared.trainer.task
    if config.train_size is not None and config.test_size is not None:
        return config
    if prepared.data_key not in pools:
        pools[prepared.data_key] = load_pool(task, config.on_invalid_row)
    sizes = config.train_size, config.test_size
    split = draw_split(task, pools[prepared.data_key], Sizes(*sizes, config.validation_size), config.seed, config.data)
    return config.model_copy(update={"train_size": len(split.train), "test_size": len(split.test)})


def _nothing(cell: Cell, finished: bool) -> Estimate:
    none = Cost(*[0.0 if finished else math.nan] * 3)
    return Estimate(cell, none, none, "finished" if finished else "not measured")


def _measured(prepared: Prepared, engines: Engines, reporter: Reporter) -> ModelCosts | None:
    """The measured costs of a cell; None if they cannot be measured, which is logged."""
    config = prepared.config
    reporter.log(f"measuring {config.model} on {config.task}")
    try:
        return measure_costs(config, prepared.trainer.task, engines.of(config), reporter.log)
    except Exception as error:  # a model that does not fit in memory must not prevent the other estimates
        engines.close()
        reporter.log(f"  not measured: {error}")
        return None


def measure_costs(config: RunConfig, task: Task, engine: Engine, log: Callable[[str], None]) -> ModelCosts:
    """Measure a model on a task: a few draws with and without the hint, responses, and training steps.

    Args:
        config: a resolved configuration.
        engine: an engine with any weights; the base model is loaded.
    """
    announce(task, log)
    base = ModelRef(resolve_model(config.model, log))
    engine.load(base)
    pool = load_pool(task, config.on_invalid_row)
    split = draw_split(task, pool, Sizes(None, config.test_size), config.seed, config.data)
    asks = (task.prompt, task.hinted_prompt, task.proposal_prompt)
    questions = within_context(engine, split.train[:_QUESTIONS], asks, config, "measured", log)
    plain, hinted = (_drawn(config, task, questions, engine, proposal) for proposal in _PROPOSALS)
    pairs = (hinted.e_step.pairs + plain.e_step.pairs)[:_PAIRS]
    started = time.monotonic()
    evaluator = Evaluator(task, engine, _GREEDY, config.max_new_tokens, Silent())
    responses = evaluator.run(questions, seed=0)
    count, seconds = len(responses), time.monotonic() - started
    tokens = sum(response.prompt_tokens + response.completion_tokens for response in responses)
    answer = DrawCost(seconds / count, tokens / count, Rates(math.nan, math.nan))
    probe = _NOTHING
    if config.diagnostics == "full":
        started = time.monotonic()
        Probe(task, engine, config.max_new_tokens, Silent())(questions, seed=0)
        # Four samples and five scored texts, each about as long as an answer with its prompt.
        seconds, texts = (time.monotonic() - started) / len(questions), 2 * PROBES + 1
        probe = DrawCost(seconds, texts * answer.tokens, answer.rates)
    direct = _trained(config, base, engine, _direct_pairs(task, questions))
    training = _trained(config, base, engine, pairs) if len(pairs) >= _PAIRS // 2 else direct
    return ModelCosts(plain.draws, hinted.draws, answer, probe, training, direct)


_PROPOSALS: tuple[ProposalConfig, ...] = (RejectionProposal(), PPSProposal())
_GREEDY = EvaluationConfig()
_NOTHING = DrawCost(0.0, 0.0, Rates(math.nan, math.nan))


class _Drawn(NamedTuple):
    draws: DrawCost
    e_step: EStepResult


def _drawn(
    config: RunConfig, task: Task, questions: list[Question], engine: Engine, proposal: ProposalConfig
) -> _Drawn:
    settings = config.filters.model_copy(update={"balance": "none"})  # balancing needs more questions than these
    filters = build_filters(settings, task.file.answer, questions)
    started = time.monotonic()
    scorer = Scorer(engine, Silent()) if config.scores_samples else None
    sampling = proposal_sampling(config, task)
    e_step = EStep(task, build_proposal(proposal), filters, engine, sampling, Silent(), scorer=scorer)
    result = e_step.run(questions, derive_seed(config.seed, "measured costs"))
    seconds = time.monotonic() - started
    count, attempts = len(result.draws), len(result.candidates)
    tokens = sum(sample.prompt_tokens + sample.completion_tokens for sample in result.samples)
    correct = sum(candidate.verdict.status == "correct" for candidate in result.candidates) / attempts
    rates = Rates(correct, len(result.pairs) / attempts)
    return _Drawn(DrawCost(seconds / count, tokens / count, rates), result)


def _direct_pairs(task: Task, questions: Sequence[Question]) -> list[Pair]:
    """Pairs with the correct answer alone."""
    return [
        Pair(question.id, question.id, task.prompt(question), task.direct_completion(question))
        for question in questions[:_PAIRS]
    ]


def _trained(config: RunConfig, base: ModelRef, engine: Engine, pairs: Sequence[Pair]) -> TrainingCost:
    moments = [time.monotonic()]
    step = build_m_step(config, base, engine, launch_of(config, engine))
    with tempfile.TemporaryDirectory(prefix="estep-costs-") as folder:
        work = MStepInput(
            start=base,
            iteration=1,
            pairs=list(itertools.islice(itertools.cycle(pairs), _STEPS * config.m_step.batch_size)),
            learning_rate=config.m_step.learning_rate[1],
            seed=0,
            folder=Path(folder) / "weights",
            score_before=engine.score,
            advance=lambda count: moments.append(time.monotonic()) if count > 0 else None,
            release=engine.release,
        )
        trained = step(work)
        if trained is None:
            raise EstepError(f"no pair of {len(pairs)} fits the model's context")
        engine.load(trained.model)
        engine.load(base)
    ended = time.monotonic()
    # The first step is left out: it includes reading, compiling and allocating, which happen once.
    per_step = (moments[-1] - moments[1]) / (len(moments) - 2) if len(moments) > 2 else moments[-1] - moments[0]
    pairs_seen = trained.pairs * config.m_step.epochs
    fixed = max(0.0, ended - moments[0] - per_step * trained.steps)
    return TrainingCost(per_step * trained.steps / pairs_seen, trained.tokens / pairs_seen, fixed)

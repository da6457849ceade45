"""What a study is said to cost: the loads of proposals by hand, and draws beside those that its runs then made."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import Listen, write_task
from estep.config import DirectProposal, MixtureProposal, PPSProposal, RejectionProposal, RunConfig, STaRProposal
from estep.config.files import validate
from estep.planning.draws import DrawsPerAttempt, Rates, expected_draws, worst_case_draws
from estep.progress import Silent
from estep.report.terminal import duration
from estep.store.run import RunStore
from estep.study.cost import DrawCost, ModelCosts, TrainingCost, cost, estimate, measure_costs
from estep.study.run import run_study
from estep.tasks import load_task
from studies import ARMS, grid_of


@pytest.mark.parametrize(
    ("proposal", "load"),
    [
        # A plain draw is accepted with 0.5, a hinted one with 0.8.
        (RejectionProposal(), DrawsPerAttempt(1.0, 0.0, 0.5)),
        (RejectionProposal(budget=3), DrawsPerAttempt(1 + 0.5 + 0.25, 0.0, 1 - 0.125)),
        (STaRProposal(), DrawsPerAttempt(1.0, 0.5, 0.5 + 0.5 * 0.8)),
        (PPSProposal(), DrawsPerAttempt(0.0, 1.0, 0.8)),
        (DirectProposal(), DrawsPerAttempt(0.0, 0.0, 1.0)),
        (
            MixtureProposal.model_validate(
                {
                    "components": [
                        {"weight": 1, "proposal": {"type": "pps"}},
                        {"weight": 3, "proposal": {"type": "direct"}},
                    ]
                }
            ),
            DrawsPerAttempt(0.0, 0.25, 0.25 * 0.8 + 0.75),
        ),
    ],
)
def test_the_load_of_a_proposal(proposal: Any, load: DrawsPerAttempt) -> None:
    assert expected_draws(proposal, Rates(0.5, 0.5), Rates(0.8, 0.8)) == pytest.approx(load)


def test_a_right_answer_that_a_filter_drops_is_not_drawn_again() -> None:
    # 0.6 right, half of them dropped. DrawCost: 1 + 0.4 + 0.16; each ends in a pair with 0.3.
    assert expected_draws(RejectionProposal(budget=3), Rates(0.6, 0.3), Rates(1, 1)) == pytest.approx((1.56, 0, 0.468))
    # STaR draws again for 0.4, and accepts 0.3 at once and 0.5 of those.
    assert expected_draws(STaRProposal(), Rates(0.6, 0.3), Rates(0.9, 0.5)) == pytest.approx((1, 0.4, 0.3 + 0.4 * 0.5))


def test_the_most_that_a_proposal_may_ask_for() -> None:
    assert worst_case_draws(RejectionProposal(budget=3)) == DrawsPerAttempt(3.0, 0.0, 1.0)
    assert worst_case_draws(STaRProposal()) == DrawsPerAttempt(1.0, 1.0, 1.0)


MEASURED = ModelCosts(
    plain=DrawCost(0.1, 100, Rates(0.5, 0.5)),
    hinted=DrawCost(0.2, 120, Rates(0.9, 0.8)),
    answer=DrawCost(0.05, 90, Rates(math.nan, math.nan)),
    probe=DrawCost(0.0, 0.0, Rates(math.nan, math.nan)),
    training=TrainingCost(0.3, 150, 4.0),
    direct=TrainingCost(0.1, 110, 3.0),
)


def config_of(**changes: Any) -> RunConfig:
    content = {"task": "a", "model": "b", "iterations": 2, "train_size": 10, "test_size": 6, **changes}
    return validate(content)


def test_the_cost_of_a_run_by_hand() -> None:
    # PPS: 2 × 10 hinted draws, 2 × 8 pairs, and 6 questions before training and after each of 2 iterations.
    found = cost(config_of(), MEASURED, worst=False)
    assert found.draws == 20
    assert found.tokens == pytest.approx(20 * 120 + 16 * 150 + 18 * 90)
    assert found.seconds == pytest.approx(20 * 0.2 + 16 * 0.3 + 18 * 0.05 + 2 * 4.0)
    worst = cost(config_of(), MEASURED, worst=True)
    assert worst.seconds == pytest.approx(20 * 0.2 + 20 * 0.3 + 18 * 0.05 + 2 * 4.0)


def test_probes_are_counted_for_every_validation_question_and_iteration() -> None:
    config = config_of(validation_size=5, diagnostics="full")
    probed = replace(MEASURED, probe=DrawCost(0.7, 800, Rates(math.nan, math.nan)))
    without, found = (cost(config, costs, worst=False) for costs in (MEASURED, probed))
    assert found.tokens - without.tokens == pytest.approx(15 * 800)
    assert found.seconds - without.seconds == pytest.approx(15 * 0.7)
    assert found.draws == without.draws


def test_what_another_cell_pays_for_costs_nothing() -> None:
    config = config_of(evaluation={"samples": 3, "temperature": 1.0})
    found = cost(config, MEASURED, worst=False, trains=False)
    assert (found.draws, found.seconds) == (0, pytest.approx(3 * 18 * 0.05))  # its own base evaluation, and no training
    direct = config_of(proposal={"type": "direct"})
    found = cost(direct, MEASURED, worst=False, asks_base=False)
    assert found.seconds == pytest.approx(20 * 0.1 + 12 * 0.05 + 2 * 3.0)


def test_replay_and_epochs_multiply_the_training() -> None:
    found = cost(config_of(m_step={"replay": 2, "epochs": 2}), MEASURED, worst=False)
    # Iteration 1 trains on 8 pairs, iteration 2 on 16, both twice.
    assert found.seconds == pytest.approx(20 * 0.2 + 48 * 0.3 + 18 * 0.05 + 2 * 4.0)


def test_durations_for_people() -> None:
    assert [duration(seconds) for seconds in (0, 59.4, 60, 3599, 7260)] == [
        "0 s",
        "59 s",
        "1 min",
        "1 h 0 min",
        "2 h 1 min",
    ]


@pytest.mark.slow
def test_a_study_is_estimated_and_nothing_is_kept(tmp_path: Path, tiny_model: str) -> None:
    grid = grid_of(tmp_path, tiny_model, train_size=3, test_size=3)
    estimates = estimate(grid, Silent())
    assert [one.cell for one in estimates] == list(grid.cells)
    assert not grid.folder.exists()
    pps, vote, rejection = estimates[:3]
    # Every text is right on this task: the vote trains nothing of its own, and rejection never draws twice.
    assert (pps.about.draws, vote.about.draws, rejection.about.draws) == (6, 0, 6)
    assert all(one.about.seconds > 0 and one.about.tokens > 0 for one in estimates)
    small = grid_of(tmp_path, tiny_model, "seed=1", train_size=3, test_size=3, keep_weights="none")
    run_study(small, Silent())
    for one, cell in zip(estimates, small.cells, strict=False):
        history = [step.metrics() for step in RunStore(cell.config.folder).committed()]
        steps = [metrics.e_step for metrics in history if metrics.e_step]
        own = cell.arm != "vote"  # its draws and pairs are those of pps
        assert one.about.draws == (sum(step.draws for step in steps) if own else 0)
    again = estimate(grid_of(tmp_path, tiny_model, train_size=3, test_size=3, keep_weights="none"), Silent())
    assert [one.note for one in again] == ["finished"] * 3 + [""] * 3
    # The weights are gone, so a vote that is added now trains by itself.
    arms = {**ARMS, "vote-5": {"proposal": {"type": "pps"}, "evaluation": {"samples": 5, "temperature": 1.0}}}
    grown = grid_of(tmp_path, tiny_model, "seed=1", train_size=3, test_size=3, keep_weights="none", arms=arms)
    assert estimate(grown, Silent())[-1].about.draws == 6


@pytest.mark.slow
def test_full_diagnostics_are_measured(tmp_path: Path, tiny_model: str) -> None:
    full = {"diagnostics": "full", "validation_size": 2, "arms": {"pps": ARMS["pps"]}}
    grid = grid_of(tmp_path, tiny_model, "seed=1", train_size=3, test_size=3, **full)
    (found,) = estimate(grid, Silent())
    assert found.note == ""
    # Three rounds of two probed questions, nine texts each, beside draws, pairs and answers.
    plain = grid_of(tmp_path, tiny_model, "seed=1", train_size=3, test_size=3, arms={"pps": ARMS["pps"]})
    assert found.about.tokens > 1.5 * estimate(plain, Silent())[0].about.tokens


@pytest.mark.slow
def test_a_model_that_cannot_be_had_leaves_its_cells_unknown(tmp_path: Path, tiny_model: str) -> None:
    models = f"model=[{tiny_model},{tmp_path / 'nowhere'}]"
    grid = grid_of(tmp_path, tiny_model, "seed=1", models, arms={"pps": ARMS["pps"]})
    listen = Listen()
    known, unknown = estimate(grid, listen)
    assert known.note == ""
    assert unknown.note == "not measured"
    assert any("not measured: " in line and "nowhere" in line for line in listen.lines)


def test_a_measurement_says_which_function_it_runs_before_it_does_anything(tmp_path: Path) -> None:
    path = write_task(tmp_path, answer={"type": "python", "function": "verifiers:any_text"})
    listen = Listen()
    config = config_of(task=str(path), model=str(tmp_path / "nowhere"))
    engine: Any = None  # not reached
    with pytest.raises(Exception, match="nowhere"):
        measure_costs(config, load_task(str(path)), engine, listen.log)
    assert listen.lines[:1] == [
        f"note: this task runs the function verifiers:any_text of the file {tmp_path / 'verifiers.py'}"
    ]

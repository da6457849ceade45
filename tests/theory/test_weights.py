"""Importance weights of a sample of draws: self-normalized, tempered, and refused."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estep.theory import example
from estep.theory.model import binary_model
from estep.theory.weights import effective_sample_size, rationale_weights, self_normalized, tempered

LOG_RATIOS = st.lists(st.floats(-200, 200), min_size=1, max_size=12)


def test_self_normalized_weights_and_their_ess() -> None:
    # Weights 1 and 3: shares 1/4 and 3/4; ESS = 1 / (1/16 + 9/16) = 1.6.
    weights = self_normalized(np.log([1.0, 3.0]))
    assert list(weights) == pytest.approx([0.25, 0.75])
    assert effective_sample_size(weights) == pytest.approx(1.6)


def test_large_log_ratios_neither_overflow_nor_vanish() -> None:
    assert list(self_normalized(np.array([-5000.0, -5000.0]))) == [0.5, 0.5]
    assert list(self_normalized(np.array([5000.0, 0.0]))) == [1.0, 0.0]


def test_weights_that_are_even_enough_are_not_tempered() -> None:
    assert tempered(np.log([1.0, 3.0]), 0.8).tau == 1.0  # ESS 1.6 = .8 · 2


def test_tempering_stops_where_the_ess_is_what_was_asked() -> None:
    # Weights 1 and 9: w^.5 = 1 and 3, with ESS 1.6.
    found = tempered(np.log([1.0, 9.0]), 0.8)
    assert found.tau == pytest.approx(0.5)
    assert list(found.weights_K) == pytest.approx([0.25, 0.75])


def test_asking_for_the_whole_ess_makes_the_weights_equal() -> None:
    found = tempered(np.array([0.0, 40.0, -3.0]), 1.0)
    assert found.tau < 1e-8
    assert list(found.weights_K) == pytest.approx([1 / 3] * 3)


@given(LOG_RATIOS, st.floats(0.01, 1))
def test_tempered_weights_keep_the_ess_and_no_larger_exponent_does(log_ratios: list[float], min_ess: float) -> None:
    logs, enough = np.array(log_ratios), min_ess * len(log_ratios)
    found = tempered(logs, min_ess)
    assert 0 <= found.tau <= 1
    assert effective_sample_size(found.weights_K) >= enough * (1 - 1e-12)
    for larger in (found.tau + (1 - found.tau) * share for share in (1e-3, 0.1, 1) if found.tau < 1):
        assert effective_sample_size(self_normalized(larger * logs)) < enough * (1 + 1e-9)


@given(LOG_RATIOS)
def test_the_ess_never_rises_with_the_exponent(log_ratios: list[float]) -> None:
    sizes = [effective_sample_size(self_normalized(tau * np.array(log_ratios))) for tau in (0, 0.1, 0.3, 0.7, 1)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(sizes))


@pytest.mark.parametrize("min_ess", [0.0, -0.5, 1.01, math.nan])
def test_a_share_outside_its_range_is_refused(min_ess: float) -> None:
    with pytest.raises(ValueError, match=r"min_ess must be in \(0, 1\]"):
        tempered(np.array([0.0, 1.0]), min_ess)


@pytest.mark.parametrize("logs", [[], [math.nan], [0.0, -math.inf]])
def test_log_ratios_that_are_not_finite_are_refused(logs: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        tempered(np.array(logs), 0.5)


def test_a_proposal_that_misses_a_rationale_of_the_posterior_is_refused() -> None:
    blind = binary_model([0.0, 0.1, 0.3, 0.2, 0.4], [0.5, 0.5, 0.9, 0.95, 1.0])
    with pytest.raises(ValueError, match="q has no mass at rationale 0"):
        rationale_weights(example.plain(), blind, example.CORRECT)

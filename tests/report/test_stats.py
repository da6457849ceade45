"""Statistics against values worked out by hand, and the paper's own claims."""

import itertools
import math
from fractions import Fraction

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estep.metrics import quadratic_kappa, standard_error
from estep.report.stats import (
    holm,
    paired_bootstrap,
    paired_kappa_bootstrap,
    paired_sign_test,
    quadratic_kappa_by_value,
    sign_test,
    wilson,
)


def at_least(wins: int, total: int) -> float:
    """P(at least this many heads of a fair coin), as a sum of binomial coefficients."""
    return float(Fraction(sum(math.comb(total, k) for k in range(wins, total + 1)), 2**total))


def test_the_papers_sign_tests() -> None:
    # Section 4.2: 22 of 25 wins, "less than 0.01"; 15 wins, 4 losses and a tie, "about 0.02".
    assert sign_test(22, 3) == pytest.approx(at_least(22, 25))
    assert sign_test(22, 3) == pytest.approx(7.826e-5, rel=1e-3)
    assert sign_test(15, 4, 1) == pytest.approx(at_least(15, 20))
    assert sign_test(15, 4, 1) == pytest.approx(0.0207, abs=5e-5)
    # Without the tie: (comb(19,15) + ... + comb(19,19)) / 2^19 = (3876 + 969 + 171 + 19 + 1) / 524288.
    assert sign_test(15, 4) == pytest.approx(5036 / 524288)
    assert sign_test(0, 0, 0) == 1.0


def test_the_paired_sign_test_counts_the_questions_on_which_two_models_differ() -> None:
    # 2 and 8: twice the lower tail of 10 fair coins, (1 + 10 + 45) / 1024.
    assert paired_sign_test(2, 8) == pytest.approx(2 * 56 / 1024)
    assert paired_sign_test(8, 2) == paired_sign_test(2, 8)
    assert paired_sign_test(5, 5) == 1.0
    assert paired_sign_test(0, 0) == 1.0


def test_wilsons_interval() -> None:
    # k = 8 of n = 10, z = 1.959964: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    z2 = 1.959964**2
    center, half = 0.8 + z2 / 20, 1.959964 * math.sqrt(0.8 * 0.2 / 10 + z2 / 400)
    assert wilson(8, 10) == pytest.approx(((center - half) / (1 + z2 / 10), (center + half) / (1 + z2 / 10)), rel=1e-6)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == pytest.approx(1.0)
    assert all(math.isnan(bound) for bound in wilson(0, 0))


def test_holm_multiplies_by_the_tests_that_are_left() -> None:
    # 0.01 x 4; 0.02 x 3 = 0.06; 0.03 x 2 = 0.06; 0.5 x 1.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_never_lowers(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    assert [adjusted[place] for place in order] == sorted(adjusted)


def test_the_bootstraps_interval_is_that_of_the_mean() -> None:
    # Differences of +1 on 60, -1 on 40 and 0 on 100 of 200 questions: mean 0.1, variance 0.5 - 0.01, so the mean's
    # standard error is √(0.49 / 200) = 0.0495 and the 95 % interval about 0.1 ± 0.097.
    first = [0] * 60 + [1] * 40 + [1] * 100
    second = [1] * 60 + [0] * 40 + [1] * 100
    found = paired_bootstrap(first, second, seed=3)
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.003, 0.197), abs=0.006)
    # The normal approximation's two-sided p of 0.1 / 0.0495 is 0.043.
    assert found.p == pytest.approx(0.043, abs=0.012)
    assert paired_bootstrap(first, second, seed=3) == found
    assert paired_bootstrap(second, first, seed=3).mean == -found.mean


def test_answers_to_one_question_are_drawn_together() -> None:
    # Every question asked twice with the same outcome says no more than once: the same draws of questions give the
    # same means. Taken for questions of their own, they would narrow the interval by √2.
    first = [0] * 60 + [1] * 40 + [1] * 100
    second = [1] * 60 + [0] * 40 + [1] * 100
    ids = [f"q{n:03d}" for n in range(200)]
    once = paired_bootstrap(first, second, seed=3, groups=ids)
    twice = paired_bootstrap(first * 2, second * 2, seed=3, groups=ids * 2)
    assert twice == pytest.approx(once)
    naive = paired_bootstrap(first * 2, second * 2, seed=3)
    assert (once.high - once.low) / (naive.high - naive.low) == pytest.approx(2**0.5, rel=0.05)


def test_the_bootstrap_of_equal_scores_says_nothing() -> None:
    assert paired_bootstrap([1, 0, 1], [1, 0, 1], seed=1) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_bootstrap([1, 0], [1, 0, 1], seed=1)
    with pytest.raises(ValueError, match="got 0 and 0"):
        paired_bootstrap([], [], seed=1)


def test_the_bootstrap_errs_as_often_as_it_says() -> None:
    # 300 experiments without a difference: the 90 % interval misses 0 in about 30 of them; Binomial(300, 0.1) has a
    # standard deviation of 5.2, and four of them are 21.
    generator = numpy.random.default_rng(0)
    missed = 0
    for seed in range(300):
        first, second = generator.integers(0, 2, (2, 80))
        found = paired_bootstrap(list(first), list(second), seed, resamples=500, confidence=0.9)
        missed += not found.low <= 0 <= found.high
    assert abs(missed - 30) < 21


def test_the_standard_error_of_a_mean() -> None:
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(standard_error([1.0]))


NONE = math.nan
SCORES = st.integers(-3, 4)


@given(st.lists(st.tuples(SCORES, SCORES), max_size=12))
def test_kappa_by_value_is_kappa_on_a_scale_of_all_integers(pairs: list[tuple[int, int]]) -> None:
    gold, predicted = [g for g, _ in pairs], [p for _, p in pairs]
    expected = quadratic_kappa(pairs, range(-3, 5))
    assert quadratic_kappa_by_value(gold or [0], predicted or [NONE]) == pytest.approx(expected, nan_ok=True)


def test_kappa_by_value_needs_no_list_of_answers() -> None:
    gold, predicted = [10**9, 10**9, 10**9 + 2, 10**9 + 2], [10**9, 10**9 + 2, 10**9 + 2, 10**9 + 2]
    assert quadratic_kappa_by_value(gold, predicted) == pytest.approx(0.5)
    # Parsed: gold 0, 0, 2 and predictions 0, 2, 2. The error is 4/3; by chance, 4 · (2/3 · 2/3 + 1/3 · 1/3) = 20/9.
    assert quadratic_kappa_by_value([0, 0, 2, 2], [0, 2, 2, NONE]) == pytest.approx(0.4)
    assert math.isnan(quadratic_kappa_by_value([0, 2], [NONE, NONE]))
    assert math.isnan(quadratic_kappa_by_value([1, 1], [1, 1]))


def test_the_bootstrap_of_kappas_is_that_of_all_resamples() -> None:
    # Four questions have 4⁴ equally likely resamples; those in which a kappa is undefined are left out.
    gold, first, second = [0, 1, 2, 3], [0, 2, 2, 0], [0, 1, 3, NONE]
    differences = []
    for drawn in itertools.product(range(4), repeat=4):
        pairs = [
            [(gold[place], int(given[place])) for place in drawn if not math.isnan(given[place])]
            for given in (first, second)
        ]
        one, other = (quadratic_kappa(pairs_of_one, range(4)) for pairs_of_one in pairs)
        differences.append(other - one)
    defined = [value for value in differences if not math.isnan(value)]
    assert len(defined) < len(differences)
    found = paired_kappa_bootstrap(gold, first, second, seed=1, confidence=0.8)
    assert found == pytest.approx(numpy.quantile(defined, [0.1, 0.9]), abs=0.02)
    assert paired_kappa_bootstrap(gold, first, second, seed=1, confidence=0.8) == found


def test_the_bootstrap_of_equal_or_undefined_kappas() -> None:
    assert paired_kappa_bootstrap([0, 1, 2], [0, 1, 1], [0, 1, 1], seed=1) == (0, 0)
    assert all(math.isnan(bound) for bound in paired_kappa_bootstrap([0, 1], [0, 1], [NONE, NONE], seed=1))


def test_a_resample_without_variation_has_no_kappa() -> None:
    # One model always says 1 and has kappa 0, the other is right and has kappa 1, but in resamples of equal questions
    # no model has one. There, what is expected by chance is 0 only but for rounding (thirds).
    assert paired_kappa_bootstrap([0, 0, 1], [1, 1, 1], [0, 0, 1], seed=1) == pytest.approx((1, 1))


def test_kappas_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = numpy.random.default_rng(0)
    gold, first, second = (list(row) for row in generator.integers(0, 5, (3, 60)))
    whole = paired_kappa_bootstrap(gold, first, second, seed=1)
    monkeypatch.setattr("estep.report.stats._RESAMPLED_COUNTS", 700)
    assert paired_kappa_bootstrap(gold, first, second, seed=1) == pytest.approx(whole)

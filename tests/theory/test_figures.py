"""The figures of docs/theory.md's example, each worked out by hand or by enumeration outside of this code.

π(z) = (.40, .30, .15, .10, .05) and s = (.2, .1, .6, .8, .9); q(z) = (.1, .1, .2, .2, .4) and
q(y* | z) = (.5, .5, .9, .95, 1).
"""

import math

import numpy as np
import pytest

from estep.theory import example
from estep.theory.bounds import iwae, lemma_1
from estep.theory.chains import after_steps
from estep.theory.example import CORRECT
from estep.theory.labels import em_acceptance, label_mix, pps_acceptance, rejection_acceptance, star_acceptance
from estep.theory.model import kl, total_variation
from estep.theory.proposals import acceptance, accepted, posterior, pps, rejection, star, verified
from estep.theory.resampling import counts_of_draws, resampled
from estep.theory.weights import joint_weights, moments, rationale_weights

PLAIN, HINTED = example.plain(), example.hinted()
POSTERIOR = PLAIN.posterior(CORRECT)
FIVE = 5.1e-6
"""Half a unit of the fifth decimal, to which the figures are printed."""


def near(value: object, digits: float = FIVE) -> object:
    return pytest.approx(value, abs=digits, rel=0)


def target(proposal: object) -> np.ndarray:
    return accepted(proposal(PLAIN, CORRECT), CORRECT)  # type: ignore[operator]


def test_the_marginal_and_the_posterior() -> None:
    # μ = .08 + .03 + .09 + .08 + .045 = .325; p = those five terms divided by .325.
    assert PLAIN.mu(CORRECT) == near(0.325)
    assert math.log(PLAIN.mu(CORRECT)) == near(-1.12393)
    assert list(POSTERIOR) == near([0.24615, 0.09231, 0.27692, 0.24615, 0.13846])


def test_what_pps_and_verified_pps_accept() -> None:
    # q(z) q(y* | z) = (.05, .05, .18, .19, .4), sum .87; q(z) s(z) = (.02, .01, .12, .16, .36), sum .67.
    assert acceptance(pps(HINTED)(PLAIN, CORRECT), CORRECT) == near(0.87)
    assert list(target(pps(HINTED))) == near([0.05747, 0.05747, 0.20690, 0.21839, 0.45977])
    assert acceptance(verified(HINTED)(PLAIN, CORRECT), CORRECT) == near(0.67)
    assert list(target(verified(HINTED))) == near([0.02985, 0.01493, 0.17910, 0.23881, 0.53731])


def test_the_bias_of_pps_is_towards_rationales_that_tell_the_answer() -> None:
    s = PLAIN.s(CORRECT)
    assert POSTERIOR @ s == near(0.54615)
    assert target(pps(HINTED)) @ s == near(0.730, 5e-4)
    assert target(verified(HINTED)) @ s == near(0.790, 5e-4)
    # "Verified" is further from the posterior than PPS.
    assert kl(POSTERIOR, target(pps(HINTED))) == near(0.3458, 5e-5)
    assert kl(POSTERIOR, target(verified(HINTED))) == near(0.6279, 5e-5)


def test_both_importance_weights_have_the_mean_mu_and_the_joint_form_the_larger_variance() -> None:
    w, joint = rationale_weights(PLAIN, HINTED, CORRECT), joint_weights(PLAIN, HINTED, CORRECT)
    assert list(w) == near([0.8, 0.3, 0.45, 0.4, 0.1125])
    assert list(joint[:, CORRECT]) == near([1.6, 0.6, 0.5, 0.42105, 0.1125])
    assert not joint[:, 1 - CORRECT].any()
    one, two = moments(w, HINTED.rationales_Z), moments(joint, HINTED.joint_ZY)
    assert (one.mean, two.mean) == near((0.325, 0.325))
    assert two.variance / one.variance == near(2.762, 5e-4)
    assert (one.ess_share, two.ess_share) == near((0.70154, 0.45975))


def test_resampling_approaches_the_posterior() -> None:
    w = rationale_weights(PLAIN, HINTED, CORRECT)
    distances = [kl(POSTERIOR, resampled(HINTED.rationales_Z, w, n)) for n in (1, 2, 4, 8, 16)]
    assert distances == near([0.20868, 0.06420, 0.01598, 0.00383, 0.00093])


def test_the_counts_of_draws_are_the_multinomial_distribution() -> None:
    # Two draws of a fair coin: both heads 1/4, one of each 1/2, both tails 1/4.
    counts, chances = counts_of_draws(np.array([0.5, 0.5]), 2)
    found = {tuple(count): chance for count, chance in zip(counts.tolist(), chances.tolist(), strict=True)}
    assert found == pytest.approx({(2, 0): 0.25, (1, 1): 0.5, (0, 2): 0.25})
    assert len(counts_of_draws(POSTERIOR, 16)[0]) == 4845


def test_lemma_1_at_pps_and_where_it_is_tight() -> None:
    at_pps = lemma_1(PLAIN.joint_ZY, pps(HINTED)(PLAIN, CORRECT), CORRECT)
    assert (at_pps.constant, at_pps.log_term, at_pps.bound) == near((2.16029, -2.45537, -0.29508))
    assert at_pps.reward == near(0.325)
    # One plain draw is q = π.
    assert lemma_1(PLAIN.joint_ZY, rejection(1)(PLAIN, CORRECT), CORRECT).bound == near(0.325)
    # At the posterior: E_p[log π(z, y*)] + 1 − E_p[log p] = 1 + log μ.
    assert lemma_1(PLAIN.joint_ZY, posterior(PLAIN, CORRECT), CORRECT).bound == near(-0.12393)


def test_the_iwae_bounds_of_log_mu() -> None:
    w = rationale_weights(PLAIN, HINTED, CORRECT)
    ks = (1, 2, 4, 8, 16)
    hinted = [iwae(HINTED.rationales_Z, w, k) for k in ks]
    plain = [iwae(PLAIN.rationales_Z, PLAIN.s(CORRECT), k) for k in ks]
    assert hinted == near([-1.35959, -1.24319, -1.18105, -1.15153, -1.13748])
    assert plain == near([-1.43876, -1.30319, -1.21562, -1.16871, -1.14580])


def test_the_information_gain_of_plain_draws_is_never_positive() -> None:
    # E_π[log s] − log μ = −KL(π ‖ p).
    gain = PLAIN.rationales_Z @ np.log(PLAIN.s(CORRECT)) - math.log(PLAIN.mu(CORRECT))
    assert gain == near(-0.31483)
    assert kl(PLAIN.rationales_Z, POSTERIOR) == near(0.31483)


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 20])
def test_a_chain_forgets_its_hinted_start_at_the_rate_of_right_plain_draws(steps: int) -> None:
    now = after_steps(PLAIN, CORRECT, target(pps(HINTED)), steps)
    assert total_variation(now, POSTERIOR) == near(0.32131 * 0.675**steps)


def test_the_label_mix_of_rejection_on_films_after_four_iterations() -> None:
    uniform = np.full(5, 0.2)
    mix = label_mix(uniform, example.LABELS_OF_FILMS, rejection_acceptance(1), 4)
    # With M = 1, each iteration multiplies by p_data: the mix is p_data⁴, normalized.
    assert list(mix[4]) == near([0.423, 0.026, 0.000, 0.012, 0.539], 5e-4)
    assert mix[4][4] == pytest.approx(0.34**4 / (0.32**4 + 0.16**4 + 0.05**4 + 0.13**4 + 0.34**4))
    assert list(label_mix(uniform, example.LABELS_OF_FILMS, em_acceptance, 4)[4]) == near(example.LABELS_OF_FILMS)


def test_the_acceptance_by_label() -> None:
    mix, h = np.array([0.5, 0.5]), np.array([0.9, 0.3])
    assert list(rejection_acceptance(3)(mix)) == pytest.approx([0.875, 0.875])  # 1 − .5³
    assert list(pps_acceptance(h)(mix)) == pytest.approx([0.9, 0.3])
    assert list(star_acceptance(h)(mix)) == pytest.approx([0.95, 0.65])  # .5 + .5 · .9, .5 + .5 · .3


def test_the_acceptance_of_rejection_and_star() -> None:
    # 1 − .675⁴ = .79241; .325 + .675 · .87 = .91225.
    assert acceptance(rejection(4)(PLAIN, CORRECT), CORRECT) == near(0.79241)
    assert acceptance(star(HINTED)(PLAIN, CORRECT), CORRECT) == near(0.91225)
    # STaR's first: (.08 + .675 · .05) / .91225.
    assert target(star(HINTED))[0] == near(0.12469)

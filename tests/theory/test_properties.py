"""What holds of every model and proposal, on random tables."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estep.theory.bounds import iwae, lemma_1
from estep.theory.chains import after_steps
from estep.theory.em import em_step, expected_update, fem_step, log_likelihood, objective, softmax_model
from estep.theory.labels import label_mix, pps_acceptance, rejection_acceptance, star_acceptance
from estep.theory.model import LatentVariableModel, kl, total_variation
from estep.theory.proposals import Proposal, acceptance, accepted, posterior, pps, rejection, star, verified
from estep.theory.resampling import resampled
from estep.theory.weights import joint_weights, moments, rationale_weights

SEEDS = st.integers(0, 2**32 - 1)
SKEWS = st.sampled_from([0.3, 1.0, 5.0])
"""Of a Dirichlet distribution: small numbers give tables with nearly all mass in one place."""


def table(rng: np.random.Generator, *shape: int, skew: float = 1.0) -> np.ndarray:
    """Positive probabilities along the last axis."""
    drawn = rng.gamma(skew, size=shape) + 1e-4
    return drawn / drawn.sum(axis=-1, keepdims=True)


def model_of(rng: np.random.Generator, rationales: int = 4, answers: int = 3, skew: float = 1.0) -> LatentVariableModel:
    return LatentVariableModel(table(rng, rationales, skew=skew), table(rng, rationales, answers, skew=skew))


def proposals_of(rng: np.random.Generator, skew: float = 1.0) -> dict[str, Proposal]:
    hinted = model_of(rng, skew=skew)
    return {
        "rejection 1": rejection(1),
        "rejection 4": rejection(4),
        "PPS": pps(hinted),
        "STaR": star(hinted),
        "verified": verified(hinted),
        "posterior": posterior,
    }


@given(SEEDS, SKEWS)
def test_proposals_are_distributions_and_their_targets_too(seed: int, skew: float) -> None:
    rng = np.random.default_rng(seed)
    model = model_of(rng, skew=skew)
    for name, proposal in proposals_of(rng, skew).items():
        q = proposal(model, 1)
        assert (q >= 0).all(), name
        assert q.sum() == pytest.approx(1), name
        assert accepted(q, 1).sum() == pytest.approx(1), name


@given(SEEDS, SKEWS, st.integers(1, 12))
def test_rejection_accepts_posterior_rationales_and_converges_to_the_posterior(
    seed: int, skew: float, budget: int
) -> None:
    model = model_of(np.random.default_rng(seed), skew=skew)
    q, missed = rejection(budget)(model, 0), (1 - model.mu(0)) ** budget
    # The accepted rationales are the posterior for every M. The output (z, y) is at the distance (1 − μ)^M from it.
    assert accepted(q, 0) == pytest.approx(model.posterior(0))
    assert acceptance(q, 0) == pytest.approx(1 - missed)
    assert total_variation(q, posterior(model, 0)) == pytest.approx(missed)


@given(SEEDS, SKEWS)
def test_star_accepts_what_its_two_stages_accept(seed: int, skew: float) -> None:
    rng = np.random.default_rng(seed)
    model, hinted = model_of(rng, skew=skew), model_of(rng, skew=skew)
    mu, h = model.mu(0), hinted.mu(0)
    q = star(hinted)(model, 0)
    assert acceptance(q, 0) == pytest.approx(mu + (1 - mu) * h)
    parts = mu * model.posterior(0) + (1 - mu) * h * hinted.posterior(0)
    assert accepted(q, 0) == pytest.approx(parts / parts.sum())


@given(SEEDS, SKEWS)
def test_verified_plain_draws_are_the_posterior(seed: int, skew: float) -> None:
    model = model_of(np.random.default_rng(seed), skew=skew)
    assert accepted(verified(model)(model, 2), 2) == pytest.approx(model.posterior(2))


@pytest.mark.parametrize("shared_answers", [False, True])
@given(seed=SEEDS, skew=SKEWS)
def test_exact_em_never_lowers_the_likelihood(seed: int, skew: float, shared_answers: bool) -> None:
    rng = np.random.default_rng(seed)
    answers = table(rng, 4, 3, skew=skew)
    models = [LatentVariableModel(table(rng, 4, skew=skew), answers) for _ in range(3)]
    data = rng.gamma(skew, size=(3, 3))
    for _ in range(4):
        before = log_likelihood(models, data)
        models = em_step(models, data, shared_answers=shared_answers)
        assert log_likelihood(models, data) >= before - 1e-9 * abs(before)


def test_fem_with_a_hinted_proposal_can_lower_the_likelihood() -> None:
    # The hint prefers rationale 0, where the answer is wrong half of the time; the policy has learned to avoid it.
    answers = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    policy = [
        LatentVariableModel(np.array([0.0, 1.0, 0.0]), answers),
        LatentVariableModel(np.array([0, 0, 1]), answers),
    ]
    data = np.array([[1.0, 0.0], [0.0, 1.0]])
    hinted = LatentVariableModel(np.array([1.0, 0.0, 0.0]), answers)
    after = fem_step(policy, data, pps(hinted), shared_answers=True)
    assert log_likelihood(policy, data) == 0
    assert log_likelihood(after, data) == pytest.approx(2 * math.log(0.5))


@given(SEEDS, SKEWS)
def test_what_an_iteration_can_cost_is_the_divergence_of_the_accepted_rationales(seed: int, skew: float) -> None:
    # The M-step maximizes the sum of log μ − KL(q̃ ‖ p) over questions, and KL(q̃ ‖ p) is at least 0 after it.
    rng = np.random.default_rng(seed)
    before = model_of(rng, skew=skew)
    others = LatentVariableModel(table(rng, 4, skew=skew), before.answers_ZY)
    data = np.array([[0.0, 1.0, 0.0], table(rng, 3)])
    for name, proposal in proposals_of(rng, skew).items():
        models = [before, others]
        after = fem_step(models, data, proposal, shared_answers=True, equal_weights=True)
        cost = sum(
            data[x, y] * kl(accepted(proposal(model, int(y)), int(y)), model.posterior(int(y)))
            for x, model in enumerate(models)
            for y in np.flatnonzero(data[x])
        )
        assert log_likelihood(after, data) >= log_likelihood(models, data) - cost - 1e-9, name


@given(SEEDS, SKEWS)
def test_rejection_is_em_if_each_question_counts_the_same(seed: int, skew: float) -> None:
    rng = np.random.default_rng(seed)
    models, data = [model_of(rng, skew=skew) for _ in range(2)], table(rng, 2, 3)
    for shared, budget in ((False, 1), (True, 1), (True, 5)):
        em = em_step(models, data, shared_answers=shared)
        rejected = fem_step(models, data, rejection(budget), shared_answers=shared, equal_weights=True)
        for one, other in zip(em, rejected, strict=True):
            assert one.joint_ZY == pytest.approx(other.joint_ZY)


@given(SEEDS, SKEWS)
def test_an_unconstrained_em_step_gives_the_data_and_keeps_rationales_of_an_answer(seed: int, skew: float) -> None:
    rng = np.random.default_rng(seed)
    model, data = model_of(rng, skew=skew), table(rng, 1, 3)
    (after,) = em_step([model], data)
    assert after.marginal_Y == pytest.approx(data[0])
    assert after.posterior(1) == pytest.approx(model.posterior(1))


@given(SEEDS, SKEWS)
def test_the_label_recurrence_is_what_the_m_step_does_to_the_labels(seed: int, skew: float) -> None:
    rng = np.random.default_rng(seed)
    model, data = model_of(rng, skew=skew), table(rng, 3)
    by_label = [model_of(rng, skew=skew) for _ in range(3)]
    h = np.array([hinted.mu(y) for y, hinted in enumerate(by_label)])
    cases: list[tuple[Proposal, Callable[[np.ndarray], np.ndarray]]] = [
        (rejection(3), rejection_acceptance(3)),
        (lambda model, y: pps(by_label[y])(model, y), pps_acceptance(h)),
        (lambda model, y: star(by_label[y])(model, y), star_acceptance(h)),
    ]
    for proposal, by_acceptance in cases:
        (after,) = fem_step([model], data[None], proposal)
        assert after.marginal_Y == pytest.approx(label_mix(model.marginal_Y, data, by_acceptance, 1)[1])


@given(SEEDS, SKEWS)
def test_lemma_1_holds_for_every_proposal(seed: int, skew: float) -> None:
    rng = np.random.default_rng(seed)
    model = model_of(rng, skew=skew)
    for name, proposal in proposals_of(rng, skew).items():
        lemma = lemma_1(model.joint_ZY, proposal(model, 0), 0)
        assert lemma.reward >= lemma.bound - 1e-12, name
        assert lemma.constant >= 0, name
    assert lemma_1(model.joint_ZY, model.joint_ZY, 0).bound == pytest.approx(model.mu(0))
    at_posterior = lemma_1(model.joint_ZY, posterior(model, 0), 0)
    assert at_posterior.bound == pytest.approx(1 + math.log(model.mu(0)))


def gradient(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences."""
    result = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-5
        result[index] = (function(at + step) - function(at - step)) / 2e-5
    return result


@settings(max_examples=25)
@given(SEEDS)
def test_fems_expected_update_is_the_gradient_of_its_objective(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta_Z, theta_ZY = rng.normal(size=3), rng.normal(size=(3, 2))
    before = softmax_model(rng.normal(size=3), rng.normal(size=(3, 2)))
    hinted = model_of(rng, 3, 2)
    # Equation 5 with the posterior of the weights before, whose objective is 𝒥, and with a proposal that is not it.
    for q in (posterior(before, 0), pps(hinted)(before, 0)):
        by_Z, by_ZY = expected_update(theta_Z, theta_ZY, q, 0)
        of_Z = gradient(partial(objective, theta_ZY=theta_ZY, proposal_ZY=q, correct=0), theta_Z)
        of_ZY = gradient(partial(objective, theta_Z, proposal_ZY=q, correct=0), theta_ZY)
        assert by_Z == pytest.approx(of_Z, abs=1e-8)
        assert by_ZY == pytest.approx(of_ZY, abs=1e-8)


@settings(max_examples=25)
@given(SEEDS)
def test_at_the_weights_that_propose_em_climbs_log_mu_and_one_plain_draw_climbs_mu(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta_Z, theta_ZY = rng.normal(size=3), rng.normal(size=(3, 2))
    model = softmax_model(theta_Z, theta_ZY)
    of_mu = gradient(lambda at: softmax_model(at, theta_ZY).mu(0), theta_Z)
    assert expected_update(theta_Z, theta_ZY, rejection(1)(model, 0), 0)[0] == pytest.approx(of_mu, abs=1e-8)
    em = expected_update(theta_Z, theta_ZY, posterior(model, 0), 0)[0]
    assert em == pytest.approx(of_mu / model.mu(0), abs=1e-7)


@given(SEEDS, SKEWS)
def test_both_forms_of_weights_have_the_mean_mu_and_the_joint_one_is_no_steadier(seed: int, skew: float) -> None:
    rng = np.random.default_rng(seed)
    model, hinted = model_of(rng, skew=skew), model_of(rng, skew=skew)
    one = moments(rationale_weights(model, hinted, 0), hinted.rationales_Z)
    two = moments(joint_weights(model, hinted, 0), hinted.joint_ZY)
    assert (one.mean, two.mean) == pytest.approx((model.mu(0), model.mu(0)))
    assert two.variance >= one.variance * (1 - 1e-9)
    assert 0 < two.ess_share <= one.ess_share * (1 + 1e-9)


@settings(max_examples=50)
@given(SEEDS, SKEWS)
def test_more_draws_bring_resampling_nearer_and_the_iwae_bound_up(seed: int, skew: float) -> None:
    rng = np.random.default_rng(seed)
    model, hinted = model_of(rng, skew=skew), model_of(rng, skew=skew)
    q, w, p = hinted.rationales_Z, rationale_weights(model, hinted, 0), model.posterior(0)
    distances = [kl(p, resampled(q, w, n)) for n in (1, 2, 3, 5, 8)]
    bounds = [iwae(q, w, k) for k in (1, 2, 3, 5, 8)]
    assert distances[0] == pytest.approx(kl(p, q))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(distances))
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(bounds))
    assert bounds[-1] <= math.log(model.mu(0)) + 1e-12
    # One draw's bound is the ELBO, which misses log μ by the divergence from q to the posterior.
    assert bounds[0] == pytest.approx(math.log(model.mu(0)) - kl(q, p))


@given(SEEDS, SKEWS, st.integers(0, 8))
def test_a_chain_converges_geometrically_from_any_start(seed: int, skew: float, steps: int) -> None:
    rng = np.random.default_rng(seed)
    model, start = model_of(rng, skew=skew), table(rng, 4, skew=skew)
    p = model.posterior(0)
    left = (1 - model.mu(0)) ** steps
    assert after_steps(model, 0, start, steps) == pytest.approx(p + left * (start - p))


@pytest.mark.parametrize(
    ("rationales", "answers", "message"),
    [
        ([0.5, 0.4], [[1, 0], [0, 1]], "rationales_Z must sum to 1; it sums to 0.9"),
        ([1.5, -0.5], [[1, 0], [0, 1]], "its smallest entry is -0.5"),
        ([1.0], [[1, 0], [0, 1]], "answers_ZY has 2 rows; rationales_Z has 1"),
        ([0.5, 0.5], [1, 0], "answers_ZY must have 2 axes"),
        ([math.nan, 1.0], [[1, 0], [0, 1]], "rationales_Z must be probabilities"),
    ],
)
def test_tables_that_are_no_distributions_are_refused(rationales: list[float], answers: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentVariableModel(rationales, answers)  # type: ignore[arg-type]


def test_what_accepts_nothing_or_draws_nothing_is_refused() -> None:
    never = LatentVariableModel(np.array([0.5, 0.5]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="no rationale leads to the correct answer"):
        em_step([never], np.array([[1.0, 0.0]]))
    with pytest.raises(ValueError, match="budget must be at least 1, not 0"):
        rejection(0)
    with pytest.raises(ValueError, match="weights must be above 0; the smallest is 0"):
        resampled(np.array([0.5, 0.5]), np.array([1.0, 0.0]), 2)
    with pytest.raises(ValueError, match="number of draws must be at least 1, not 0"):
        iwae(np.array([0.5, 0.5]), np.array([1.0, 1.0]), 0)
    assert iwae(np.array([0.5, 0.5]), np.array([1.0, 0.0]), 2) == -math.inf

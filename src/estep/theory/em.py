"""E- and M-steps of an unconstrained model over several questions, and gradients of one with softmax parameters.

Exact EM is the case of FEM whose proposal is the posterior.
"""

from collections.abc import Sequence

import numpy as np

from estep.theory.model import Array, LatentVariableModel, normalized
from estep.theory.proposals import Proposal, accepted, posterior


def log_likelihood(models_Q: Sequence[LatentVariableModel], data_QY: Array) -> float:
    """Σ p_data(x, y*) log π(y* | x), which EM raises.

    Args:
        models_Q: one model per question.
        data_QY: how often each question has each correct answer; any scale.
    """
    mu = np.stack([model.marginal_Y for model in models_Q])
    there = data_QY > 0
    with np.errstate(divide="ignore"):
        return float(data_QY[there] @ np.log(mu[there]))


def expected_pairs(
    models_Q: Sequence[LatentVariableModel],
    data_QY: Array,
    proposal: Proposal,
    equal_weights: bool = False,
) -> Array:
    """The E-step: the mass of (z, y*) among the accepted pairs, in expectation, as an array [question, z, y].

    Args:
        equal_weights: the accepted pairs of an (x, y*) share one weight, however many they are. Otherwise each accepted
            pair has the same weight, as in Algorithm 1.
    """
    pairs = np.zeros((*data_QY.shape[:1], *models_Q[0].answers_ZY.shape))
    for question, model in enumerate(models_Q):
        for correct in np.flatnonzero(data_QY[question]):
            table = proposal(model, int(correct))
            kept = accepted(table, int(correct)) if equal_weights else table[:, correct]
            pairs[question, :, correct] = data_QY[question, correct] * kept
    return pairs


def m_step(
    models_Q: Sequence[LatentVariableModel],
    pairs_QZY: Array,
    shared_answers: bool = False,
) -> list[LatentVariableModel]:
    """The M-step: the tables that maximize the pairs' expected log π(z, y | x).

    Args:
        models_Q: the models before; a rationale that no pair has keeps its row of π(y | x, z).
        pairs_QZY: from `expected_pairs`.
        shared_answers: π(y | x, z) is one table for all questions, so the answer depends on the question through the
            rationale alone. Otherwise each question has its own, and the model can fit every joint distribution.

    Raises:
        ValueError: a question has no accepted pair.
    """
    answers_QZY = np.broadcast_to(pairs_QZY.sum(axis=0), pairs_QZY.shape) if shared_answers else pairs_QZY
    after = []
    for model, pairs, answers in zip(models_Q, pairs_QZY, answers_QZY, strict=True):
        seen = answers.sum(axis=1, keepdims=True)
        rows = np.divide(answers, seen, out=model.answers_ZY.copy(), where=seen > 0)
        after.append(LatentVariableModel(normalized(pairs.sum(axis=1)), rows))
    return after


def fem_step(
    models_Q: Sequence[LatentVariableModel],
    data_QY: Array,
    proposal: Proposal,
    *,
    shared_answers: bool = False,
    equal_weights: bool = False,
) -> list[LatentVariableModel]:
    """One iteration of Algorithm 1 without its two approximations: all draws of q, and an exact M-step.

    A pair (z, y) has the weight q(z, y | x, y*) 1[y = y*]. The arguments are those of `expected_pairs` and `m_step`.
    """
    return m_step(models_Q, expected_pairs(models_Q, data_QY, proposal, equal_weights), shared_answers)


def em_step(
    models_Q: Sequence[LatentVariableModel],
    data_QY: Array,
    *,
    shared_answers: bool = False,
) -> list[LatentVariableModel]:
    """One iteration of EM: FEM with the posterior as the proposal. It never lowers `log_likelihood`."""
    return fem_step(models_Q, data_QY, posterior, shared_answers=shared_answers)


def softmax_model(theta_Z: Array, theta_ZY: Array) -> LatentVariableModel:
    """π(z | x; θ) = softmax θ_Z and π(y | x, z; θ) = softmax θ_ZY, row by row."""
    return LatentVariableModel(_softmax(theta_Z), _softmax(theta_ZY))


def objective(theta_Z: Array, theta_ZY: Array, proposal_ZY: Array, correct: int) -> float:
    """E_q[r log π(z, y | x; θ)] (equation 3), which is 𝒥(θ) where q is the posterior under the weights before."""
    model = softmax_model(theta_Z, theta_ZY)
    return float(proposal_ZY[:, correct] @ np.log(model.joint_ZY[:, correct]))


def expected_update(
    theta_Z: Array,
    theta_ZY: Array,
    proposal_ZY: Array,
    correct: int,
) -> tuple[Array, Array]:
    """E_q[r ∇ log π(z, y | x; θ)], the mean of equation 5's update over draws from q.

    Returns:
        The gradient in θ_Z and in θ_ZY.
    """
    model, kept = softmax_model(theta_Z, theta_ZY), proposal_ZY[:, correct]
    # ∇ log softmax(θ) of an outcome is its indicator minus the probabilities.
    by_rationale = kept - kept.sum() * model.rationales_Z
    by_answer = kept[:, None] * (np.eye(model.answers_ZY.shape[1])[correct] - model.answers_ZY)
    return by_rationale, by_answer


def _softmax(theta: Array) -> Array:
    powers = np.exp(theta - theta.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))

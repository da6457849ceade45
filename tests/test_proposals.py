"""Algorithms 2 and 3 of the paper against hand-written scripts, and the hint's absence from every pair."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import questions_of, task_of
from estep.config import FilterConfig
from estep.data.split import load_pool
from estep.e_step import EStep, EStepResult
from estep.engines import Sampling
from estep.engines.scripted import ScriptedEngine
from estep.filters import build_filters
from estep.progress import Silent
from estep.proposals import PPS, Adaptive, Chain, Component, Direct, Gold, Mixture, Proposal, Rejection, STaR
from estep.records import NO_HISTORY, Attempt, Draw, History, Question, Tally
from estep.tasks import Task, load_task, task_names
from estep.tasks.file import FewShot
from goldens import on_fixture

SAMPLING = Sampling(1.0, 1.0, 12)


def said(score: int, words: str = "one two three four five six") -> str:
    return f"Evaluation: {words} Score: {score}"


def run(
    proposal: Proposal, script: dict[str, list[str]], answers: str, history: History = NO_HISTORY
) -> tuple[EStepResult, ScriptedEngine]:
    task = task_of()
    engine = ScriptedEngine(script)
    questions = questions_of(task, answers)
    filters = build_filters(FilterConfig(), task.file.answer, questions)
    return EStep(task, proposal, filters, engine, SAMPLING, Silent(), history).run(questions, 7), engine


def asked(engine: ScriptedEngine) -> list[tuple[str, int, bool]]:
    return [(draw.question_id, draw.round, draw.hinted) for draw in engine.asked]


def test_rejection_stops_at_the_first_hit() -> None:
    # q0 (answer 3) is right at once; q1 (answer 4) in its second round; M = 3.
    found, engine = run(Rejection(3), {"q0": [said(3)], "q1": [said(1), said(4), said(4)]}, "34")
    assert asked(engine) == [("q0", 0, False), ("q1", 0, False), ("q1", 1, False)]
    assert [pair.completion for pair in found.pairs] == [said(3), said(4)]


def test_rejection_yields_the_last_sample_when_the_budget_is_used_up() -> None:
    found, engine = run(Rejection(3), {"q0": [said(0), said(1), said(2)]}, "4")
    assert asked(engine) == [("q0", 0, False), ("q0", 1, False), ("q0", 2, False)]
    assert [c.sample.text for c in found.candidates] == [said(2)]  # ẑ_M, ŷ_M
    assert found.pairs == []


def test_rejection_of_budget_one_draws_once() -> None:
    _, engine = run(Rejection(1), {"q0": [said(0)], "q1": [said(1)]}, "41")
    assert asked(engine) == [("q0", 0, False), ("q1", 0, False)]


def test_star_hints_only_the_failures() -> None:
    # q0 is right unhinted; q1 is wrong and q2 unparseable, so both get the rationalisation prompt.
    script = {"q0": [said(2)], "q1": [said(0), said(3)], "q2": ["no idea", said(1)]}
    found, engine = run(STaR(), script, "231")
    assert asked(engine) == [
        ("q0", 0, False),
        ("q1", 0, False),
        ("q2", 0, False),
        ("q1", 1, True),
        ("q2", 1, True),
    ]
    assert [(pair.question_id, pair.completion) for pair in found.pairs] == [
        ("q0", said(2)),
        ("q1", said(3)),
        ("q2", said(1)),
    ]


def test_star_yields_the_hinted_sample_even_when_it_is_wrong_too() -> None:
    found, engine = run(STaR(), {"q0": [said(0), said(1), said(4)]}, "4")
    assert asked(engine) == [("q0", 0, False), ("q0", 1, True)]
    assert [c.sample.text for c in found.candidates] == [said(1)]


def test_pps_draws_once_and_always_with_the_hint() -> None:
    found, engine = run(PPS(), {"q0": [said(0)], "q1": [said(1)]}, "41")
    assert asked(engine) == [("q0", 0, True), ("q1", 0, True)]
    assert [pair.question_id for pair in found.pairs] == ["q1"]
    assert "score was 4" in engine.asked[0].messages[-1]["content"]


def test_several_draws_of_a_question_are_independent_repetitions() -> None:
    # Two attempts of M = 2 on one question with answer 4: the first hits at once, the second in its second round.
    found, engine = run(Rejection(2, n=2), {"q0": [said(4), said(0), said(4, "a b c d e f g")]}, "4")
    assert [(d.index, d.round) for d in engine.asked] == [(0, 0), (1, 0), (1, 1)]
    assert len({d.seed for d in engine.asked}) == 3
    assert len(found.pairs) == 2


def test_direct_gives_the_answer_and_samples_nothing() -> None:
    found, _ = run(Direct(), {}, "31")
    assert [pair.completion for pair in found.pairs] == ["Score: 3", "Score: 1"]
    assert all(sample.finish_reason == "supplied" and sample.completion_tokens == 0 for sample in found.samples)


def test_a_mixture_keeps_a_chain_in_its_component_through_all_rounds() -> None:
    mixture = Mixture([Component(Rejection(4), 1.0), Component(PPS(), 1.0)])
    _, engine = run(mixture, {f"q{n}": [said(0)] for n in range(40)}, "4" * 40)
    rounds = Counter(draw.question_id for draw in engine.asked)
    kinds = {draw.question_id: draw.proposal for draw in engine.asked}
    assert {rounds[q] for q, kind in kinds.items() if kind == "rejection"} == {4}
    assert {rounds[q] for q, kind in kinds.items() if kind == "pps"} == {1}


def test_a_mixture_follows_its_weights() -> None:
    task = task_of()
    questions = [Question(f"q{n}", {"text": "x"}, "1") for n in range(4000)]
    mixture = Mixture([Component(PPS(), 3.0), Component(Rejection(), 1.0)])
    hinted = sum(draw.hinted for draw in mixture.propose(task, questions, 5))
    # Binomial(4000, 3/4): mean 3000, standard deviation 27; five of them are 137.
    assert abs(hinted - 3000) < 137


def test_draws_depend_on_the_seed_and_on_nothing_else() -> None:
    task = task_of()
    questions = questions_of(task, "0123")
    first = PPS().propose(task, questions, 1)
    assert first == PPS().propose(task, questions, 1)
    assert {draw.seed for draw in first}.isdisjoint(draw.seed for draw in PPS().propose(task, questions, 2))
    assert first[2:] == PPS().propose(task, questions[2:], 1)


def test_gold_gives_the_worked_solution_and_samples_nothing() -> None:
    task = task_of(gold={"field": "score", "solution": "why"})
    questions = [replace(question, solution="Plainly a four.") for question in questions_of(task, "4")]
    found = EStep(task, Gold(), {}, ScriptedEngine({}), SAMPLING, Silent()).run(questions, 7)
    assert [pair.completion for pair in found.pairs] == ["Evaluation: Plainly a four. Score: 4"]
    assert found.samples[0].finish_reason == "supplied"


def test_a_chain_begins_with_a_hint_and_goes_on_with_plain_draws() -> None:
    # q0 has an accepted pair from an earlier iteration, q1 has none yet.
    history = History(frozenset({Attempt("q0", 0)}))
    found, engine = run(Chain(), {"q0": [said(3)], "q1": [said(4)]}, "34", history)
    assert asked(engine) == [("q0", 0, False), ("q1", 0, True)]
    assert [pair.question_id for pair in found.pairs] == ["q0", "q1"]


def test_the_chains_of_a_question_begin_one_by_one() -> None:
    history = History(frozenset({Attempt("q0", 1)}))
    _, engine = run(Chain(n=2), {"q0": [said(3), said(3)]}, "3", history)
    assert [(draw.index, draw.hinted) for draw in engine.asked] == [(0, True), (1, False)]


def test_an_adaptive_budget_begins_as_star_does() -> None:
    script = {"q0": [said(2)], "q1": [said(0), said(3)]}
    _, engine = run(Adaptive(), script, "23")
    assert asked(engine) == [("q0", 0, False), ("q1", 0, False), ("q1", 1, True)]


def test_an_adaptive_budget_spends_plain_draws_where_they_are_worthwhile() -> None:
    # Of five plain draws two were correct: 0.4. Rates, with one more draw of that rate for each question:
    # q0 (2 + 0.4) / 3 = 0.8: one draw is enough for an even chance. q1 (0 + 0.4) / 4 = 0.1: seven would be needed, more
    # than 3, so none. q2 was not drawn plainly: 0.4, and 1 - 0.6² = 0.64 is above one half after two.
    history = History(plain={"q0": Tally(2, 2), "q1": Tally(3, 0)})
    assert [Adaptive(3).plain_draws(f"q{n}", history) for n in range(3)] == [1, 0, 2]
    script = {"q0": [said(0), said(4)], "q1": [said(4)], "q2": [said(0), said(0), said(4)]}
    _, engine = run(Adaptive(3), script, "444", history)
    assert asked(engine) == [
        ("q0", 0, False),
        ("q1", 0, True),
        ("q2", 0, False),
        ("q0", 1, True),
        ("q2", 1, False),
        ("q2", 2, True),
    ]


def test_an_adaptive_budget_hints_every_question_where_no_plain_draw_was_correct() -> None:
    history = History(plain={"q0": Tally(4, 0)})
    assert [Adaptive(3).plain_draws(id, history) for id in ("q0", "q1")] == [0, 0]


ALL = [
    Rejection(2),
    STaR(),
    PPS(),
    Chain(),
    Adaptive(),
    Direct(),
    Mixture([Component(STaR(), 1), Component(PPS(), 1)]),
]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.sampled_from(ALL))
def test_every_proposal_ends_and_stays_within_its_budget(scores: list[int], proposal: Proposal) -> None:
    script = {"q0": [said(score) for score in scores]}
    found, engine = run(proposal, script, "4")
    assert len(engine.asked) <= 2
    assert len(found.candidates) == 1
    assert all(draw.id == f"q0#0.{draw.round}" for draw in engine.asked)


@pytest.mark.parametrize("proposal", ALL, ids=lambda proposal: type(proposal).__name__)
@pytest.mark.parametrize("few_shot", ["first", "both", "proposal"])
@pytest.mark.parametrize("name", task_names())
def test_no_hint_reaches_a_pair(name: str, few_shot: FewShot, proposal: Proposal) -> None:
    base = on_fixture(name)
    questions = [replace(question, id=f"{n}") for n, question in enumerate(load_pool(base).train.questions)]
    by_id = {question.id: question for question in questions}
    wrong = {question.id: next(q.answer for q in questions if q.answer != question.answer) for question in questions}
    for variant in base.file.hint.variants:
        task = replace(base, hint_variant=variant, few_shot=few_shot)

        def answer(draw: Draw, task: Task = task) -> str:
            # Right whenever hinted, and for every other question unhinted, so that all paths make pairs.
            question = by_id[draw.question_id]
            right = draw.hinted or int(question.id) % 2 == 0
            rationale = "This is reasoned in quite enough words"
            return task.full_completion(rationale, question.answer if right else wrong[question.id])

        filters = build_filters(FilterConfig(), task.file.answer, questions)
        found = EStep(task, proposal, filters, ScriptedEngine(answer), SAMPLING, Silent()).run(questions, 3)
        right = {verdict.draw_id for verdict in found.verdicts if verdict.status == "correct"}
        assert {pair.draw_id for pair in found.pairs} == right != set()
        hints = [task.hint(question) for question in questions]
        for pair in found.pairs:
            assert pair.prompt == task.prompt(by_id[pair.question_id])
            text = "\n".join(message["content"] for message in pair.prompt) + pair.completion
            assert not any(hint in text for hint in hints)
            assert "Hint" not in text


def plain_and_hinted(task: Task, questions: list[Question]) -> EStepResult:
    """Every question drawn plainly, which fails, and then with the hint, which is right."""
    gold = {question.id: question.answer for question in questions}
    wrong = {question.id: next(q.answer for q in questions if q.answer != question.answer) for question in questions}

    def answer(draw: Draw) -> str:
        stated = gold[draw.question_id] if draw.hinted else wrong[draw.question_id]
        return task.full_completion("This is reasoned in quite enough words", stated)

    filters = build_filters(FilterConfig(), task.file.answer, questions)
    return EStep(task, STaR(), filters, ScriptedEngine(answer), SAMPLING, Silent()).run(questions, 3)


@pytest.mark.parametrize("name", task_names())
def test_from_the_second_iteration_on_a_plain_draw_has_the_prompt_of_the_pair(name: str) -> None:
    task = on_fixture(name).after_training()
    questions = load_pool(task).train.questions
    found = plain_and_hinted(task, questions)
    plain = {draw.question_id: draw.messages for draw in found.draws if not draw.hinted}
    assert plain.keys() == {pair.question_id for pair in found.pairs} == {question.id for question in questions}
    assert all(plain[pair.question_id] == pair.prompt for pair in found.pairs)
    # A hinted prompt differs from it in the question's own message alone, where the hint is.
    hinted = {draw.question_id: draw.messages for draw in found.draws if draw.hinted}
    assert all(hinted[pair.question_id][:-1] == pair.prompt[:-1] for pair in found.pairs)
    assert all(hinted[pair.question_id][-1] != pair.prompt[-1] for pair in found.pairs)


@pytest.mark.parametrize("name", [name for name in task_names() if load_task(name).file.examples])
def test_the_first_draws_have_the_examples_and_the_policy_never(name: str) -> None:
    task = on_fixture(name)
    assert task.examples_in == "first"
    found = plain_and_hinted(task, load_pool(task).train.questions)
    # An example is a question and a response: two messages each.
    longer = 2 * len(task.file.examples)
    lengths = {len(draw.messages) for draw in found.draws}
    assert lengths == {len(found.pairs[0].prompt) + longer}
    assert {message["role"] for pair in found.pairs for message in pair.prompt} == {"system", "user"}

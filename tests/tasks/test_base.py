"""Tasks: the prompts that they render, the verdicts that they give, and the task files that they refuse."""

import doctest
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

import estep.records
import estep.tasks.base
from conftest import JUDGE, questions_of, task_of, write_task
from estep.data.check import check_task
from estep.data.split import Pool, load_pool
from estep.errors import ConfigError, DataError, EstepError
from estep.records import Messages, Question
from estep.tasks import Task, load_task, parse_task, task_names

SENTIMENT = ("sentiment/editorials", "sentiment/movies", "sentiment/products", "sentiment/tweets")
RATING_OF = {"0": -3.0, "1": -1.0, "2": 0.0, "3": 1.0, "4": 3.0}
"""A rating inside each score's range, of the thresholds -1.5, -0.5, 0.5, 1.5."""

# Figure 1 of the paper: "Evaluate the response as if its score was {conditioning}. Do not output the hint."
# Appendix C, PPS2: "The score of the response should be {conditioning}. Do not output the hint."
# Appendix C, PPS3: "The score of the response should be {conditioning}."
PAPER_HINTS = {
    "strict": "Evaluate the {response} as if its score was {conditioning}. Do not output the hint.",
    "plain": "The score of the {response} should be {conditioning}. Do not output the hint.",
    "bare": "The score of the {response} should be {conditioning}.",
}


def noun(name: str) -> str:
    """What a built-in task calls the paper's response."""
    return "tweet" if name == "sentiment/tweets" else "sentence"


def paper_hint(name: str, variant: str, score: str) -> str:
    return PAPER_HINTS[variant].format(response=noun(name), conditioning=score)


def ask(task: Task, score: str = "3") -> Question:
    """A question of a built-in task whose answer is `score`."""
    question = task.question({"text": "Quite a day at the harbour."}, RATING_OF[score], "q")
    assert question.answer == score
    return question


def turns(messages: Messages, role: str) -> list[str]:
    return [message["content"] for message in messages if message["role"] == role]


# The catalog


def test_the_catalogue_holds_these_tasks() -> None:
    judges = {
        "helpsteer2": ("coherence", "complexity", "correctness", "helpfulness", "verbosity"),
        "sentiment": ("editorials", "movies", "products", "tweets"),
        "summarize": ("accuracy", "coherence", "coverage", "helpfulness"),
        "summeval": ("coherence", "consistency", "fluency", "relevance"),
        "gym": ("chain_sum", "leg_counting", "spell_backward"),
        "arc": ("challenge", "easy"),
        "sums": ("3", "4", "5", "6", "8"),
    }
    names = {f"{folder}/{name}" for folder, members in judges.items() for name in members}
    assert set(task_names()) == names | {"gsm8k", "math", "mmlu", "mmlu-offline", "openbookqa"}


@pytest.mark.parametrize("name", SENTIMENT)
def test_a_built_in_task_has_the_name_that_loads_it(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert task.answers == ("0", "1", "2", "3", "4")
    assert task.ordinal


@pytest.mark.parametrize("name", SENTIMENT)
def test_the_policy_prompt_has_no_examples_and_no_hint(name: str) -> None:
    task = load_task(name)
    prompt = task.prompt(ask(task))
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert prompt[1]["content"] == f"{noun(name).capitalize()}: Quite a day at the harbour."
    assert "hint" not in " ".join(message["content"] for message in prompt).lower()


@pytest.mark.parametrize("name", SENTIMENT)
@pytest.mark.parametrize("variant", PAPER_HINTS)
@pytest.mark.parametrize("score", RATING_OF)
def test_the_hint_is_the_papers_and_ends_the_last_user_turn(name: str, variant: str, score: str) -> None:
    task = load_task(name, variant)
    messages = task.hinted_prompt(ask(task, score))
    assert messages[-1]["role"] == "user"
    assert messages[-1]["content"].endswith(f"\nHint: {paper_hint(name, variant, score)}")


@pytest.mark.parametrize("name", SENTIMENT)
def test_the_default_hint_is_that_of_figure_1(name: str) -> None:
    assert load_task(name).hint(Question("q", {}, "2")) == paper_hint(name, "strict", "2")


@pytest.mark.parametrize("name", SENTIMENT)
def test_each_example_has_a_hint_with_its_own_score(name: str) -> None:
    task = load_task(name)
    messages = task.hinted_prompt(ask(task, "3"))
    *examples, _ = turns(messages, "user")
    answers = turns(messages, "assistant")
    assert len(examples) == len(answers) == len(task.file.examples) == 5  # one for each score
    for user, assistant in zip(examples, answers, strict=True):
        score = assistant[-1]
        assert assistant.endswith(f" Score: {score}")
        assert user.endswith(f"\nHint: {paper_hint(name, 'strict', score)}")


@pytest.mark.parametrize("name", SENTIMENT)
def test_the_proposal_prompt_is_the_hinted_one_without_its_hints(name: str) -> None:
    task = load_task(name)
    question = ask(task)
    unhinted = [
        {**message, "content": re.sub(r"\nHint: .*$", "", message["content"])}
        for message in task.hinted_prompt(question)
    ]
    assert list(task.proposal_prompt(question)) == unhinted


@pytest.mark.parametrize("name", SENTIMENT)
def test_few_shot_both_shows_the_examples_to_the_policy(name: str) -> None:
    task = load_task(name, few_shot="both")
    question = ask(task)
    assert task.policy_sees_examples
    assert task.prompt(question) == task.proposal_prompt(question)
    assert len(turns(task.prompt(question), "assistant")) == 5
    assert not load_task(name).policy_sees_examples


@pytest.mark.parametrize("name", SENTIMENT)
def test_the_examples_would_pass_the_tasks_own_verifier_and_filters(name: str) -> None:
    task = load_task(name)
    for example in task.file.examples:
        answer = str(example.answer)
        verdict = task.judge(Question("q", {}, answer), task.full_completion(example.rationale, answer))
        assert (verdict.status, verdict.rationale, verdict.hint_mentioned) == ("correct", example.rationale, False)


@pytest.mark.parametrize("name", SENTIMENT)
def test_a_sound_task_has_no_problems(name: str) -> None:
    task = load_task(name)
    rows = [
        (f"r.jsonl:{n}", {"id": f"r{n}", "text": f"text {n}", "rating": r}) for n, r in enumerate(RATING_OF.values(), 1)
    ]
    check = check_task(task, Pool(task.rows(rows, "train", "stop"), None))
    assert check.problems == []
    assert check.labels == {"0": 1, "1": 1, "2": 1, "3": 1, "4": 1}
    assert (check.train, check.test, check.invalid_rows, check.duplicates) == (5, None, 0, 0)
    assert "Hint:" in check.hinted[-1]["content"]
    assert "Hint:" not in check.prompt[-1]["content"]


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'sentiment/movie'; did you mean 'sentiment/movies'\?"):
        load_task("sentiment/movie")
    with pytest.raises(ConfigError, match=r"no hint variant 'strikt'; did you mean 'strict'\? known: bare, plain"):
        load_task("sentiment/movies", "strikt")


@pytest.mark.parametrize("module", [estep.tasks.base, estep.records], ids=lambda module: module.__name__)
def test_the_docstrings_examples_hold(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


# What a template sees


def test_a_template_cannot_see_the_answer() -> None:
    task = task_of(user="{{ text }} {{ score }}", examples=[])
    question = task.question({"text": "fine", "score": 3}, 3, "q")
    assert "score" not in question.fields
    with pytest.raises(DataError, match="'score' is undefined"):
        task.prompt(question)


def test_a_template_that_asks_whether_the_answer_is_there_finds_none() -> None:
    task = task_of(user="{{ text }}{% if score is defined %} leak {{ score }}{% endif %}{{ hint }}", examples=[])
    rows = task.rows([("r:1", {"id": "a", "text": "fine", "score": 3})], "train", "skip")
    assert [message["content"] for q in rows.questions for message in task.prompt(q)][-1] == "fine"


def test_a_rows_own_hint_field_does_not_reach_the_plain_prompt() -> None:
    task = task_of(examples=[])
    question = task.question({"text": "fine", "hint": "it is 3"}, 3, "q")
    assert task.prompt(question)[-1]["content"] == "Text: fine"


def test_text_that_looks_like_a_template_is_not_run() -> None:
    task = task_of(examples=[])
    question = task.question({"text": "{{ hint }} {% if"}, 3, "q")
    assert task.prompt(question)[-1]["content"] == "Text: {{ hint }} {% if"


def test_a_template_that_cannot_be_rendered_is_the_users_error() -> None:
    task = task_of(user="{{ text + 1 }} {{ hint }}", examples=[])
    with pytest.raises(DataError, match="judge"):
        task.prompt(task.question({"text": "fine"}, 3, "q"))


def test_examples_come_before_the_question_in_their_order() -> None:
    task = task_of(user="Text: {{ text }}\n{% if hint %}\nHint: {{ hint }}\n{% endif %}")
    (question,) = questions_of(task, "3")
    assert task.hinted_prompt(question) == (
        {"role": "system", "content": "You judge texts."},
        {"role": "user", "content": "Text: A fine day.\nHint: Evaluate it as if its score was 4."},
        {"role": "assistant", "content": "Evaluation: It praises the day in plain words. Score: 4"},
        {"role": "user", "content": "Text: A foul day.\nHint: Evaluate it as if its score was 0."},
        {"role": "assistant", "content": "Evaluation: It blames the day in plain words. Score: 0"},
        {"role": "user", "content": "Text: text number 0\nHint: Evaluate it as if its score was 3."},
    )


def test_a_task_without_a_system_prompt_has_no_system_message() -> None:
    task = task_of(system="", examples=[])
    (question,) = questions_of(task, "3")
    assert task.prompt(question) == ({"role": "user", "content": "Text: text number 0"},)


def test_the_supplied_response_is_the_answer() -> None:
    task = load_task("sentiment/movies")
    assert task.direct_completion(ask(task, "4")) == "Score: 4"
    assert task.judge(ask(task, "4"), "Score: 4").status == "correct"


# Judging


@pytest.mark.parametrize(
    ("text", "status", "answer"),
    [
        ("Evaluation: Warm words. Score: 3", "correct", "3"),
        ("Evaluation: Warm words. Score: 4", "wrong", "4"),
        ("Evaluation: Warm words.", "unparseable", None),
        ("Evaluation: Warm words. Score: 3 Score: 4", "unparseable", None),
        ("Evaluation: Warm words. Score: 7", "unparseable", None),
        ("", "unparseable", None),
    ],
)
def test_a_text_earns_the_reward_only_with_the_right_answer(text: str, status: str, answer: str | None) -> None:
    task = task_of()
    (question,) = questions_of(task, "3")
    verdict = task.judge(question, text)
    assert (verdict.status, verdict.answer) == (status, answer)


@pytest.mark.parametrize("gold", ["", "3.0", "03", "7", "three"])
@pytest.mark.parametrize("text", ["Score: 3", "Score: 7", "no score"])
def test_a_question_without_a_canonical_answer_never_earns_the_reward(gold: str, text: str) -> None:
    assert task_of().judge(Question("q", {"text": "t"}, gold), text).status == "gold_invalid"


@pytest.mark.parametrize(
    "text",
    [
        "Evaluation: Warm words. Score: 3",
        "  evaluation :  Warm words.\nScore: 3",
        "**Evaluation:** Warm words. **Score:** 3",
        "**Evaluation**: Warm words. Score: 3",
        "## Evaluation: Warm words.\n\nScore: 3",
        "Warm words. Score: 3",
        "Evaluation: Warm words. Score: 3. A fair score.",
    ],
)
def test_the_rationale_is_the_text_before_the_answer_without_its_label(text: str) -> None:
    task = task_of()
    assert task.judge(questions_of(task, "3")[0], text).rationale == "Warm words."


def test_only_the_opening_label_is_stripped() -> None:
    task = task_of()
    (question,) = questions_of(task, "3")
    assert task.judge(question, "Evaluation: An evaluation: warm. Score: 3").rationale == "An evaluation: warm."
    assert task.judge(question, "Evaluations: warm. Score: 3").rationale == "Evaluations: warm."


def test_an_answer_alone_has_an_empty_rationale() -> None:
    task = task_of()
    assert task.judge(questions_of(task, "3")[0], "Evaluation: Score: 3").rationale == ""


def test_the_whole_of_an_unparseable_text_is_its_rationale() -> None:
    task = task_of()
    assert task.judge(questions_of(task, "3")[0], "Evaluation: I cannot say.").rationale == "I cannot say."


@pytest.mark.parametrize("name", SENTIMENT)
@pytest.mark.parametrize(
    "rationale",
    [
        "The hint says that it is good.",
        "As the HINT tells, it is good.",
        "I evaluate it as if its score was high.",
        # Six of the hint's words in a row, with other punctuation and case.
        "Do not output... THE hint",
        "evaluate the {noun}, as if its tone was kind.",
    ],
)
def test_a_rationale_that_talks_about_the_hint_is_found(name: str, rationale: str) -> None:
    task = load_task(name)
    text = f"Evaluation: {rationale.format(noun=noun(name))} Score: 3"
    assert task.judge(ask(task), text).hint_mentioned


@pytest.mark.parametrize("name", SENTIMENT)
@pytest.mark.parametrize(
    "rationale",
    [
        "The writer praises the harbour and enjoyed a fine day.",
        "It hints at regret, and a hinted sigh is in the chintz.",
        "The {noun} is neutral, so the middle of the scale fits.",
        # Only four of the hint's words in a row: "evaluate the sentence as".
        "We evaluate the {noun} as mild praise.",
        "The score was high because the writer is pleased.",
    ],
)
def test_an_ordinary_rationale_mentions_no_hint(name: str, rationale: str) -> None:
    task = load_task(name)
    text = f"Evaluation: {rationale.format(noun=noun(name))} Score: 3"
    assert not task.judge(ask(task), text).hint_mentioned


def test_a_run_of_the_hints_words_is_found_without_any_pattern() -> None:
    hint = {"variants": {"a": "The judges agreed upon the score {{ answer }}."}, "default": "a", "mentions": []}
    task = task_of(hint=hint)
    (question,) = questions_of(task, "3")
    assert task.judge(question, "Here the judges agreed upon the score too. Score: 3").hint_mentioned
    assert not task.judge(question, "Here the judges agreed upon a rest. Score: 3").hint_mentioned
    # The answer is no word of the hint's own: five of those and the answer are no run of six.
    assert not task.judge(question, "judges agreed upon the score 3").hint_mentioned


# The gold answer


@pytest.mark.parametrize(
    ("rating", "score"),
    [
        # A threshold that is reached counts: a rating on it scores the upper of the two.
        *((-4, "0"), (-1.5000001, "0"), (-1.5, "1"), (-0.5000001, "1"), (-0.5, "2"), (0, "2"), (0.4999999, "2")),
        *((0.5, "3"), (1.4999999, "3"), (1.5, "4"), (4, "4"), ("1.5", "4"), (" -0.5 ", "2")),
    ],
)
@pytest.mark.parametrize("name", SENTIMENT)
def test_a_rating_scores_the_thresholds_that_it_reaches(name: str, rating: Any, score: str) -> None:
    assert load_task(name).question({"text": "t"}, rating).answer == score


@pytest.mark.parametrize("rating", [float("nan"), "nan", "good", "", True, False, [1], "1,5"])
def test_a_rating_that_is_no_number_is_refused(rating: Any) -> None:
    with pytest.raises(DataError, match=re.escape(f"rating = {rating!r} is not a number")):
        load_task("sentiment/movies").question({"text": "t"}, rating)


@pytest.mark.parametrize("rating", [float("inf"), float("-inf"), "inf", "-Infinity"])
def test_an_infinite_rating_is_refused(rating: Any) -> None:
    with pytest.raises(DataError, match=re.escape(f"rating = {rating!r} is not a number")):
        load_task("sentiment/movies").question({"text": "t"}, rating)


def test_scores_count_from_the_answers_minimum() -> None:
    task = task_of(
        answer={"type": "integer", "min": 5, "max": 7}, gold={"field": "score", "thresholds": [0, 10]}, examples=[]
    )
    assert [task.question({"text": "t"}, rating).answer for rating in (-1, 0, 10)] == ["5", "6", "7"]


@pytest.mark.parametrize(
    ("answer", "gold", "canonical"),
    [
        ({"type": "integer", "min": 0, "max": 4}, 3.0, "3"),
        ({"type": "integer", "min": 0, "max": 4}, "3", "3"),
        ({"type": "choice"}, " b ", "B"),
        ({"type": "number"}, "1,200.50", "1200.5"),
        ({"type": "text"}, "  New   York. ", "new york"),
    ],
)
def test_a_gold_answer_is_kept_in_canonical_form(answer: dict[str, Any], gold: Any, canonical: str) -> None:
    assert task_of(answer=answer, examples=[]).question({"text": "t"}, gold).answer == canonical


# Rows

GOOD = {"id": "a", "text": "fine", "score": 3}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "b", "text": "fine"}, "no answer: field 'score' is missing; the row has id, text"),
        ({"id": "b", "text": "fine", "score": None}, "no answer: field 'score' is empty"),
        ({"id": "b", "text": "fine", "score": "  "}, "no answer: field 'score' is empty"),
        ({"id": "b", "text": "fine", "score": 9}, "score = 9 is not allowed: an integer from 0 to 4"),
        ({"id": "b", "text": "fine", "score": 2.5}, "score = 2.5 is not allowed: an integer from 0 to 4"),
        ({"id": "b", "text": "fine", "score": True}, "score = True is not allowed: an integer from 0 to 4"),
        ({"id": "b", "score": 2}, "no value for text; the row has id, score"),
        ({"id": "b", "text": None, "score": 2}, "no value for text; the row has id, text, score"),
        (
            {"text": "fine", "score": 2},
            "no id: field 'id' is missing; the row has text, score; data.id=null numbers the rows",
        ),
        ({"id": "a", "text": "again", "score": 2}, "a second row with the id 'a'"),
    ],
)
def test_a_bad_row_stops_with_its_place_or_is_left_out_and_counted(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    path = write_task(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(line) + "\n" for line in (GOOD, row, {**GOOD, "id": "c"})))
    task = load_task(str(path))
    with pytest.raises(DataError) as stopped:
        load_pool(task)
    assert str(stopped.value).startswith(f"{rows}:2: {reason}")
    said: list[str] = []
    pool = load_pool(task, "skip", said.append)
    assert [question.id for question in pool.train.questions] == ["a", "c"]
    assert [(bad.location, bad.reason) for bad in pool.train.bad] == [(f"{rows}:2", reason)]
    assert said == [f"left out 1 invalid rows; the first: {rows}:2: {reason}"]
    assert check_task(task, pool).invalid_rows == 1


def test_rows_of_which_none_can_be_used_are_refused_even_with_skip() -> None:
    rows = [("r:1", {"id": "a", "text": "t", "score": None}), ("r:2", {"id": "b", "text": "t"})]
    with pytest.raises(DataError, match=r"no usable row among 2; the first: r:1: no answer"):
        task_of().rows(rows, "train", "skip")


def test_rows_without_an_id_field_are_numbered_by_their_place_in_the_source() -> None:
    task = task_of(data={"source": "rows.jsonl"})
    rows = [("r:1", {"text": "x"}), ("r:2", {"text": "y", "score": 1}), ("r:3", {"text": "z", "score": 2})]
    assert [question.id for question in task.rows(rows, "test", "skip").questions] == ["test-2", "test-3"]


# A user's own task


def test_a_users_task_reads_a_csv_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    path = write_task(folder, data={"source": "rows.csv", "id": "id"})
    (folder / "rows.csv").write_text('id,text,score\nx,"a, quoted",3\ny,plain,0\n')
    (tmp_path / "rows.csv").write_text("id,text,score\nwrong,file,1\n")
    monkeypatch.chdir(tmp_path)  # a relative path means the task's folder before the working folder
    task = load_task("mine/judge.yaml")
    assert task.path == path
    questions = load_pool(task).train.questions
    assert [(q.id, q.fields["text"], q.answer) for q in questions] == [("x", "a, quoted", "3"), ("y", "plain", "0")]


@pytest.mark.parametrize("on_invalid_row", ["stop", "skip"])
def test_a_gold_field_that_no_row_has_is_a_mistake_of_the_task_and_not_of_its_rows(
    tmp_path: Path, on_invalid_row: Literal["stop", "skip"]
) -> None:
    path = write_task(tmp_path, data={"source": "rows.csv", "id": "id"}, gold={"field": "rating"})
    (tmp_path / "rows.csv").write_text("id,text,score\nx,one,3\ny,two,0\n")
    with pytest.raises(DataError) as refused:
        load_pool(load_task(str(path)), on_invalid_row)
    assert str(refused.value) == (
        "task judge: gold.field: the field 'rating' is in no row; the rows have id, text, score "
        f"(the first: {tmp_path / 'rows.csv'}:2)"
    )


def test_a_gold_field_within_a_field_is_found_though_every_value_is_null() -> None:
    rows = [("r:1", {"text": "t", "scores": {"mean": None}})]
    with pytest.raises(DataError, match=r"r:1: no answer: field 'scores\.mean' is "):
        task_of(data={"id": None}, gold={"field": "scores.mean"}).rows(rows, "t", "stop")


def test_a_missing_data_file_is_named_with_the_places_that_were_tried(tmp_path: Path) -> None:
    path = write_task(tmp_path, data={"source": "none.jsonl", "id": "id"})
    with pytest.raises(DataError, match=r"no such data file: none\.jsonl") as refused:
        load_pool(load_task(str(path)))
    assert str(tmp_path / "none.jsonl") in str(refused.value)


def test_a_missing_task_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"could not read the task file .*none\.yaml: No such file"):
        load_task(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sistem": "x"}, "unknown key 'sistem'; did you mean 'system'?"),
        ({"data": {"sorce": "rows.jsonl", "source": "rows.jsonl"}}, "unknown key 'data.sorce'; did you mean 'source'?"),
        (
            {"answer": {"type": "integer", "min": 0, "max": 4, "lable": "S"}},
            "unknown key 'answer.lable' for type integer; did you mean 'label'? known: label, max, min, type",
        ),
        ({"answer": {"type": "intger", "min": 0, "max": 4}}, "answer.type: got 'intger'; known: 'integer', 'choice'"),
        ({"answer": {"type": "choice", "min": 0}}, "unknown key 'answer.min'"),
        ({"answer": {"type": "integer", "min": 4, "max": 4}}, "min (4) must be below max (4)"),
        ({"user": "{{ text "}, "template: "),
        ({"completion": "{% if %}"}, "template: "),
        ({"user": "{{ text | shout }} {{ hint }}"}, "shout"),
        ({"hint": {"variants": {"strict": "{{ answer"}, "default": "strict"}}, "template: "),
        (
            {"hint": {"variants": {"strict": "It is {{ answer }}."}, "default": "strikt"}},
            "hint: default 'strikt' is no variant; did you mean 'strict'?",
        ),
        ({"hint": {"variants": {"a": "It is {{ answer }}."}, "default": "a", "mentions": ["("]}}, "hint"),
        (
            {"gold": {"field": "score", "thresholds": [0, 1]}},
            "gold.thresholds needs 4 rising thresholds, got [0.0, 1.0]",
        ),
        ({"gold": {"field": "score", "thresholds": [1, 2, 4, 3]}}, "gold.thresholds needs 4 rising thresholds"),
        ({"gold": {"field": "score", "thresholds": [1, 2, 2, 3]}}, "gold.thresholds needs 4 rising thresholds"),
        ({"gold": {"field": "score", "thresholds": [1, 2, 3, float("nan")]}}, "gold.thresholds"),
        (
            {"gold": {"field": "score", "thresholds": [1]}, "answer": {"type": "text"}},
            "gold.thresholds needs an integer answer",
        ),
        ({"few_shot": "policy"}, "few_shot: "),
        ({"max_new_tokens": 0}, "max_new_tokens: "),
        ({"answer": {"type": "python", "function": "no function"}}, "answer.function: "),
    ],
)
def test_an_invalid_task_file_is_refused_with_its_name_and_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = write_task(tmp_path, **changes)
    with pytest.raises(DataError) as refused:
        load_task(str(path))
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_answer_without_a_type_is_refused_with_the_known_types() -> None:
    with pytest.raises(DataError, match=r"answer\.type: no type given; known: .*integer.*choice.*number.*text.*python"):
        task_of(answer={"min": 0, "max": 4})


@pytest.mark.parametrize("key", ["name", "data", "gold", "answer", "user", "hint"])
def test_a_task_file_without_a_required_key_is_refused(key: str) -> None:
    content = {name: value for name, value in JUDGE.items() if name != key}
    with pytest.raises(DataError, match=f"mine.yaml: {key}: Field required"):
        parse_task(yaml.safe_dump(content), "mine.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "not valid YAML"), ("- a", "a task file is a mapping, got list"), ("", "a mapping, got NoneType")],
)
def test_a_file_that_is_no_task_is_refused(text: str, words: str) -> None:
    with pytest.raises(DataError, match=f"mine.yaml: .*{words}"):
        parse_task(text, "mine.yaml")


def test_a_task_file_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(EstepError, match=r"mine\.yaml"):
        load_task(str(path))


def test_an_example_with_an_answer_that_is_not_allowed_is_refused() -> None:
    task = task_of(examples=[{"fields": {"text": "t"}, "rationale": "r", "answer": 9}])
    with pytest.raises(DataError, match="the example's answer 9 is none: an integer from 0 to 4"):
        task.proposal_prompt(questions_of(task, "3")[0])


# A verifier of the user's own


def test_a_users_verifier_decides(tmp_path: Path) -> None:
    (tmp_path / "our_verifier.py").write_text(
        "def last_word(text, answer):\n"
        "    words = text.split()\n"
        "    return (words[-1], words[-1].lower() == answer.lower()) if words else (None, False)\n"
    )
    changes: dict[str, Any] = {"answer": {"type": "python", "function": "our_verifier:last_word"}, "examples": []}
    task = replace(task_of(**changes), path=tmp_path / "judge.yaml")
    question = task.question({"text": "Which town?"}, "Oslo", "q")
    assert question.answer == "Oslo"
    assert task.judge(question, "It must be oslo")[:2] == ("correct", "oslo")
    assert task.judge(question, "It must be Rome")[:2] == ("wrong", "Rome")
    assert task.judge(question, "")[:2] == ("unparseable", None)
    assert not task.ordinal
    assert task.answers == ()
    assert (
        check_task(task, Pool(task.rows([("r:1", {"id": "a", "text": "t", "score": "x"})], "t", "stop"), None)).problems
        == []
    )


@pytest.mark.parametrize("function", ["no_such_module_of_ours:name", "json:loads", "os:popen"])
def test_a_verifier_that_is_not_there_is_the_users_error(tmp_path: Path, function: str) -> None:
    task = replace(task_of(answer={"type": "python", "function": function}, examples=[]), path=tmp_path / "judge.yaml")
    with pytest.raises(DataError, match=f"task judge: cannot load the function {function}: there is no {tmp_path}"):
        task.judge(task.question({"text": "t"}, "x", "q"), "a text")


def test_a_rating_of_another_scale_is_refused_and_not_scored() -> None:
    # The thresholds are made for ratings from -4 to 4; a 7 on a scale from 1 to 10 is not "very positive".
    gold = {"field": "score", "thresholds": [-1.5, -0.5, 0.5, 1.5], "range": [-4, 4]}
    task = task_of(gold=gold)
    assert [task.question({"text": "a"}, rating).answer for rating in (-4, 0, 4)] == ["0", "2", "4"]
    for rating in (-4.1, 7):
        with pytest.raises(
            DataError, match=rf"score = {rating} is outside the ratings' range of -4 to 4 \(gold\.range\)"
        ):
            task.question({"text": "a"}, rating)


@pytest.mark.parametrize("gold", [{"range": [0, 4]}, {"thresholds": [0, 1, 2, 3], "range": [4, 0]}])
def test_a_range_needs_thresholds_and_a_direction(gold: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"gold\.range is the lowest and highest rating"):
        task_of(gold={"field": "score", **gold})

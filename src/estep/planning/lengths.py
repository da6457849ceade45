"""How long prompts and responses are likely to be: from the task's rows if they are on this machine, else assumed."""

from dataclasses import dataclass
from statistics import mean

from estep.config import RunConfig
from estep.data.split import load_pool
from estep.errors import EstepError
from estep.records import Messages
from estep.sources.archives import DATASETS, cached
from estep.sources.rows import on_the_hub
from estep.tasks import Task

CHARACTERS = 4
"""Characters of English text per token, of common tokenizers; other languages and mathematics take more tokens."""
TURN = 5
"""Tokens that a chat template adds to a message."""
PROMPT = 1000
"""Tokens of a prompt whose task's rows cannot be read without a network."""
FILL = 0.5
"""Tokens of a response, as a part of `engine.max_new_tokens`. Assumed: it depends on the model."""
ROWS = 1000
"""Training or test questions of a run that uses all of them, if they cannot be counted without a network."""
_SAMPLE = 200


@dataclass(frozen=True)
class Lengths:
    """Tokens, and numbers of questions."""

    plain: float
    """Tokens of the policy's own prompt."""
    proposed: float
    """Tokens of a proposal's prompt without a hint."""
    hinted: float
    """Tokens of a proposal's prompt with the hint."""
    response: float
    train: int
    """Training questions."""
    test: int
    """Test and validation questions."""
    answers: int
    """Allowed answers; 0 if they cannot be listed."""
    source: str
    """Where the lengths of prompts come from."""


def lengths_of(config: RunConfig, task: Task, prompt: int | None = None, completion: int | None = None) -> Lengths:
    """The lengths of a run's texts.

    Args:
        config: a resolved configuration.
        prompt: tokens of a prompt, if they are given.
        completion: tokens of a response, if they are given.
    """
    response = float(completion or max(1, round(FILL * config.max_new_tokens)))
    train, test = config.train_size or ROWS, config.test_size or ROWS
    plain = proposed = hinted = float(prompt or PROMPT)
    source = "given" if prompt is not None else f"assumed: {PROMPT} tokens a prompt"
    if readable(task):
        try:
            pool = load_pool(task, "skip")
        except EstepError:  # the run itself will say so
            pool = None
        if pool is not None and pool.train.questions:
            questions = pool.train.questions
            held_out = len(pool.test.questions) if pool.test is not None else len(questions) // 5
            test = config.test_size or held_out
            train = config.train_size or len(questions) - (0 if pool.test is not None else test)
            if prompt is None:
                chosen = questions[:: max(1, len(questions) // _SAMPLE)]
                plain = mean(_tokens(task.prompt(question)) for question in chosen)
                proposed = mean(_tokens(task.proposal_prompt(question)) for question in chosen)
                hinted = mean(_tokens(task.hinted_prompt(question)) for question in chosen)
                source = f"the task's rows, at {CHARACTERS} characters per token"
    test += config.validation_size or 0
    return Lengths(plain, proposed, hinted, response, train, test, len(task.answers), source)


def readable(task: Task) -> bool:
    """Whether a task's rows can be read, or generated, without a network."""
    data = task.file.data
    for reference in (data.source, data.test_source):
        name = (reference or "").partition("/")[0]
        if name in DATASETS:
            if not cached(name).is_dir():
                return False
        elif reference is not None and on_the_hub(reference):
            return False
    return data.source is not None or data.generator is not None


def _tokens(messages: Messages) -> float:
    return sum(len(message["content"]) / CHARACTERS + TURN for message in messages)

"""Asks the policy held-out questions, always with the plain prompt, and grades its responses."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from estep.config import EvaluationConfig
from estep.engines import DrawQueue, Engine, Sampling
from estep.metrics import Evaluation, evaluate_responses
from estep.probabilities import answer_texts, with_probabilities
from estep.progress import Reporter
from estep.records import NO_LOG, Draw, Question, Response, RowLog, Sample, derive_seed
from estep.scoring import Scorer
from estep.tasks import Task


@dataclass(frozen=True)
class Evaluator:
    """Asks questions and grades the responses.

    Args:
        task: provides the plain prompt and the verifier.
        engine: samples the responses, with its current weights.
        config: temperature, samples per question, and how they vote.
        max_new_tokens: the longest response, in tokens.
        reporter: receives progress.
    """

    task: Task
    engine: Engine
    config: EvaluationConfig
    max_new_tokens: int
    reporter: Reporter

    def run(
        self, questions: Sequence[Question], seed: int, title: str = "evaluation", kept: RowLog = NO_LOG
    ) -> list[Response]:
        """The graded responses to all questions, in the order of the questions.

        Args:
            seed: the seed that the seeds of all draws derive from.
            title: the name of the progress bar.
            kept: stores each response as it finishes. Responses already in it are not sampled again.
        """
        draws = evaluation_draws(self.task, questions, self.config.samples, seed)
        by_id = {question.id: question for question in questions}
        draw_of = {draw.id: draw for draw in draws}
        finished = {row["draw_id"]: Sample(**{f.name: row[f.name] for f in fields(Sample)}) for row in kept.read()}
        responses: dict[str, Response] = {}
        sampling = Sampling(self.config.temperature, 1.0, self.max_new_tokens)
        with self.reporter.phase(title, len(draws), "texts", len(finished)) as advance:
            for sample in self.engine.generate(DrawQueue(draws, finished), sampling):
                draw = draw_of[sample.draw_id]
                responses[draw.id] = graded(self.task, by_id[draw.question_id], draw, sample)
                if draw.id not in finished:
                    kept.append(asdict(responses[draw.id]))
                    advance()
        return [responses[draw.id] for draw in draws]

    def with_probabilities(
        self, questions: Sequence[Question], responses: Sequence[Response], title: str, kept: RowLog = NO_LOG
    ) -> list[Response]:
        """Responses with the probability of each allowed answer, if `config.probabilities` asks for them; otherwise the
        same responses.

        Args:
            questions: what the responses answer.
            title: the name of the progress bar.
            kept: stores each score as it is computed. Scores already in it are not computed again.
        """
        if not self.config.probabilities:
            return list(responses)
        by_id = {question.id: question for question in questions}
        texts = [text for one in responses for text in answer_texts(self.task, by_id[one.question_id], one)]
        scorer = Scorer(self.engine, self.reporter, kept, whole=False)
        return with_probabilities(self.task, by_id, responses, scorer(texts, title))

    def measure(self, responses: Sequence[Response]) -> Evaluation:
        """The metrics of some responses."""
        return evaluate_responses(responses, self.task.answers, self.task.ordinal, self.config.vote)


def evaluation_draws(task: Task, questions: Sequence[Question], samples: int, seed: int) -> list[Draw]:
    """`samples` draws per question, with the plain prompt."""
    return [
        Draw(
            id=f"{question.id}#{index}",
            question_id=question.id,
            index=index,
            round=0,
            proposal="evaluation",
            hinted=False,
            messages=task.prompt(question),
            seed=derive_seed(seed, "evaluation", question.id, index),
        )
        for question in questions
        for index in range(samples)
    ]


def graded(task: Task, question: Question, draw: Draw, sample: Sample) -> Response:
    """A sample as a graded response."""
    judgment = task.judge(question, sample.text)
    return Response(
        draw_id=draw.id,
        question_id=draw.question_id,
        index=draw.index,
        gold=question.answer,
        text=sample.text,
        finish_reason=sample.finish_reason,
        prompt_tokens=sample.prompt_tokens,
        completion_tokens=sample.completion_tokens,
        logprob=sample.logprob,
        **judgment._asdict(),
    )

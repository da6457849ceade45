"""Sampling from a server that speaks the OpenAI API: a running vLLM, or a commercial one.

For frozen models: a baseline to evaluate, a judge to predict with, a stronger model that proposes rationales. The key
comes from the environment and is kept nowhere.
"""

import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from estep.config import Server
from estep.engines.base import DrawQueue, Sampling, known
from estep.errors import ConfigError, DataError, EngineError
from estep.records import Draw, Messages, ModelRef, Sample


@dataclass
class Usage:
    """What was asked of a server so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Budget:
    """Counts what requests cost and stops before a limit, with requests under way counted at their most.

    Args:
        limit: the most that may be spent; None for no limit.
    """

    def __init__(self, limit: float | None):
        self.limit = limit
        self.usage = Usage()
        self._reserved = 0.0
        self._under_way = 0
        self._changed = threading.Condition()

    def reserve(self, most: float) -> None:
        """Set aside what a request may cost; waits for others where only they stand in its way.

        Raises:
            EngineError: the limit does not allow it.
        """
        with self._changed:
            if self.limit is not None:
                while self.usage.cost + self._reserved + most > self.limit:
                    if self._under_way == 0:
                        raise EngineError(
                            f"spending_limit={self.limit:g} does not allow another request: {self.usage.cost:.4f} was "
                            f"spent on {self.usage.requests} requests, and one more may cost {most:.4f}"
                        )
                    self._changed.wait()
            self._reserved += most
            self._under_way += 1

    def settle(self, most: float, prompt_tokens: int = 0, completion_tokens: int = 0, cost: float = 0.0) -> None:
        """Put what a request did cost in the place of what was set aside for it."""
        with self._changed:
            self._under_way -= 1
            self._reserved = self._reserved - most if self._under_way else 0.0
            if prompt_tokens or completion_tokens:
                self.usage.requests += 1
                self.usage.prompt_tokens += prompt_tokens
                self.usage.completion_tokens += completion_tokens
                self.usage.cost += cost
            self._changed.notify_all()


class OpenAIEngine:
    """See the module.

    Args:
        config: where the server is and how it is asked.

    Raises:
        ConfigError: the environment holds no key, or the `openai` package is missing.
    """

    def __init__(self, config: Server):
        self.config = config
        self.budget = Budget(config.spending_limit)
        self._model = ""
        self._limit_key = "max_tokens"
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ConfigError("a served model needs the openai package: pip install 'estep[api]'") from error
        self._api = openai
        self._client = openai.OpenAI(
            base_url=config.base_url, api_key=self._key(), timeout=config.timeout, max_retries=config.max_retries
        )

    def _key(self) -> str:
        name = self.config.api_key_env
        if name is None:
            return "none"  # the client insists on one
        key = os.environ.get(name)
        if not key:
            raise ConfigError(
                f"the environment variable {name} holds no key for {self.config.base_url}; set it, or set "
                "api_key_env=null for a server that wants none"
            )
        return key

    @property
    def notes(self) -> dict[str, str | int | float | bool]:
        usage = self.budget.usage
        return {
            "engine": "openai",
            "base_url": self.config.base_url,
            "model": self._model,
            "requests": usage.requests,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost": round(usage.cost, 6),
        }

    @property
    def context(self) -> int | None:
        return None

    def load(self, model: ModelRef) -> None:
        self._model = model.path

    def release(self) -> None:
        pass

    def close(self) -> None:
        self._client.close()

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        raise EngineError("a server does not tell how long a prompt is")

    def score(self, messages: Messages, text: str) -> float:
        raise EngineError("a server does not score a given text")

    def generate(self, queue: DrawQueue, sampling: Sampling) -> Iterator[Sample]:
        pool = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="estep-openai")
        pending: set[Future[Sample]] = set()
        try:
            while True:
                while draws := queue.take():
                    for draw in draws:
                        sample = known(draw, queue)
                        if sample is None:
                            pending.add(pool.submit(self._ask, draw, sampling))
                        else:
                            yield sample
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                failed = [future for future in done if future.exception() is not None]
                for future in done - set(failed):
                    yield future.result()
                for future in failed:  # after what came back, so that nothing paid for is lost
                    yield from self._answered(pool, pending)
                    future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _answered(self, pool: ThreadPoolExecutor, pending: set["Future[Sample]"]) -> Iterator[Sample]:
        """The samples of the requests that are under way, when no more are to be sent."""
        pool.shutdown(wait=True, cancel_futures=True)
        for future in pending:
            if not future.cancelled() and future.exception() is None:
                yield future.result()

    def _ask(self, draw: Draw, sampling: Sampling) -> Sample:
        price = self.config.price
        # A token is at least a byte, so this is the most that a request can cost, but for the chat template.
        size = sum(len(message["content"].encode()) for message in draw.messages)
        most = (size * price.prompt + sampling.max_new_tokens * price.completion) / 1e6
        self.budget.reserve(most)
        read = written = 0
        try:
            answer = self._request(draw, sampling)
            if answer.usage is not None:
                read, written = answer.usage.prompt_tokens, answer.usage.completion_tokens
        finally:
            self.budget.settle(most, read, written, (read * price.prompt + written * price.completion) / 1e6)
        if not answer.choices:
            raise EngineError(f"{self.config.base_url} gave no choice for question {draw.question_id}")
        choice = answer.choices[0]
        tokens = choice.logprobs.content if choice.logprobs else None
        return Sample(
            draw_id=draw.id,
            text=choice.message.content or "",
            finish_reason="stop" if choice.finish_reason == "stop" else "length",
            prompt_tokens=read,
            completion_tokens=written,
            logprob=sum(token.logprob for token in tokens) if tokens else None,
        )

    def _request(self, draw: Draw, sampling: Sampling) -> Any:
        options: dict[str, Any] = {"temperature": sampling.temperature}
        if sampling.top_p < 1:
            options["top_p"] = sampling.top_p
        if self.config.seeds:
            options["seed"] = draw.seed
        if self.config.logprobs:
            options["logprobs"] = True
        where = f"{self.config.base_url}, model '{self._model}'"
        try:
            limit = {self._limit_key: sampling.max_new_tokens}
            return self._client.chat.completions.create(
                model=self._model, messages=list(draw.messages), **limit, **options
            )
        except self._api.AuthenticationError as error:
            name = self.config.api_key_env or "no environment variable (api_key_env is null)"
            raise EngineError(f"{self.config.base_url} refused the key from {name}") from error
        except self._api.BadRequestError as error:
            if "max_completion_tokens" in str(error.message) and self._limit_key == "max_tokens":
                self._limit_key = "max_completion_tokens"  # the name that OpenAI's reasoning models insist on
                return self._request(draw, sampling)
            raise DataError(f"{where} refused question {draw.question_id}: {_line(error.message)}") from error
        except self._api.APIStatusError as error:
            raise EngineError(f"{where} answered with status {error.status_code}: {_line(error.message)}") from error
        except self._api.APITimeoutError as error:
            raise EngineError(
                f"{where} did not answer within timeout={self.config.timeout:g} seconds, "
                f"asked {self.config.max_retries + 1} times"
            ) from error
        except self._api.APIConnectionError as error:
            raise EngineError(f"cannot reach {self.config.base_url}: {_line(error.__cause__ or error)}") from error


def _line(message: object) -> str:
    text = re.sub(r"^Error code: \d+ - ", "", str(message))
    return " ".join(text.split())[:300]

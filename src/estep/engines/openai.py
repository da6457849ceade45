"""Sampling from a server with an OpenAI-compatible API, such as vLLM or a commercial service.

For frozen models: a baseline to evaluate, a judge to predict with, a stronger model that proposes rationales. The API
key is read from the environment and never stored.
"""

import os
import random
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from estep.config import Server
from estep.engines.base import DrawQueue, Sampling, ScoreRequest, known
from estep.errors import ConfigError, DataError, EngineError
from estep.records import Draw, Messages, ModelRef, Sample, Score

_NO_SCORES = "a server does not score given texts: load the model here, with engine.type=vllm or transformers"


@dataclass
class Usage:
    """Requests, tokens and cost so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Budget:
    """Counts the cost of requests and stops before a limit. Pending requests count at their maximum cost.

    Args:
        limit: maximum cost; None for no limit.
    """

    def __init__(self, limit: float | None):
        self.limit = limit
        self.usage = Usage()
        self._reserved = 0.0
        self._under_way = 0
        self._changed = threading.Condition()

    def reserve(self, most: float) -> None:
        """Reserve the maximum cost of a request; wait while only pending requests exceed the limit.

        Raises:
            EngineError: the limit does not allow another request.
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

    def settle(
        self, most: float, cost: float, answered: bool, prompt_tokens: int = 0, completion_tokens: int = 0
    ) -> None:
        """Replace a request's reservation by its actual cost."""
        with self._changed:
            self._under_way -= 1
            self._reserved = self._reserved - most if self._under_way else 0.0
            self.usage.requests += answered
            self.usage.prompt_tokens += prompt_tokens
            self.usage.completion_tokens += completion_tokens
            self.usage.cost += cost
            self._changed.notify_all()


_CONTROL_TOKENS = frozenset(
    f"<|{name}|>"
    for name in (
        *("im_start", "im_end", "im_sep", "endoftext", "begin_of_text", "end_of_text", "start_header_id"),
        *("end_header_id", "eot_id", "eom_id", "python_tag", "system", "user", "assistant", "end", "start", "message"),
        *("channel", "return", "call"),
    )
) | {"<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<s>", "</s>", "[INST]", "[/INST]"}
"""Control tokens of the chat templates of GPT, Llama, Qwen, Phi, Gemma and Mistral."""


class OpenAIEngine:
    """See the module.

    Args:
        config: address of the server and request options.

    Raises:
        ConfigError: the environment holds no key or no usable one, or the `openai` package is missing.
    """

    def __init__(self, config: Server):
        self.config = config
        self.budget = Budget(config.spending_limit)
        self._model = ""
        self._limit_key = "max_tokens"
        self._stopping = threading.Event()
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ConfigError("a served model needs the openai package: pip install 'estep[api]'") from error
        self._api = openai
        self._secret = self._key()
        # Retries are ours: the client's own would spend several times within one reservation of the budget.
        self._client = openai.OpenAI(
            base_url=config.base_url, api_key=self._secret or "none", timeout=config.timeout, max_retries=0
        )  # the client insists on a key

    def _key(self) -> str | None:
        """The key, without the line end that a file may have added to it; None for a server that wants none."""
        name = self.config.api_key_env
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {name} holds no key for {self.config.base_url}; set it, or set "
                "api_key_env=null for a server that wants none"
            )
        if not re.fullmatch(r"[!-~]+", key):
            raise ConfigError(
                f"the environment variable {name} holds no usable key: it has a space, a line end or another character "
                "inside that is not printable ASCII"
            )
        return key

    def _line(self, message: object) -> str:
        """A message of the server's or the client's, on one line and without the key."""
        text = " ".join(re.sub(r"^Error code: \d+ - ", "", _whole_characters(str(message))).split())
        return (text.replace(self._secret, "[key]") if self._secret else text)[:300]

    def _tells_key(self, error: BaseException) -> bool:
        """Whether a traceback of an error, or of one that led to it, would show the key."""
        seen: list[BaseException] = []
        left: list[BaseException | None] = [error]
        while left:
            link = left.pop()
            if link is not None and link not in seen:
                seen.append(link)
                left += [link.__cause__, link.__context__]
        return self._secret is not None and any(self._secret in str(link) for link in seen)

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
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

    @property
    def control_tokens(self) -> frozenset[str]:
        """Those of many model families, because a server does not report its model's."""
        return _CONTROL_TOKENS

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        """Not supported: always raises EngineError."""
        raise EngineError("a server does not report the length of a prompt")

    def score(self, messages: Messages, text: str) -> float:
        """Not supported: always raises EngineError."""
        raise EngineError(_NO_SCORES)

    def score_many(self, requests: Sequence[ScoreRequest], finished: Mapping[str, Score]) -> Iterator[Score]:
        """Not supported: always raises EngineError."""
        raise EngineError(_NO_SCORES)

    def generate(self, queue: DrawQueue, sampling: Sampling) -> Iterator[Sample]:
        """Request a sample for every draw, `concurrency` at a time.

        Raises:
            DataError: the server rejects a question.
            EngineError: the server cannot be reached, rejects the key or keeps failing, or the spending limit is
                reached. Pending requests are completed and yielded first.
        """
        self._stopping.clear()
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
                for future in failed:  # raised last, so that nothing paid for is lost
                    yield from self._answered(pool, pending)
                    future.result()
        finally:
            self._stopping.set()  # cancels requests that wait for a retry
            pool.shutdown(wait=True, cancel_futures=True)

    def _answered(self, pool: ThreadPoolExecutor, pending: set["Future[Sample]"]) -> Iterator[Sample]:
        """Stop sending requests and yield the samples of pending ones; requests that wait for a retry are cancelled."""
        self._stopping.set()
        pool.shutdown(wait=True, cancel_futures=True)
        for future in pending:
            if not future.cancelled() and future.exception() is None:
                yield future.result()

    def _ask(self, draw: Draw, sampling: Sampling) -> Sample:
        """Send a request; retry transient failures."""
        for attempt in range(self.config.max_retries + 1):
            try:
                return self._sample(draw, sampling)
            except (self._api.APIConnectionError, self._api.APIStatusError) as error:
                last = attempt == self.config.max_retries
                if last or not self._passing(error) or self._stopping.wait(_pause(error, attempt)):
                    raise self._failure(draw, error) from (None if self._tells_key(error) else error)
            except Exception as error:
                if not self._tells_key(error):
                    raise
                reason = f"{type(error).__name__}: {self._line(error)}"
                raise EngineError(f"asking {self.config.base_url} failed with {reason}") from None
        raise AssertionError("the loop returns or raises")

    def _passing(self, error: Exception) -> bool:
        """Whether a failure is transient: a lost connection, a timeout, a busy or failing server."""
        status = getattr(error, "status_code", None)
        return status is None or status in (408, 409, 429) or status >= 500

    def _failure(self, draw: Draw, error: Any) -> EngineError | DataError:
        """The error to raise for a failure."""
        where = f"{self.config.base_url}, model '{self._model}'"
        match error:
            case self._api.AuthenticationError():
                name = self.config.api_key_env or "no environment variable (api_key_env is null)"
                return EngineError(f"{self.config.base_url} refused the key from {name}")
            case self._api.BadRequestError():
                return DataError(f"{where} refused question {draw.question_id}: {self._line(error.message)}")
            case self._api.APIStatusError():
                return EngineError(f"{where} answered with status {error.status_code}: {self._line(error.message)}")
            case self._api.APITimeoutError():
                return EngineError(
                    f"{where} did not answer within timeout={self.config.timeout:g} seconds, "
                    f"asked {self.config.max_retries + 1} times"
                )
            case _:
                return EngineError(f"cannot reach {self.config.base_url}: {self._line(error.__cause__ or error)}")

    def _sample(self, draw: Draw, sampling: Sampling) -> Sample:
        """One attempt, with its cost accounted for."""
        price = self.config.price
        # A token has at least one byte, so this bounds the cost, except for the tokens of the chat template.
        size = sum(len(message["content"].encode()) for message in draw.messages)
        most = (size * price.prompt + sampling.max_new_tokens * price.completion) / 1e6
        self.budget.reserve(most)
        read, written, cost, answered = 0, 0, 0.0, False
        try:
            answer = self._request(draw, sampling)
            answered = True
            usage = getattr(answer, "usage", None)
            if usage is None:
                cost = most  # without a usage report, assume the maximum
            else:
                read, written = usage.prompt_tokens, usage.completion_tokens
                cost = (read * price.prompt + written * price.completion) / 1e6
        except self._api.APITimeoutError:
            cost = most  # the server may bill the request anyway
            raise
        finally:
            self.budget.settle(most, cost, answered, read, written)
        if not getattr(answer, "choices", None):
            raise EngineError(
                f"{self.config.base_url} gave no chat completion for question {draw.question_id}; an API's address "
                "usually ends in /v1"
            )
        choice = answer.choices[0]
        tokens = choice.logprobs.content if choice.logprobs else None
        return Sample(
            draw_id=draw.id,
            text=_whole_characters(choice.message.content or ""),
            # Any other reason, such as a content filter, means that the text was cut off.
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
        # Servers report the model's own log-probabilities, which equal log q only without temperature and top_p.
        if self.config.logprobs and sampling.temperature in (0, 1) and sampling.top_p == 1:
            options["logprobs"] = True
        key = self._limit_key
        try:
            return self._client.chat.completions.create(
                model=self._model, messages=list(draw.messages), **{key: sampling.max_new_tokens}, **options
            )
        except self._api.BadRequestError as error:
            if key != "max_tokens" or "max_completion_tokens" not in str(error.message):
                raise
        self._limit_key = "max_completion_tokens"  # the name that OpenAI's reasoning models require
        return self._request(draw, sampling)


def _pause(error: Any, attempt: int) -> float:
    """Seconds until the next attempt: as the server asks, otherwise exponential backoff; at most a minute."""
    response = getattr(error, "response", None)
    try:
        return min(float(response.headers["retry-after"]), 60.0)  # type: ignore[union-attr]
    except (AttributeError, KeyError, ValueError):
        return min(0.5 * 2**attempt, 60.0) * random.uniform(0.75, 1.0)


def _whole_characters(text: str) -> str:
    """A text with U+FFFD for every half of a surrogate pair. JSON can hold such a half, UTF-8 and tokenizers cannot."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

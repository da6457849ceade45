"""Sampling with vLLM in this process, kept alive across all iterations.

Every draw is a separate request. A sample is yielded at the step in which it finishes, and draws that the E-step adds
meanwhile join the running batch. New weights are loaded into the running engine.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from estep.config import VLLMEngineConfig
from estep.engines.base import DrawQueue, Sampling, ScoreRequest, check_length, finished_sample, known, supplied_sample
from estep.engines.scoring import tokenized
from estep.engines.vllm_adapter import VLLM, Finished, Request
from estep.errors import writing
from estep.models.adapters import obstacle
from estep.models.loading import Chat, adapter_base, load_chat, load_model, silence_logs, tokenizer_path
from estep.records import Draw, Messages, ModelRef, Sample, Score, derive_seed


class VLLMEngine:
    """See the module."""

    def __init__(self, config: VLLMEngineConfig):
        self.config = config
        self._vllm: VLLM | None = None
        self._chat: Chat | None = None

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        return {**self._running.metadata, "structured": self.config.structured}

    @property
    def context(self) -> int | None:
        return self._running.context

    @property
    def goes_on(self) -> bool:
        """See `estep.engines.host.Properties`."""
        return self._running.per_request_seeds

    @property
    def chat(self) -> Chat:
        """The loaded model's tokenizer."""
        assert self._chat is not None, "load a model first"
        return self._chat

    @property
    def _running(self) -> VLLM:
        assert self._vllm is not None, "load a model first"
        return self._vllm

    def load(self, model: ModelRef) -> None:
        """Load a model's weights; the first call starts vLLM.

        Raises:
            EngineError: vLLM does not start or does not accept the weights.
        """
        tokenizer = tokenizer_path(model.path)
        if self._chat is None:
            self._chat = load_chat(tokenizer)
        base = adapter_base(model.path)
        started = self._vllm is None
        if self._vllm is None:
            self._vllm = VLLM(self.config, base or model.path, tokenizer)
        if base is not None:
            self._load_adapter(model.path)
        elif not started:
            self._vllm.load(model.path)

    def _load_adapter(self, path: str) -> None:
        """Load an adapter merged into its base model: tensor by tensor, or through a folder where that cannot be."""
        if obstacle(path) is None:
            self._running.load_adapter(path)
            return
        with tempfile.TemporaryDirectory(prefix="estep-merged-") as folder:
            with silence_logs(), writing(Path(folder)):
                load_model(path, "float32", "cpu").save_pretrained(folder)
            self._running.load(folder)

    def release(self) -> None:
        self._running.sleep()

    def close(self) -> None:
        if self._vllm is not None:
            self._vllm.close()
            self._vllm = None

    @property
    def control_tokens(self) -> frozenset[str]:
        return self.chat.control_tokens

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        return [len(self.chat.prompt_ids(messages)) for messages in prompts]

    def score(self, messages: Messages, text: str) -> float:
        return self._running.score(self.chat.prompt_ids(messages), self.chat.completion_ids(text))

    def score_many(self, requests: Sequence[ScoreRequest], finished: Mapping[str, Score]) -> Iterator[Score]:
        """See `Engine.score_many`. Every text is a separate request, so only unfinished ones are scored; their scores
        depend on each other up to rounding."""
        longest = self._running.context - 1  # vLLM samples one token after the text
        texts, too_long = tokenized(requests, self.chat, longest)
        yield from (finished.get(score.id, score) for score in too_long)
        yield from (finished[text.id] for text in texts if text.id in finished)
        unfinished = [text for text in texts if text.id not in finished]
        unfinished.sort(key=lambda text: text.prompt)  # so that a prefix is read soon after it was computed
        self._running.reset_prefix_cache()
        yield from self._running.score_many(unfinished)

    def generate(self, queue: DrawQueue, sampling: Sampling) -> Iterator[Sample]:
        running: dict[str, int] = {}  # draw id -> tokens of its prompt
        # Without per-request seeds, only the same batches give the same samples, so an interrupted round is sampled
        # again from its start. Resampling only unfinished draws would give long samples a second chance.
        again = not self._running.per_request_seeds and sampling.temperature > 0
        with _seeded(queue):
            self._running.reset_prefix_cache()
            try:
                while True:
                    while draws := queue.take():
                        for draw in draws:
                            sample = supplied_sample(draw) if again else known(draw, queue)
                            if sample is not None:
                                yield sample
                            else:
                                running[draw.id] = self._add(draw, sampling)
                    if not running:
                        return
                    finished = [(done, running.pop(done.id)) for done in self._running.step()]
                    yield from queue.together(
                        [queue.finished.get(done.id) or self._sample(done, n) for done, n in finished]
                    )
            finally:
                self._running.abort(list(running))

    def _add(self, draw: Draw, sampling: Sampling) -> int:
        """Submit a draw to vLLM; returns the number of prompt tokens."""
        prompt = self.chat.prompt_ids(draw.messages)
        check_length(draw, len(prompt), sampling, self.context)
        self._running.add(draw.id, prompt, self._request(draw, sampling))
        return len(prompt)

    def _request(self, draw: Draw, sampling: Sampling) -> Request:
        regex = sampling.regex if self.config.structured else None
        return Request(
            sampling.temperature, sampling.top_p, sampling.max_new_tokens, self.chat.stop_ids, draw.seed, regex
        )

    def _sample(self, finished: Finished, prompt_tokens: int) -> Sample:
        return finished_sample(finished.id, finished.tokens, self.chat, prompt_tokens, finished.logprob)


@contextlib.contextmanager
def _seeded(queue: DrawQueue) -> Iterator[None]:
    """Seed torch's generator from the draws' seeds, and restore it afterwards.

    vLLM on a CPU samples with it, so the same draws in the same order give the same samples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(*(draw.seed for draw in queue)))
        yield

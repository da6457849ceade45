"""Sampling with transformers in this process: any causal model, on CPU or GPU, reproducible from the seeds.

Optimizations for a laptop: prompts are sorted by length, so that a batch has little padding; the common prefix of all
prompts (instructions, rubric, few-shot examples) is computed once; draws of one question share their whole prompt; keys
and values are written in place; finished rows leave the batch.

Each row has its own random numbers, generated from its draw's seed, so a sample does not depend on the order of the
rows. Because of rounding it does depend on which rows share its batch: a resumed run therefore repeats an interrupted
batch as a whole.

Texts are scored in batches as well: equal prompts are computed once, and then the texts after them, a few positions at
a time, so that short texts leave a batch early and the logits of few positions are in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from estep.config import TransformersEngineConfig
from estep.engines import attention
from estep.engines.base import DrawQueue, Sampling, ScoreRequest, check_length, finished_sample, supplied_sample
from estep.engines.scoring import ScoredText, batches, tokenized
from estep.models.loading import Chat, context_length, load_chat, load_model, pick_device, tokenizer_path
from estep.models.memory import free_memory, keep_freed_memory
from estep.models.precision import resolve_dtype
from estep.models.tokens import common_prefix, sequence_logprob
from estep.records import Draw, Messages, ModelRef, Sample, Score

_COMPACT_BELOW = 0.85
"""Finished rows are removed from the batch's tensors once at most this fraction of the rows is still sampling, because
removal copies all keys and values."""

_SCORED_AT_ONCE = 16
"""Positions of each text that are scored in one forward pass."""
_LOGITS_AT_ONCE = 2**27
"""Logits that one forward pass may return; 256 MiB in bfloat16. Large vocabularies therefore have fewer positions."""


class _BufferLayer(DynamicLayer):
    """Keys and values in a preallocated buffer, written in place instead of concatenated at every token."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        batch, heads, _, d = key_states.shape
        self.key_buffer = key_states.new_empty(batch, heads, self.capacity, d)
        self.value_buffer = value_states.new_empty(batch, heads, self.capacity, value_states.shape[-1])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.key_buffer = self.key_buffer[indices]
        self.value_buffer = self.value_buffer[indices]
        self._show(self.length)

    def _show(self, length: int) -> None:
        self.length = length
        self.keys, self.values = self.key_buffer[:, :, :length], self.value_buffer[:, :, :length]


@dataclass
class _Row:
    """A draw that is being sampled."""

    draw: Draw
    prompt: list[int]
    uniforms: Tensor
    """One number in [0, 1) per token to sample."""


@dataclass(frozen=True)
class _Prefix:
    """The keys and values of a prompt prefix: per layer, two tensors [1, groups, prefix, d]."""

    ids: tuple[int, ...]
    layers: list[tuple[Tensor, Tensor]]


class TransformersEngine:
    """See the module."""

    def __init__(self, config: TransformersEngineConfig):
        self.config = config
        self.device = pick_device(config.device)
        self.dtype = resolve_dtype(config.dtype, self.device.type)
        self._model: Any = None
        self._chat: Chat | None = None
        self._context: int | None = None
        self._prefixes: list[_Prefix] = []

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        return {
            "engine": "transformers",
            "device": str(self.device),
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "per_request_seeds": True,
        }

    @property
    def context(self) -> int | None:
        return self._context

    @property
    def chat(self) -> Chat:
        """The loaded model's tokenizer."""
        assert self._chat is not None, "load a model first"
        return self._chat

    def load(self, model: ModelRef, **options: Any) -> None:
        """Replace the current weights with a model's.

        Args:
            options: passed on to `from_pretrained`, such as `gguf_file`.
        """
        self.release()
        if self.device.type == "cpu":
            keep_freed_memory()
        implementation = attention.register() if self.device.type == "cpu" else "sdpa"
        self._model = load_model(model.path, self.dtype, self.device, attn_implementation=implementation, **options)
        self._model.eval()
        if self._chat is None:
            self._chat = load_chat(tokenizer_path(model.path))
            limits = (context_length(model.path), self.config.max_model_len)
            self._context = min((limit for limit in limits if limit is not None), default=None)

    def release(self) -> None:
        self._model = None
        self._prefixes.clear()
        free_memory(self.device)

    def close(self) -> None:
        self.release()

    @property
    def control_tokens(self) -> frozenset[str]:
        return self.chat.control_tokens

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        return [len(self.chat.prompt_ids(messages)) for messages in prompts]

    @torch.inference_mode()
    def score(self, messages: Messages, text: str) -> float:
        return sequence_logprob(self._model, self.chat, messages, text)

    def score_many(self, requests: Sequence[ScoreRequest], finished: Mapping[str, Score]) -> Iterator[Score]:
        """See `Engine.score_many`. Batches depend on the requests alone, and one that is not finished is computed as a
        whole."""
        texts, too_long = tokenized(requests, self.chat, self._context)
        yield from (finished.get(score.id, score) for score in too_long)
        for prefix, batch in batches(texts, self.config.batch_size, self._shares_prefixes()):
            if all(text.id in finished for text in batch):
                yield from (finished[text.id] for text in batch)
            else:
                scores = self._score(batch, prefix)
                yield from (finished.get(text.id) or scores[text.id] for text in batch)

    @torch.inference_mode()
    def _score(self, batch: list[ScoredText], prefix: tuple[int, ...]) -> dict[str, Score]:
        """The scores of a batch, by id."""
        texts = sorted(batch, key=lambda text: -len(text.completion))  # so that those still to score come first
        longest, pad = len(texts[0].completion), self.chat.end_id
        completions = [text.completion + [pad] * (longest - len(text.completion)) for text in texts]
        ids = torch.tensor(completions, device=self.device)
        lengths = torch.tensor([len(text.prompt) for text in texts], device=self.device)
        logits, cache, mask = self._prefill([text.prompt for text in texts], prefix, longest)
        logprobs = [token_logprobs(logits[:, None], ids[:, :1])]
        width = max(1, min(_SCORED_AT_ONCE, _LOGITS_AT_ONCE // (len(texts) * logits.shape[1])))
        del logits
        for start in range(0, longest - 1, width):
            rows = sum(len(text.completion) - 1 > start for text in texts)
            cache.batch_select_indices(slice(rows))  # a view, unlike a tensor of indices
            end = min(start + width, longest - 1)
            mask = torch.cat([mask[:rows], mask.new_ones(rows, end - start)], dim=1)
            positions = lengths[:rows, None] + torch.arange(start, end, device=self.device)
            found = self._forward(ids[:rows, start:end], mask, positions, cache, keep=end - start)
            logprobs.append(token_logprobs(found, ids[:rows, start + 1 : end + 1]))
        of_text: list[list[float]] = [[] for _ in texts]
        for part in logprobs:
            for row, values in enumerate(part.tolist()):
                of_text[row] += values
        return {text.id: text.score(of_text[row][: len(text.completion)]) for row, text in enumerate(texts)}

    def generate(self, queue: DrawQueue, sampling: Sampling) -> Iterator[Sample]:
        while draws := queue.take():
            yield from self._round(draws, sampling, queue)

    def _round(self, draws: list[Draw], sampling: Sampling, queue: DrawQueue) -> Iterator[Sample]:
        """Sample draws in batches that depend on the draws alone."""
        finished = queue.finished
        supplied = (supplied_sample(draw) for draw in draws)
        yield from queue.together([sample for sample in supplied if sample is not None])
        sampled = [draw for draw in draws if draw.completion is None]
        # Hinted and plain prompts differ early, so each kind has its own prefix.
        for hinted in (False, True):
            rows = [self._row(draw, sampling) for draw in sampled if draw.hinted == hinted]
            prefix: tuple[int, ...] = ()
            if rows and self._shares_prefixes():
                prompts = [row.prompt for row in rows]
                prefix = tuple(prompts[0][: common_prefix(prompts, min(map(len, prompts)) - 1)])
            rows.sort(key=lambda row: (len(row.prompt), row.draw.id))
            for start in range(0, len(rows), self.config.batch_size):
                batch = rows[start : start + self.config.batch_size]
                if all(row.draw.id in finished for row in batch):
                    yield from queue.together([finished[row.draw.id] for row in batch])
                    continue
                for samples in self._sample(batch, prefix, sampling):
                    yield from queue.together([finished.get(sample.draw_id, sample) for sample in samples])

    def _row(self, draw: Draw, sampling: Sampling) -> _Row:
        prompt = self.chat.prompt_ids(draw.messages)
        check_length(draw, len(prompt), sampling, self._context)
        generator = torch.Generator().manual_seed(draw.seed)
        return _Row(draw, prompt, torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.float64))

    @torch.inference_mode()
    def _sample(self, batch: list[_Row], prefix: tuple[int, ...], sampling: Sampling) -> Iterator[list[Sample]]:
        """Sample a batch; yield the rows that finish at the same token together."""
        rows = list(batch)
        logits, cache, mask = self._prefill([row.prompt for row in rows], prefix, sampling.max_new_tokens)
        lengths = torch.tensor([len(row.prompt) for row in rows], device=self.device)
        uniforms = torch.stack([row.uniforms for row in rows]).to(self.device)
        tokens: list[list[int]] = [[] for _ in rows]
        logprobs = [0.0] * len(rows)
        alive = list(range(len(rows)))  # rows of the batch that the tensors below hold
        sampling_still = set(alive)
        for step in range(sampling.max_new_tokens):
            chosen, chosen_logprobs = choose(logits, uniforms[:, step], sampling)
            chosen_list, logprob_list = chosen.tolist(), chosen_logprobs.tolist()
            samples = []
            for index, row in enumerate(alive):
                if row not in sampling_still:
                    continue
                logprobs[row] += logprob_list[index]
                stopped = chosen_list[index] in self.chat.stop_ids
                tokens[row].append(chosen_list[index])
                if stopped or step == sampling.max_new_tokens - 1:
                    sampling_still.discard(row)
                    draw, prompt = rows[row].draw, rows[row].prompt
                    samples.append(finished_sample(draw.id, tokens[row], self.chat, len(prompt), logprobs[row]))
            if samples:
                yield samples
            if not sampling_still:
                return
            if len(sampling_still) <= _COMPACT_BELOW * len(alive):
                stay = torch.tensor([p for p, row in enumerate(alive) if row in sampling_still], device=self.device)
                cache.batch_select_indices(stay)
                chosen, mask, lengths, uniforms = chosen[stay], mask[stay], lengths[stay], uniforms[stay]
                alive = [row for row in alive if row in sampling_still]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            logits = self._forward(chosen[:, None], mask, lengths[:, None] + step, cache)[:, -1].float()

    def _prefill(self, prompts: Sequence[list[int]], prefix: tuple[int, ...], new: int) -> tuple[Tensor, Cache, Tensor]:
        """The logits after each prompt, the filled cache with room for `new` tokens, and the mask of real positions.

        Equal prompts are computed once. Returns [rows, vocabulary], cache, [rows, positions].
        """
        suffixes = [tuple(prompt[len(prefix) :]) for prompt in prompts]
        unique = sorted(set(suffixes), key=suffixes.index)
        longest = max(map(len, unique))
        pad = self.chat.end_id
        ids = torch.tensor([[pad] * (longest - len(s)) + list(s) for s in unique], device=self.device)
        real = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in unique], device=self.device)
        mask = torch.cat([real.new_ones(len(unique), len(prefix)), real], dim=1)
        positions = (real.cumsum(1) - 1).clamp(min=0) + len(prefix)
        cache = self._cache(prefix, len(unique), len(prefix) + longest + new)
        logits = self._forward(ids, mask, positions, cache)[:, -1].float()
        if len(unique) < len(prompts):
            copies = torch.tensor([unique.index(s) for s in suffixes], device=self.device)
            cache.batch_select_indices(copies)
            logits, mask = logits[copies], mask[copies]
        return logits, cache, mask

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache, keep: int = 1) -> Tensor:
        """The logits after the last `keep` positions: [rows, keep, vocabulary], in the model's precision."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: Tensor = output.logits
        return logits

    def _cache(self, prefix: tuple[int, ...], rows: int, capacity: int) -> Cache:
        if not self._shares_prefixes():
            return DynamicCache(config=self._model.config)
        cache = Cache(layers=[_BufferLayer(capacity) for _ in range(self._model.config.num_hidden_layers)])
        if prefix:
            for number, (keys, values) in enumerate(self._computed(prefix).layers):
                cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
        return cache

    def _computed(self, prefix: tuple[int, ...]) -> _Prefix:
        """The keys and values of a prefix under the loaded weights; the last two prefixes are cached."""
        for known in self._prefixes:
            if known.ids == prefix:
                return known
        cache = DynamicCache(config=self._model.config)
        self._model(input_ids=torch.tensor([prefix], device=self.device), past_key_values=cache, logits_to_keep=1)
        computed = _Prefix(prefix, [(layer.keys, layer.values) for layer in cache.layers])
        self._prefixes = [*self._prefixes[-1:], computed]
        return computed

    def _shares_prefixes(self) -> bool:
        """Whether every layer attends to all positions, so that a prefix's keys and values can be reused."""
        kinds = getattr(self._model.config, "layer_types", None)
        return kinds is None or set(kinds) == {"full_attention"}


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log-probability of each token, in float32, one row at a time to save memory.

    Args:
        logits: [rows, positions, vocabulary]
        tokens: [rows, positions]

    Returns:
        [rows, positions]
    """
    rows = zip(logits, tokens, strict=True)
    return torch.stack([row.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0] for row, chosen in rows])


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token per row, and the log-probability with which it was drawn.

    Inverts the cumulative distribution at each row's uniform number, so that a row's token depends on its own logits
    and number alone. At temperature 0 it returns the most likely token and its log-probability under the model.

    Args:
        logits: [rows, vocabulary]
        uniforms: [rows], in [0, 1)
        sampling: temperature and top_p.
    """
    if sampling.temperature == 0:
        logprobs = logits.log_softmax(-1)
        best = logprobs.argmax(-1)
        return best, logprobs.gather(1, best[:, None])[:, 0]
    logprobs = (logits / sampling.temperature).log_softmax(-1)
    if sampling.top_p < 1:
        ranked, order = logprobs.sort(dim=-1, descending=True, stable=True)
        before = ranked.exp().cumsum(-1) - ranked.exp()  # the mass of all more likely tokens
        outside = torch.zeros_like(logprobs, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        logprobs = logprobs.masked_fill(outside, -torch.inf).log_softmax(-1)
    cumulative = logprobs.exp().cumsum(-1)
    total = cumulative[:, -1:]
    # A number just below 1 rounds to 1 in float32; a target below the total never falls on a token without mass.
    targets = torch.minimum(uniforms.to(total.dtype)[:, None] * total, total.nextafter(torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, targets, right=True).clamp(max=logits.shape[1] - 1)
    return token[:, 0], logprobs.gather(1, token)[:, 0]

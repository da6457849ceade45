"""Scoring given texts with vLLM; part of `vllm_adapter`.

vLLM reports the log-probabilities of a prompt's tokens, so a prompt and its text are submitted as one prompt, and vLLM
samples one token more, which is ignored. By default such a request does not read the prefix cache, because a position
that is read has no logits. Here only the text's logits matter, so all of the prompt but its last token may be read.
vLLM 0.32's `prompt_logprob_start` does not help: it has no influence on the cache, and does not work on a CPU. The
limit is therefore set where vLLM's scheduler looks the positions up.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from estep.engines.scoring import ScoredText
from estep.errors import EngineError
from estep.records import Score

_LIMIT = "estep_cached_at_most"


def limit_cache_reads(engine: Any) -> bool:
    """Let a request say how many positions it may read from the prefix cache.

    Returns:
        Whether this version of vLLM can be taught that.
    """
    try:
        manager = engine.engine_core.engine_core.scheduler.kv_cache_manager
        look_up, coordinator = manager.get_computed_blocks, manager.coordinator
        find = coordinator.find_longest_cache_hit
    except AttributeError:
        return False

    def limited_look_up(request: Any) -> Any:
        limit = (request.sampling_params.extra_args or {}).get(_LIMIT)
        if limit is None:
            return look_up(request)
        coordinator.find_longest_cache_hit = lambda hashes, longest: find(hashes, min(longest, limit))
        try:
            return look_up(request)
        finally:
            coordinator.find_longest_cache_hit = find

    manager.get_computed_blocks = limited_look_up
    return True


def score_many(engine: Any, texts: Sequence[ScoredText], reads_cache: bool) -> Iterator[Score]:
    """Score texts, all at the same time; yield each score in the step in which it is computed.

    Args:
        engine: vLLM's engine, without other requests.
        reads_cache: whether prompts may be read from the prefix cache; see `limit_cache_reads`.

    Raises:
        EngineError: vLLM gave up on a text.
    """
    waiting = {text.id: text for text in texts}
    for text in texts:
        engine.add_request(
            text.id, {"prompt_token_ids": text.prompt + text.completion}, scoring_parameters(text, reads_cache)
        )
    try:
        while waiting:
            outputs = [output for output in engine.step() if output.finished]
            done = [(waiting.pop(output.request_id), output) for output in outputs]
            for text, output in done:
                yield scored(text, output)
    finally:
        engine.abort_request(list(waiting))


def scoring_parameters(text: ScoredText, reads_cache: bool) -> Any:
    """The sampling parameters of a request that scores a text; see `score_many`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    options: dict[str, Any] = {}
    if reads_cache:
        options = {"skip_reading_prefix_cache": False, "extra_args": {_LIMIT: len(text.prompt) - 1}}
    return SamplingParams(
        temperature=0,
        max_tokens=1,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **options,
    )


def scored(text: ScoredText, output: Any) -> Score:
    """The score of a text from the finished output of its request.

    Raises:
        EngineError: vLLM gave up on the text.
    """
    # Before the log-probabilities of the text are those of the prompt, or nothing where it was cached.
    reported = output.prompt_logprobs or []
    if len(reported) < len(text.completion) or (output.num_cached_tokens or 0) >= len(text.prompt):
        reason = output.outputs[0].finish_reason or "no reason"
        raise EngineError(f"vLLM did not score the text {text.id}: {reason}")
    rows = reported[-len(text.completion) :]
    return text.score([float(row[token].logprob) for row, token in zip(rows, text.completion, strict=True)])

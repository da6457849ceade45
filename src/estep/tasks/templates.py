"""The templates of a task file: Jinja in a sandbox, in which an undefined name is an error."""

import functools
import re

import jinja2
import jinja2.sandbox


def conversation(text: str) -> str:
    """A prompt whose turns HelpSteer2 parts by `<extra_id_1>User` and `<extra_id_1>Assistant`, as a conversation.

    >>> print(conversation("Hi<extra_id_1>Assistant\\nHello.\\n<extra_id_1>User\\nAnd now?"))
    User: Hi
    <BLANKLINE>
    Assistant: Hello.
    <BLANKLINE>
    User: And now?
    >>> conversation("One turn.")
    'One turn.'
    """
    first, *rest = re.split(r"\s*<extra_id_\d+>\s*(User|Assistant|System)\s*", text)
    if not rest:
        return text
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    return "\n\n".join(f"{speaker}: {said.strip()}" for speaker, said in turns if said.strip())


JINJA = jinja2.sandbox.SandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
)
JINJA.filters["conversation"] = conversation


@functools.lru_cache(maxsize=256)
def template(source: str) -> jinja2.Template:
    """A compiled template."""
    return JINJA.from_string(source)

"""The keys of a configuration with their types, defaults and meanings, read from the sections' own definitions."""

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from estep.config.run import RunConfig
from estep.config.validation import models_in, type_of
from estep.errors import ConfigError


@dataclass(frozen=True)
class Key:
    """A key of a configuration. Values are in backticks, as in Markdown."""

    path: str
    """The dotted key. The items of a list are written as `components[]`."""
    kind: str
    """Its type in the words of YAML."""
    default: str
    """Its default, or `required`."""
    meaning: str
    """On one line."""
    variants: tuple[str, ...] = ()
    """The types of its section that have the key, if not all of them do."""

    @property
    def summary(self) -> str:
        """The first sentence of its meaning."""
        first, end, _ = self.meaning.partition(". ")
        return first + end.strip()


OF_FILES = (
    Key(
        "extends",
        "text or null",
        "`null`",
        "The configuration that a file changes: a path relative to the file, or the name of a shipped configuration.",
    ),
    Key(
        "arms",
        "section or null",
        "`null`",
        "For a study: names of arms, each with the settings that it changes; `NAME: null` removes an arm of the study "
        "that a file extends. In a study, the value of any other key may be a list of values, which is an axis.",
    ),
)
"""The keys that a file may have besides those of a run."""


def keys_of(model: type[BaseModel], prefix: str = "") -> list[Key]:
    """The keys of one section, without those of the sections in it and without `type`."""
    return [
        Key(prefix + name, kind(field.annotation), default(field), " ".join((field.description or "").split()))
        for name, field in model.model_fields.items()
        if name != "type"
    ]


def all_keys() -> list[Key]:
    """All keys of a configuration file, first those outside sections. A key that differs between the variants of its
    section is listed several times."""
    found: dict[Key, list[str]] = {}
    counts: dict[str, int] = {}
    for key in _walk(RunConfig, "", counts):
        found.setdefault(replace(key, variants=()), []).extend(key.variants)
    listed = []
    for key, variants in found.items():
        distinct = tuple(dict.fromkeys(variants))
        everywhere = len(distinct) == counts.get(key.path.partition(".")[0])
        listed.append(key if everywhere else replace(key, variants=distinct))
    sections = {key.path.partition(".")[0] for key in listed if "." in key.path}
    listed.sort(key=lambda key: key.path.partition(".")[0] in sections)
    return [*listed, *OF_FILES]


def find_keys(words: str) -> list[Key]:
    """The keys whose path, or a part of it, begins with these words, such as `m_step`, `m_step.l` or `temperature`.

    Raises:
        ConfigError: there is none.
    """
    keys = all_keys()
    found = [key for key in keys if f".{words}" in f".{key.path}"]
    if not found:
        names = {name for key in keys for name in (key.path, key.path.rpartition(".")[2])}
        close = difflib.get_close_matches(words, sorted(names), n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else "`estep keys` lists them all"
        raise ConfigError(f"no key begins with '{words}'; {hint}")
    return found


def _walk(model: type[BaseModel], prefix: str, counts: dict[str, int], variants: tuple[str, ...] = ()) -> Iterator[Key]:
    """The keys of a section and of the sections in it. `counts` receives the number of a section's variants."""
    for key in keys_of(model, prefix):
        yield replace(key, variants=variants)
        name = key.path.removeprefix(prefix)
        field = model.model_fields[name]
        inner = models_in(field)
        if "[]" in prefix:
            continue  # the sections in a list's items are those of the list's own section
        below = f"{key.path}[]." if get_origin(field.annotation) is tuple else f"{key.path}."
        types_ = [type_of(one) for one in inner]
        if len(inner) > 1:
            counts[key.path] = len(inner)
            words = kind(Literal[tuple(types_)])
            yield Key(f"{below}type", words, f"`{field.default.type}`", "The section's variant; each has its own keys.")
        for one, its_type in zip(inner, types_, strict=True):
            yield from _walk(one, below, counts, variants if its_type is None else (its_type,))


def kind(annotation: Any) -> str:
    """A type in the words of YAML."""
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind(part) for part in get_args(annotation)))
    if get_origin(annotation) is tuple:
        parts = [part for part in get_args(annotation) if part is not Ellipsis]
        return f"list of {kind(parts[0])}" if len(parts) == 1 else f"[{', '.join(map(kind, parts))}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[annotation]


def default(field: FieldInfo) -> str:
    """A field's default, or `required`."""
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return f"`type: {value.type}`" if hasattr(value, "type") else "see below"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return "`null`" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"

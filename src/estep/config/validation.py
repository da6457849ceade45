"""Turns pydantic's errors into one line that names the key, what was received and what is allowed."""

import types
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from estep.errors import nearest

RENAMED = {
    "mstep": "m_step",
    "on_bad_row": "on_invalid_row",
    "too_long": "on_overlength",
    "filters.finished": "filters.drop_truncated",
    "filters.distinct": "filters.dedup",
    "filters.no_hint_mentioned": "filters.drop_hint_mentions",
    "data.leave_out_without": "data.required_fields",
    "gold.cut": "gold.thresholds",
    "licence": "license",
}
"""Former keys of configurations and task files, with their current names."""
RENAMED_VALUES = {
    ("filters.balance", "weigh"): "reweight",
    ("filters.balance", "drop"): "subsample",
    ("filters.rank_by", "likeliest"): "logprob",
}
"""Former values of keys, with their current names."""


def unknown_key(path: str, known: Iterable[str]) -> str:
    """A message about an unknown key: its current name if it was renamed, else the nearest known key.

    Args:
        path: the dotted key.
        known: the keys that are allowed there.
    """
    known = tuple(known)
    for former, present in RENAMED.items():
        if path == former or path.startswith(f"{former}."):
            return f"'{former}' is now '{present}'"
        # A section that is built alone does not know its own name.
        (_, _, last), (_, _, name) = former.rpartition("."), present.rpartition(".")
        if path == last and name in known:
            return f"'{last}' is now '{name}'"
    return f"unknown key '{path}'; {nearest(path.rpartition('.')[2], known)}"


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation error on one line, with the number of other problems.

    Args:
        error: the error that `model` raised.
        model: the pydantic model that was validated; its fields are the known keys.
    """
    problems = error.errors(include_url=False)
    # A misspelled key is often why a required one is missing, so it is reported first.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path = _path(first["loc"], model)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1], model)
        tags = [tag for m in _models_at(first["loc"][:-1], model) if (tag := type_of(m))]
        message = unknown_key(path, known)
        if len(tags) == 1:
            message = message.replace(f"'{path}';", f"'{path}' for type {tags[0]};")
        return message + more
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = first.get("ctx", {})
        allowed = ", ".join(f"'{type_of(m)}'" for m in _models_at(first["loc"], model) if type_of(m))
        received = f"got '{context['tag']}'" if "tag" in context else "no type given"
        return f"{path}.type: {received}; known: {allowed}{more}"
    for (key, former), present in RENAMED_VALUES.items():
        # Without its section's name, the key is one of a section that is built alone.
        if first["input"] == former and path in (key, key.rpartition(".")[2]):
            return f"{path}: '{former}' is now '{present}'{more}"
    message = first["msg"].removeprefix("Value error, ")
    received = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return f"{f'{path}: ' if path else ''}{message}{received}{more}"


def _path(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """A dotted path without the union tags that pydantic puts between keys."""
    keys: list[str] = []
    models: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, str) and not any(part in m.model_fields for m in models) and _is_tag(part, models):
            models = [m for m in models if type_of(m) == part]
            continue
        if not models:  # within a plain value, the rest are names of union members
            break
        keys.append(str(part))
        models = _children(models, part)
    return ".".join(keys)


def _known_keys(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    return [key for m in _models_at(location, model) for key in m.model_fields]


def _models_at(location: tuple[int | str, ...], model: type[BaseModel]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [model]
    for part in location:
        tagged = [m for m in models if type_of(m) == part]
        models = tagged or _children(models, part)
    return models


def _children(models: list[type[BaseModel]], part: int | str) -> list[type[BaseModel]]:
    if isinstance(part, int):
        return models
    return [child for m in models if part in m.model_fields for child in models_in(m.model_fields[part].annotation)]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that a field or a type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, FieldInfo):
        return models_in(annotation.annotation)
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list, tuple):
        return [model for argument in get_args(annotation) for model in models_in(argument)]
    return []


def type_of(model: type[BaseModel]) -> str | None:
    """The `type` that selects a variant of a section; None for a section without variants."""
    field = model.model_fields.get("type")
    values = get_args(field.annotation) if field else ()
    return values[0] if values else None


def _is_tag(part: str, models: list[type[BaseModel]]) -> bool:
    return any(type_of(m) == part for m in models)

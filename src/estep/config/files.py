"""Reads configurations: YAML files that may extend others, dotted overrides, and errors that name the nearest key."""

import copy
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from estep.config import DEFAULT_TYPES, RunConfig
from estep.config.keys import all_keys
from estep.config.strict_yaml import read_yaml
from estep.config.validation import RENAMED, models_in, one_line, type_of, unknown_key
from estep.errors import ConfigError, nearest
from estep.shipped import CONFIGS, config_names

LISTS = ("learning_rate", "target_modules", "components", "report_to")
"""Settings whose value is a list in a single run."""


def load_config(source: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """A run's configuration from a YAML file and dotted overrides.

    Args:
        source: a path, or the name of a shipped configuration such as `demo`.
        overrides: such as `m_step.batch_size=8`; values are read as YAML.

    Raises:
        ConfigError: no such file, an unknown key (with the nearest known key), or a value that is not allowed.
    """
    location, content = read_config(source)
    lists = [key for key, value in content.items() if isinstance(value, list) and key not in LISTS]
    axes = ["arms"] if "arms" in content else lists
    if axes:
        raise ConfigError(f"{location}: {axes[0]}: arms and lists of values need a study: estep study {source}")
    changed = copy.deepcopy(content)
    override_all(changed, overrides or ())
    try:
        return validate(changed, "options")
    except ConfigError:
        validate(content, location)  # raises if the file itself is at fault
        raise


def read_config(source: str | Path) -> tuple[str, dict[str, Any]]:
    """The path of a YAML file, for error messages, and its content as plain data.

    Args:
        source: a path, or the name of a shipped configuration such as `demo`. A file that it `extends`, by a relative
            path or such a name, provides the settings that it does not set; mappings such as `arms` are merged by key.

    Raises:
        ConfigError: no such file, not a YAML mapping, or a file that extends itself.
    """
    location, content = _read(source, Path(), ())
    if {"gold", "answer"} <= set(content):
        raise ConfigError(f"{source} is a task file, not a configuration: estep train demo task={source}")
    return location, content


def _read(source: str | Path, beside: Path, through: tuple[Path, ...]) -> tuple[str, dict[str, Any]]:
    path = beside / Path(source).expanduser()
    if not path.is_file() and (CONFIGS / f"{source}.yaml").is_file():
        path = CONFIGS / f"{source}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"could not read the config {source}: {error.strerror}; expected a path or the name of a shipped one; "
            + nearest(str(source), config_names())
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    content = read_yaml(text, str(path), ConfigError)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a mapping, got {type(content).__name__}")
    if "extends" not in content:
        return str(path), content
    below = content.pop("extends")
    if not isinstance(below, str):
        raise ConfigError(f"{path}: extends: the path or the name of a configuration, got {below!r}")
    if path.resolve() in through:
        raise ConfigError(f"{path}: extends itself, through {below}")
    lower = _read(below, path.parent, (*through, path.resolve()))[1]
    for own in ("name", "run_dir"):  # a file does not inherit the name or folder of another run
        lower.pop(own, None)
    return str(path), merge(lower, content)


def merge(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Configuration data with changes applied. Changing the `type` of a section replaces the whole section."""
    merged = copy.deepcopy(content)
    for key, value in changes.items():
        former = merged.get(key)
        if isinstance(former, dict) and isinstance(value, dict) and _same_type(key, former, value):
            merged[key] = merge(former, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _same_type(section: str, former: dict[str, Any], value: dict[str, Any]) -> bool:
    return value.get("type") in (None, former.get("type", DEFAULT_TYPES.get(section)))


def validate(content: dict[str, Any], source: str = "config") -> RunConfig:
    """A configuration from plain data; error messages begin with `source`."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {one_line(error, RunConfig)}") from error


def override_all(content: dict[str, Any], pairs: Iterable[str]) -> None:
    """Apply `override` to each of some pairs, in an order that does not matter to the user (see `types_first`)."""
    for pair in types_first(pairs):
        override(content, pair)


def types_first(pairs: Iterable[str]) -> list[str]:
    """Overrides with those of a section's `type` before the others, which may set keys of the new type."""
    return sorted(pairs, key=lambda pair: not pair.partition("=")[0].endswith(".type"))


def override(content: dict[str, Any], pair: str, also: Collection[str] = ()) -> None:
    """Set a dotted key of plain configuration data, in place, from `key=value`. A new `type` of a section removes the
    keys that this type does not have: `proposal.type=direct` also takes back the file's `proposal.budget`.

    Args:
        also: names of sections to allow beside those of `RunConfig`.
    """
    key, equals, value = pair.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override is key=value, got '{pair}'")
    *sections, last = key.split(".")
    known = [*RunConfig.model_fields, *also]
    if (
        not sections
        and key not in known
        and (elsewhere := next((one.path for one in all_keys() if one.path.endswith(f".{key}")), None))
    ):
        raise ConfigError(f"unknown key '{key}'; did you mean '{elsewhere}'?")
    if sections and sections[0] not in known:
        renamed = sections[0] in RENAMED
        raise ConfigError(unknown_key(key, known) if renamed else f"unknown key '{key}'; {nearest(sections[0], known)}")
    section = content
    for name in sections:
        inner = section.get(name)
        if inner is None:
            inner = section[name] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"override '{pair}': '{name}' is a value, not a section with keys")
        section = inner
    section[last] = read_yaml(value, f"override '{pair}'", ConfigError)
    if last == "type" and len(sections) == 1:
        for model in models_in(RunConfig.model_fields[sections[0]]):
            if type_of(model) == section[last]:
                for name in section.keys() - model.model_fields.keys():
                    del section[name]


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The differences of two resolved configurations, as lines `key: old -> new`."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += difference(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines

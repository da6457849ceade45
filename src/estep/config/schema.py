"""JSON Schemas of the files that users write, for editors that complete and check YAML.

Nothing is required in them, since a file may extend another one, be extended, or get a setting on the command line.
Rules that span several keys are not in them either: `estep plan` and `estep check` apply those.
"""

from typing import Any

from pydantic import BaseModel

from estep.config.run import RunConfig

Schema = dict[str, Any]


def config_schema() -> Schema:
    """The schema of a run's configuration."""
    return file_schema(
        RunConfig,
        "A configuration of estep",
        "The configuration that this file changes: a relative path, or the name of a shipped configuration.",
    )


def file_schema(model: type[BaseModel], title: str, extends: str) -> Schema:
    """The schema of a file that becomes a pydantic model once it is merged with the file that it extends.

    Args:
        title: what the file is.
        extends: the description of the key `extends`.
    """
    schema = model.model_json_schema()
    definitions = schema.pop("$defs")
    # What stands in a list is never merged with another file's, so it is complete.
    whole = {name for definition in definitions.values() for name in _items(definition)} | set(_items(schema))
    root = _cleaned(schema, complete=False)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **root,
        "properties": {"extends": {"type": "string", "description": extends}, **root["properties"]},
        "$defs": {name: _cleaned(one, name in whole) for name, one in definitions.items()},
    }


def _items(schema: Schema) -> list[str]:
    """The names of the definitions that are items of an object's lists."""
    listed = [inner["items"] for inner in schema.get("properties", {}).values() if "items" in inner]
    return [items["$ref"].rpartition("/")[2] for items in listed if "$ref" in items]


def _cleaned(schema: Schema, complete: bool) -> Schema:
    """A schema for people.

    Without titles, which repeat names, and without defaults that an editor would write out as whole sections. Variants
    of a section are alternatives whether or not they name their `type`.

    Args:
        complete: keep what is required.
    """
    cleaned: Schema = {}
    for key, value in schema.items():
        if key == "properties":
            cleaned[key] = {name: _cleaned(inner, complete) for name, inner in value.items()}
        elif key in ("anyOf", "oneOf"):
            cleaned["anyOf"] = [_cleaned(inner, complete) for inner in value]
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            cleaned[key] = _cleaned(value, complete)
        elif key == "description":
            cleaned[key] = " ".join(value.split())
        elif key == "discriminator":
            cleaned |= {"required": [value["propertyName"]]} if complete else {}
        elif key == "required":
            cleaned |= {"required": value} if complete else {}
        elif key != "title" and not (key == "default" and isinstance(value, dict)):
            cleaned[key] = value
    return cleaned

"""The JSON Schema of a study: a run's configuration in which any value may be a list of values."""

from typing import Any

from estep.config.files import LISTS
from estep.config.names import BASE
from estep.config.schema import Schema, config_schema
from estep.study.grid import KEPT, NAME, OF_THE_STUDY

_ARM = "Arm"


def study_schema() -> Schema:
    """The schema of a study, for editors."""
    schema = config_schema()
    definitions = schema["$defs"]
    settings = {key: value for key, value in schema["properties"].items() if key not in ("extends", *OF_THE_STUDY)}
    name = {"type": ["string", "null"], "pattern": f"^{NAME}$"}
    return {
        **schema,
        "title": "A study of estep",
        "description": "A grid of runs: every list is an axis.",
        "properties": {
            "extends": schema["properties"]["extends"],
            "name": {**name, "description": "The name of the study; null for the file's."},
            "run_dir": {
                "type": ["string", "null"],
                "description": "The study's folder; null for a folder in `runs/` named after the study.",
            },
            "keep_weights": {
                "enum": list(KEPT),
                "default": "last",
                "description": "Which weights are kept when a run is finished: those of all iterations, those that the "
                "run ends in, or none.",
            },
            "arms": {
                "description": "Names of arms, each with the settings that it changes. null removes an arm of the "
                "study that this one extends.",
                "type": ["object", "null"],
                "propertyNames": {"pattern": f"^{NAME}$", "not": {"const": BASE}},
                "additionalProperties": {"anyOf": [_ref(_ARM), {"type": "null"}]},
            },
            **_axes(settings),
        },
        "$defs": {
            **definitions,
            **{_varied(name): _object(definition) for name, definition in definitions.items()},
            _ARM: {"type": "object", "additionalProperties": False, "properties": _axes(settings)},
        },
    }


def _object(schema: Schema) -> Schema:
    return {**schema, "properties": _axes(schema["properties"])}


def _axes(properties: dict[str, Schema]) -> dict[str, Schema]:
    """The keys of a section, each with one value or with a list of values."""
    return {key: _axis(key, schema) for key, schema in properties.items()}


def _axis(key: str, schema: Schema) -> Schema:
    described: Schema = {word: schema[word] for word in ("description", "default") if word in schema}
    single = {word: value for word, value in schema.items() if word not in described}
    values = single
    if key == "type":
        values = {"type": "string"}  # another variant's type may be among them
    elif key in LISTS:
        values = {"anyOf": [one for one in single.get("anyOf", [single]) if one.get("type") == "array"]}
    axis = {"type": "array", "items": values, "minItems": 1, "uniqueItems": True}
    return {**described, "anyOf": [*map(_within, single.get("anyOf", [single])), axis]}


def _within(alternative: Schema) -> Schema:
    """A value, which may be a section with axes. Within a list, nothing is an axis."""
    name = alternative.get("$ref", "").rpartition("/")[2]
    return _ref(_varied(name)) if name else alternative


def _varied(name: str) -> str:
    return f"{name}Axes"


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}

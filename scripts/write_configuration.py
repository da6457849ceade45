"""Write docs/configuration.md from the configuration's own types, defaults and docstrings.

python scripts/write_configuration.py
"""

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from estep import config

HEAD = """# Configuration

A run is described by one YAML file. `key=value` on the command line overrides a setting (`m_step.batch_size=8`, with
values as in YAML). Unknown keys are refused with the nearest known key, and so are keys that appear twice. The resolved
configuration is saved in the run folder, and a run folder is only continued with the same one. `extends` names the
configuration that a file changes, by a relative path or by the name of a shipped one. A file with lists as values is a
grid of runs: see [studies.md](studies.md).

A section with variants (`proposal`, `engine`) chooses one by `type`; each has its own keys. This page is written by
`python scripts/write_configuration.py` from the code.
"""

SECTIONS: list[tuple[str, type[BaseModel]]] = [
    ("The run", config.RunConfig),
    ("proposal, `type: pps`", config.PPSProposal),
    ("proposal, `type: star`", config.STaRProposal),
    ("proposal, `type: rejection`", config.RejectionProposal),
    ("proposal, `type: chain`", config.ChainProposal),
    ("proposal, `type: adaptive`", config.AdaptiveProposal),
    ("proposal, `type: mixture`", config.MixtureProposal),
    ("proposal.components, each", config.MixtureComponent),
    ("proposal, `type: direct`", config.DirectProposal),
    ("proposal, `type: gold`", config.GoldProposal),
    ("proposal.model", config.ProposalModel),
    ("price", config.Price),
    ("engine, `type: auto`", config.AutoEngineConfig),
    ("engine, `type: vllm`", config.VLLMEngineConfig),
    ("engine, `type: transformers`", config.TransformersEngineConfig),
    ("engine, `type: openai`", config.OpenAIEngineConfig),
    ("engine, `type: scripted`", config.ScriptedEngineConfig),
    ("m_step", config.MStepConfig),
    ("m_step.lora", config.LoRAConfig),
    ("filters", config.FilterConfig),
    ("evaluation", config.EvaluationConfig),
    ("data", config.DataConfig),
]


def kind(annotation: Any) -> str:
    """A type in the words of YAML."""
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = list(dict.fromkeys(kind(part) for part in get_args(annotation)))
        return " or ".join(kinds)
    if get_origin(annotation) is tuple:
        parts = [part for part in get_args(annotation) if part is not Ellipsis]
        return (
            "list of " + kind(parts[0])
            if len(set(parts)) == 1 and len(parts) == 1
            else f"[{', '.join(map(kind, parts))}]"
        )
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[annotation]


def default(field: Any) -> str:
    """A field's default, or `required`."""
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return f"`type: {value.type}`" if hasattr(value, "type") else "see below"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return "`null`" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, model in SECTIONS:
        parts.append(f"\n## {title}\n\n{' '.join((model.__doc__ or '').split())}\n")
        fields = [(name, field) for name, field in model.model_fields.items() if name != "type"]
        if not fields:
            parts.append("\nNo keys.\n")
            continue
        parts.append("\n| key | value | default | meaning |\n|---|---|---|---|\n")
        for name, field in fields:
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            parts.append(f"| `{name}` | {kind(field.annotation)} | {default(field)} | {meaning} |\n")
    return "".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs" / "configuration.md").write_text(render(), encoding="utf-8")

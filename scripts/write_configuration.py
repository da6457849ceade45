"""Write docs/configuration.md from the configuration's own types, defaults and docstrings.

python scripts/write_configuration.py
"""

from pathlib import Path

from pydantic import BaseModel

from estep import config
from estep.config.keys import keys_of

HEAD = """# Configuration

A run is described by one YAML file. `key=value` on the command line overrides a setting (`m_step.batch_size=8`, with
values as in YAML). Unknown keys are refused with the nearest known key, and so are keys that appear twice. The resolved
configuration is saved in the run folder, and a run folder is only continued with the same one. `extends` names the
configuration that a file changes, by a relative path or by the name of a shipped one. A file with lists as values is a
grid of runs: see [studies.md](studies.md).

A section with variants (`proposal`, `engine`) chooses one by `type`; each has its own keys. `estep keys` lists all keys
in a terminal, and `estep keys m_step` those of one section. This page is written by
`python scripts/write_configuration.py` from the code.

Editors complete and check these files with a JSON Schema: `estep schema config` prints one for runs,
`estep schema study` for studies, and `estep schema task` for task files. In VS Code with the YAML extension, for
example, run `estep schema config > config.schema.json`, and begin a configuration beside it with the line
`# yaml-language-server: $schema=config.schema.json`.
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


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, model in SECTIONS:
        parts.append(f"\n## {title}\n\n{' '.join((model.__doc__ or '').split())}\n")
        keys = keys_of(model)
        if not keys:
            parts.append("\nNo keys.\n")
            continue
        parts.append("\n| key | value | default | meaning |\n|---|---|---|---|\n")
        for key in keys:
            meaning = key.meaning.replace("|", "\\|")
            parts.append(f"| `{key.path}` | {key.kind} | {key.default} | {meaning} |\n")
    return "".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs" / "configuration.md").write_text(render(), encoding="utf-8")

"""The model card: what the model does, how good it is, how to ask it, and what it was made from.

It holds no rows of the data, no local paths, and nothing of the settings of servers.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import estep
from estep.config import EvaluationConfig, served_model
from estep.config.names import arm_name
from estep.export.folder import is_local
from estep.export.measures import Measures, measures
from estep.export.parity import Parity
from estep.export.source import Trained
from estep.models.registry import HUB_MODELS, by_id
from estep.sources.archives import DATASETS, MODELS
from estep.sources.rows import on_the_hub
from estep.tasks.answers import PythonAnswer

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

_PACKAGED = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""The hub ids of the models from the package index."""
_LICENSES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "Llama 3.1": "llama3.1",
    "Llama 3.2": "llama3.2",
    "Llama 3.3": "llama3.3",
}
"""The hub's identifiers of licenses; others are `other`, with their name."""


class BaseModel(NamedTuple):
    """What the weights were trained from."""

    name: str
    """For people: a hub id, or the name of a folder."""
    hub_id: str | None
    license: str | None
    """None if it is not known."""


def base_model(name: str) -> BaseModel:
    """The base model that a configuration names."""
    if name in MODELS:
        return BaseModel(_PACKAGED[name], _PACKAGED[name], MODELS[name].license)
    known = HUB_MODELS.get(name) or by_id(name)
    if known is not None:
        return BaseModel(known.hub_id, known.hub_id, known.license)
    if Path(name).expanduser().exists() or name.startswith(("/", ".", "~")):
        return BaseModel(f"the local model {Path(name).name}", None, None)
    return BaseModel(name, name, None)


def write_card(trained: Trained, folder: Path, parity: Parity | None, usage: str = "") -> None:
    """Write the model card to `README.md`.

    Args:
        parity: the comparison of the exported model with the run's.
        usage: how to run the exported model; by default, with transformers and vLLM.
    """
    (folder / "README.md").write_text(str(card(trained, parity, usage)), encoding="utf-8")


def card(trained: Trained, parity: Parity | None = None, usage: str = "") -> "ModelCard":
    """The model card; see `write_card`."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    found, base = measures(trained), base_model(trained.config.model)
    task, source = trained.task, trained.task.file.data.source
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=re.sub(r"[^\w./-]+", "-", task.name),
            dataset_name=f"{task.name}, {found.questions} held-out questions",
            metric_type=row.id,
            metric_name=f"{row.name} (95 % interval {row.shown_interval})",
            metric_value=round(row.trained, 4),
        )
        for row in found.rows
        if row.trained == row.trained  # undefined ones are NaN
    ]
    license, name = _license(base)
    data = ModelCardData(
        base_model=base.hub_id,
        datasets=source if on_the_hub(source) else None,
        eval_results=results,
        library_name="transformers",
        license=license,
        license_name=name,
        model_name=trained.name,
        pipeline_tag="text-generation",
        tags=["estep", "filtered-em", "reasoning"],
    )
    sections = [
        f"# {trained.name}",
        _purpose(trained, base),
        "## Intended use and limits",
        _limits(trained, found),
        "## How to ask it",
        _asking(trained),
        usage or f"{_with_transformers(trained)}\n\n{_with_estep(trained)}".rstrip(),
        "## Results",
        _results(found, parity),
        "## Training",
        _training(trained, base),
        "## Data and licenses",
        _licenses(trained, base),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _purpose(trained: Trained, base: BaseModel) -> str:
    description, proposal = trained.task.file.description.strip().rstrip("."), trained.config.proposal
    begins = (
        f"This model was trained from {base.name} with estep {estep.__version__} on the task **{trained.task.name}**"
        f"{f' ({description})' if description else ''}."
    )
    if proposal.type == "direct":
        return f"{begins} It gives the answer alone, without a rationale, and was fine-tuned on the correct answers."
    if proposal.type == "gold":
        return f"{begins} It writes a rationale and then an answer, and was fine-tuned on worked solutions."
    return (
        f"{begins} It writes a rationale and then an answer. It was taught with filtered expectation maximization "
        f"([arXiv 2512.20169](https://arxiv.org/abs/2512.20169), proposal `{arm_name(proposal)}`): rationales are "
        "sampled, those that end in the correct answer are kept, and the model is trained on them."
    )


def _limits(trained: Trained, found: Measures) -> str:
    spec = trained.task.file.answer
    answers = trained.task.answers
    scale = f"The answer is one of {', '.join(answers)}. " if answers and len(answers) <= 26 else ""
    if spec.type == "integer":
        scale = f"The answer is an integer from {spec.min} to {spec.max}. "
    return (
        f"It answers questions of this one task, asked with the prompt below. {scale}Other prompts, kinds of text "
        "and languages were not tested. It is meant for data like the data it was trained on, with a person who "
        "looks at a sample of its answers; it is not meant to decide about people by itself.\n\n"
        f"- All figures below come from {found.questions} held-out questions of the same source as the training data.\n"
        f"{_about_rationales(trained)}"
        "- It repeats the judgments, and the biases, of those who gave the answers in the training data."
    )


def _about_rationales(trained: Trained) -> str:
    if trained.config.proposal.type == "direct":
        return ""
    checked = "only its equations were checked" if trained.config.filters.check_steps else "nothing was checked"
    return (
        "- A rationale is a text that made the correct answer likely. It need not be the reason for the answer, and "
        f"of what it says {checked}.\n"
    )


def _asking(trained: Trained) -> str:
    task = trained.task
    parts = []
    if task.file.system.strip():
        parts.append(f"The system message, verbatim:\n\n{_fenced(task.file.system.strip())}")
    fields = ", ".join(f"`{name}`" for name in sorted(task.needed_fields))
    template = task.file.user.strip() + "".join(f"\n\n{name}: {text}" for name, text in task.file.parameters.items())
    rendered = f"The user message is rendered from this template (Jinja; fields {fields}; `hint` is empty):"
    parts.append(f"{rendered}\n\n{_fenced(template)}")
    if task.examples and task.policy_sees_examples:
        parts.append(
            f"Before it come the {len(task.examples)} examples in `task.yaml`, as turns of user and assistant."
        )
    if task.examples:
        example = task.examples[0]
        content = task.prompt(example)[-1]["content"]
        direct = trained.config.proposal.type == "direct"
        rationale = task.file.examples[0].rationale
        said = task.direct_completion(example) if direct else task.full_completion(rationale, example.answer)
        parts.append(
            f"For example, this user message asks for the response below it:\n\n{_fenced(content)}\n\n{_fenced(said)}"
        )
    parts.append(f"The run asked {_sampling(trained)}, with at most {trained.config.max_new_tokens} new tokens.")
    return "\n\n".join(parts)


def _with_estep(trained: Trained) -> str:
    """The command that asks as the run did; nothing if the task needs a verifier that lies outside of the export."""
    spec, asked = trained.task.file.answer, trained.config.evaluation
    if isinstance(spec, PythonAnswer) and spec.package is None:
        return ""
    given = {"temperature": asked.temperature, "samples": asked.samples, "vote": asked.vote}
    usual = EvaluationConfig()
    settings = "".join(f" evaluation.{key}={value}" for key, value in given.items() if value != getattr(usual, key))
    return "With estep, for every row of a table, as the run asked:\n\n" + _fenced(
        f"estep predict FOLDER FOLDER/task.yaml new.csv -o scored.csv{settings}", "sh"
    )


def _sampling(trained: Trained) -> str:
    config = trained.config.evaluation
    if config.temperature == 0:
        return "greedily"
    votes = f" and took the {config.vote} of {config.samples} answers" if config.vote != "none" else ""
    return f"at temperature {config.temperature:g}{votes}"


def _with_transformers(trained: Trained) -> str:
    system = '{"role": "system", "content": SYSTEM}, ' if trained.task.file.system.strip() else ""
    system += "*EXAMPLES, " if trained.task.examples and trained.task.policy_sees_examples else ""
    code = (
        "from transformers import pipeline\n\n"
        'model = pipeline("text-generation", model=FOLDER_OR_NAME)\n'
        f'messages = [{system}{{"role": "user", "content": USER}}]\n'
        'print(model(messages)[0]["generated_text"][-1]["content"])'
    )
    return (
        f"With transformers:\n\n{_fenced(code, 'python')}\n\nWith vLLM: `vllm serve FOLDER_OR_NAME`. Both take the "
        "sampling settings and the tokens that end a response from `generation_config.json`"
        + ("; a greedy run is written there as `top_k: 1`." if not trained.config.evaluation.temperature else ".")
    )


def _results(found: Measures, parity: Parity | None) -> str:
    lines = ["| measure | base model | this model | 95 % interval |", "|---|---|---|---|"]
    lines += [
        f"| {row.name} | {row.shown(row.base)} | {row.shown(row.trained)} | {row.shown_interval} |"
        for row in found.rows
    ]
    text = "\n".join(lines)
    notes = [
        f"On {found.questions} held-out questions. Always giving the most frequent answer is right on "
        f"{100 * found.majority:.1f} %. Intervals of shares are Wilson's, the others are bootstrap intervals over "
        "questions."
    ]
    if found.versus is not None:
        difference, wins, losses, p = found.versus
        notes.append(
            f"Against the base model: {100 * difference.mean:+.1f} points of accuracy (95 % interval "
            f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}); better on {wins} questions, worse on "
            f"{losses} (exact sign test, p = {p:.2g})."
        )
    if parity is not None:
        notes.append(f"This export was compared with the run's own weights {parity.line}.")
    return text + "\n\n" + "\n\n".join(notes)


_TRAINING = ("proposal", "filters", "m_step", "iterations", "train_size", "test_size", "seed", "few_shot", "select")
_PRIVATE = ("model", "api_key_env", "base_url", "device", "devices", "gpu", "cluster")
"""Keys of these sections that say where something ran, or which server was used."""


def _training(trained: Trained, base: BaseModel) -> str:
    content = trained.config.model_dump(mode="json")
    lines = [f"model: {base.name}", f"task: {trained.task.name}", *_settings({key: content[key] for key in _TRAINING})]
    pairs = [str(len(trained.store.iteration(k).pairs())) for k in range(1, trained.step.number + 1)]
    served = served_model(trained.config.proposal)
    also = f" The rationales were sampled from a served model, `{served.model}`." if served is not None else ""
    return (
        f"These are the weights after iteration {trained.step.number} of {trained.config.iterations}. The iterations "
        f"accepted {', '.join(pairs)} pairs.{also} The settings of the run:\n\n" + _fenced("\n".join(lines), "yaml")
    )


def _settings(section: dict[str, Any], prefix: str = "") -> list[str]:
    """A section of the configuration as lines with dotted keys, without unset and private ones."""
    lines = []
    for key, value in section.items():
        if value is None or (prefix and key in _PRIVATE):
            continue
        if isinstance(value, dict):
            lines += _settings(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
            for number, one in enumerate(value):
                lines += _settings(one, f"{prefix}{key}[{number}].")
        else:
            lines.append(f"{prefix}{key}: {str(value).lower() if isinstance(value, bool) else value}")
    return lines


def _licenses(trained: Trained, base: BaseModel) -> str:
    data = trained.task.file.data
    origin = "generated by estep" if data.generator is not None else _origin(data.source)
    return (
        f"- Data: {origin}. License: {trained.task.file.license.strip() or 'not stated in the task file'}.\n"
        f"- Base model: {base.name}. License: {base.license or 'not known to estep; see the base model'}. The weights "
        "are derived from it, so its terms apply to them."
    )


def _origin(source: str | None) -> str:
    if source is None:
        return "the author's own file"
    if is_local(source):
        return f"the author's own file `{Path(source).name}`"
    head, _, tail = source.partition("/")
    return (
        f"`{tail}` of {DATASETS[head].requirement} on the package index"
        if head in DATASETS
        else f"`{source}` on the hub"
    )


def _license(base: BaseModel) -> tuple[str | None, str | None]:
    """The hub's identifier of a license, and its name where the identifier does not give it."""
    if base.license is None or base.license in _LICENSES:
        return (_LICENSES[base.license] if base.license else None), None
    return "other", re.sub(r"[^a-z0-9.]+", "-", base.license.lower())


def _fenced(text: str, language: str = "text") -> str:
    """A block of code; its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"

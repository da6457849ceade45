"""The configuration of a run: flat sections that refuse unknown keys.

    estep train configs/demo.yaml proposal.type=star m_step.batch_size=8

`type` chooses a variant of a section. Each variant has its own defaults and refuses the keys of the others.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from estep.config.engine import AutoEngineConfig, Cluster, Count, EngineConfig, ProposalModel, Section

# Proposals


class _Sampled(Section):
    model: ProposalModel | None = None
    """A served model to sample from instead of the policy; null for the policy itself."""


class RejectionProposal(_Sampled):
    """Rejection sampling (Algorithm 2)."""

    type: Literal["rejection"] = "rejection"
    budget: int = Field(1, ge=1)
    """M: attempts per question."""
    n: int = Field(1, ge=1)
    """Samples per question."""


class STaRProposal(_Sampled):
    """One plain sample, then a hinted one for each failure (Algorithm 3)."""

    type: Literal["star"] = "star"
    n: int = Field(1, ge=1)
    """Samples per question."""
    hint: str | None = None
    """The wording of the hint; null for the task's default."""


class PPSProposal(_Sampled):
    """Prompt posterior sampling: samples with the correct answer in the prompt (section 3)."""

    type: Literal["pps"] = "pps"
    n: int = Field(1, ge=1)
    """Samples per question."""
    hint: str | None = None
    """The wording of the hint; null for the task's default."""


class DirectProposal(Section):
    """The correct answer alone, with no rationale: the supervised baseline."""

    type: Literal["direct"] = "direct"


SimpleProposal = Annotated[RejectionProposal | STaRProposal | PPSProposal | DirectProposal, Field(discriminator="type")]


class MixtureComponent(Section):
    """A part of a mixture."""

    weight: float = Field(gt=0)
    """Relative to the other components' weights."""
    proposal: SimpleProposal
    """Any proposal except a mixture."""


class MixtureProposal(_Sampled):
    """Each sample comes from one of several proposals, chosen at random by weight."""

    type: Literal["mixture"] = "mixture"
    components: tuple[MixtureComponent, ...] = Field(min_length=2)
    """Two or more proposals with their weights."""
    n: int = Field(1, ge=1)
    """Samples per question. The components' own `n` is not used and must be 1."""

    @model_validator(mode="after")
    def _single_draws_and_one_hint(self) -> Self:
        parts = [component.proposal for component in self.components]
        if any(getattr(part, "n", 1) != 1 for part in parts):
            raise ValueError("a component's n must be 1; set the mixture's n")
        if any(getattr(part, "model", None) is not None for part in parts):
            raise ValueError("a component has no model of its own; set the mixture's model")
        if len({part.hint for part in parts if hasattr(part, "hint")}) > 1:
            raise ValueError("the components must share one hint variant")
        return self

    @property
    def hint(self) -> str | None:
        """The one hint variant of the components."""
        hints = [c.proposal.hint for c in self.components if hasattr(c.proposal, "hint")]
        return hints[0] if hints else None


ProposalConfig = Annotated[
    RejectionProposal | STaRProposal | PPSProposal | DirectProposal | MixtureProposal,
    Field(discriminator="type"),
]


def served_model(proposal: ProposalConfig) -> ProposalModel | None:
    """The served model that a proposal samples from; None if it samples from the policy."""
    return getattr(proposal, "model", None)


def takes_hint(type_: str) -> bool:
    """Whether a proposal of this type has a key `hint`; False for an unknown `type`."""
    variants: tuple[type[Section], ...] = get_args(get_args(ProposalConfig)[0])
    return any(v.model_fields["type"].default == type_ and "hint" in v.model_fields for v in variants)


def hint_variant(proposal: ProposalConfig) -> str | None:
    """The hint variant that a proposal asks for; None for the task's default or if it uses no hint."""
    return getattr(proposal, "hint", None)


# M-step, filters, evaluation


class LoRAConfig(Section):
    """Low-rank adaptation (PEFT) instead of full fine-tuning."""

    r: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: int = Field(32, ge=1)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on the adapter's input during training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers to adapt; `all-linear` adapts every linear layer except the head."""


class MStepConfig(Section):
    """Supervised fine-tuning (Algorithm 1, line 5), with the loss, optimizer and order of TRL's `SFTTrainer`."""

    learning_rate: tuple[float, float] = (1e-6, 1e-7)
    """Learning rates of the first and the last iteration, with linear decay between them and a constant rate within an
    iteration (section 4.1). A single number sets both."""
    batch_size: int = Field(16, ge=1)
    """Pairs per gradient step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Pairs per forward pass, a divisor of `batch_size`; null for as many as fit in memory."""
    epochs: int = Field(1, ge=1)
    """Passes over the pairs of each iteration."""
    loss_reduction: Literal["token", "sequence"] = "token"
    """What the loss of a gradient step is divided by. `token`: its number of completion tokens, as in TRL and in the
    paper's setup; the size of a step does not grow with the length of its rationales, but the share of a pair depends
    on the length of the others. `sequence`: its number of pairs, as Algorithm 1 is written; each pair contributes its
    full log-likelihood, so the gradient of a rationale grows with its length."""
    answer_weight: float = Field(1.0, gt=0)
    """Factor on the loss of the answer's tokens, which the rationale's tokens outnumber; 1 is the paper's setting. Not
    available for tasks whose verifier does not report the position of the answer."""
    replay: int = Field(1, ge=1)
    """Number of iterations whose pairs are trained on: the current one and the `replay - 1` before it. A pair that was
    accepted in two of them counts twice."""
    init: Literal["previous", "base"] = "previous"
    """The weights from which each iteration trains: those of the previous iteration (the paper) or of the base
    model."""
    lora: LoRAConfig | None = None
    """Train an adapter; null for full fine-tuning."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients with a larger norm are scaled down to this one."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of matrix multiplications. Weights and optimizer state are float32 in either case."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass, which saves memory and takes about a third more time; null to do so
    only if a single pair would not fit otherwise."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the saved weights. The next iteration trains from them, and bfloat16 rounds small updates away."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` uses GPUs if there are any, otherwise the CPU."""
    devices: Count = "auto"
    """Number of devices that share the model, its optimizer and the pairs of each gradient step, each with a process of
    its own; `auto` is every GPU of the machine or of the cluster, and one on a CPU."""

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _one_is_both(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int | float | str) else value

    @field_validator("learning_rate")
    @classmethod
    def _positive(cls, value: tuple[float, float]) -> tuple[float, float]:
        if min(value) <= 0:
            raise ValueError(f"both learning rates must be above 0, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _micro_divides(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} must divide batch_size {self.batch_size}")
        return self


RankBy = Literal["order", "reward", "shortest", "logprob"]


class FilterConfig(Section):
    """Which samples are trained on, and with what weights. All filters apply within one iteration."""

    drop_truncated: bool = True
    """Leave out samples that were cut off at `max_new_tokens`."""
    min_rationale_words: int = Field(6, ge=0)
    """Fewest words in a rationale; 0 also accepts samples without one."""
    check_steps: bool = False
    """Leave out samples whose rationale contains an equation that is not true, such as `12 + 9 = 22`, or no equation at
    all. For arithmetic."""
    drop_hint_mentions: bool = True
    """Leave out samples that mention the hint."""
    dedup: bool = True
    """Keep one of several samples with the same text for a question."""
    max_per_question: int | None = Field(None, ge=1)
    """Most pairs per question; null for no limit."""
    rank_by: RankBy = "order"
    """Which samples `max_per_question` keeps: the first, or those with the highest reward, the fewest tokens or the
    highest mean log-probability per token."""
    reward: Literal["exact", "graded"] = "exact"
    """r(ŷ, y*): `exact` is 1[ŷ = y*]; `graded`, for integer answers, is 1 − |ŷ − y*| / (max − min), which is
    also the weight of the pair."""
    min_reward: float = Field(0.5, gt=0, le=1)
    """With graded rewards, the lowest reward that is trained on."""
    balance: Literal["none", "reweight", "subsample"] = "none"
    """Give every answer the share that it has in the data, either by weighting pairs or by leaving some out. Without
    this, answers that are easy to reach are accepted more often than others."""

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        if self.rank_by != "order" and self.max_per_question is None:
            raise ValueError(f"rank_by={self.rank_by} chooses among a question's samples: set max_per_question")
        if self.rank_by == "reward" and self.reward == "exact":
            raise ValueError("rank_by=reward needs reward=graded: exact rewards are all 1")
        if self.min_reward != 0.5 and self.reward == "exact":
            raise ValueError("min_reward is for reward=graded")
        return self


class EvaluationConfig(Section):
    """How the policy answers the held-out questions, always with the plain prompt."""

    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    samples: int = Field(1, ge=1)
    """Samples per question."""
    vote: Literal["none", "majority", "median"] = "none"
    """How the samples of a question become one prediction; `none` scores each sample by itself."""

    @model_validator(mode="after")
    def _several_need_temperature(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are all the same; set a temperature")
        if self.vote != "none" and self.samples == 1:
            raise ValueError(f"vote={self.vote} needs samples > 1")
        return self


class DataConfig(Section):
    """Which questions of the task are used."""

    train_file: str | None = Field(None, min_length=1)
    """A file of training rows that replaces the task's own: `.jsonl`, `.csv`, `.tsv` or `.parquet`, with the same
    fields as the task's rows. Without a `test_file`, part of it is held out for testing."""
    test_file: str | None = Field(None, min_length=1)
    """A file of test rows that replaces the task's own."""
    split: str | None = Field(None, min_length=1)
    """The split of the hub's data set that training rows come from, if not the task's own."""
    split_by_group: bool = True
    """Keep rows that share a document or prompt on the same side of the split between training and test. The task's
    `data.group` names the field that they share. Turn it off for random subsets of rows, as in the paper."""
    permute_options: bool = False
    """Shuffle the options of each training question by seed, so that no letter is correct more often than others. Not
    suitable for options that refer to others, such as "all of the above"."""

    @field_validator("train_file", "test_file")
    @classmethod
    def _found_from_anywhere(cls, value: str | None) -> str | None:
        return None if value is None else str(Path(value).expanduser().absolute())


# The run


DEFAULT_TYPES = {"proposal": "pps", "engine": "auto"}
"""What a section is without a `type`."""


class FEMConfig(Section):
    """All settings of a run except its model and task."""

    @model_validator(mode="before")
    @classmethod
    def _default_variants(cls, content: Any) -> Any:
        """A section without a `type` means its default variant."""
        if isinstance(content, dict):
            for section, default in DEFAULT_TYPES.items():
                if isinstance(content.get(section), dict) and "type" not in content[section]:
                    content = {**content, section: {"type": default, **content[section]}}
        return content

    proposal: ProposalConfig = PPSProposal()
    """q(z, y | x, y*): where rationales are sampled from."""
    engine: EngineConfig = AutoEngineConfig()
    """The engine that generates samples."""
    m_step: MStepConfig = MStepConfig()
    """How the M-step fine-tunes the model."""
    filters: FilterConfig = FilterConfig()
    """Which samples are trained on, and with what weights."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the policy answers the held-out questions."""
    data: DataConfig = DataConfig()
    """Which questions of the task are used."""
    iterations: int = Field(5, ge=1)
    """K of Algorithm 1: how often E-step and M-step alternate."""
    train_size: int | None = Field(None, ge=1)
    """N: number of training questions, selected by seed; null for all."""
    test_size: int | None = Field(None, ge=1)
    """Number of test questions, selected by seed; null for the whole test set, or for a fifth of the rows if the task
    has no test set."""
    validation_size: int | None = Field(None, ge=1)
    """Number of questions held out of the training questions for `select: validation`."""
    select: Literal["last", "validation"] = "last"
    """Which weights the run returns: those of the last iteration, or those that answer the most validation questions
    correctly (the earliest in a tie; the base model is iteration 0). Test questions are never used to choose."""
    seed: int = Field(257, ge=0)
    """Seeds question selection, sampling and the M-step. The paper uses 257, 521 and 1031."""
    few_shot: Literal["first", "both", "proposal"] | None = None
    """Which prompts contain the few-shot examples. `first`: the proposal's prompts, until the policy has been trained
    once; from then on, the proposal samples from the same prompt that is trained. `both`: the
    proposal's prompts and the policy's own. `proposal`: the proposal's prompts in every iteration, never the policy's
    own. null for the task's default."""
    on_invalid_row: Literal["stop", "skip"] = "stop"
    """What to do with a data row without a valid answer: stop, or leave it out and count it."""
    on_overlength: Literal["stop", "skip"] = "stop"
    """What to do with a question or a training pair that does not fit the model's context: stop, or leave it out and
    count it. Hinted prompts are measured under every proposal, so that all proposals are compared on the same
    questions. Prompts for a server cannot be measured, so the run stops if the server refuses one."""
    keep_weights: Literal["all", "last"] = "all"
    """Which weights stay in the run folder: those of all iterations, or only those that the next iteration starts from
    and those that are selected."""
    cluster: Cluster | None = None
    """Run sampling and training on a Ray cluster: `auto` for the one that this machine belongs to, or one that is
    started on this machine, `ray://HOST:PORT` for a remote one; null to use this machine without Ray."""
    name: str | None = Field(None, min_length=1, pattern=r"^[\w.-]+$")
    """The name of the run within its folder's name; null for the proposal's type."""
    run_dir: str | None = Field(None, min_length=1)
    """The run folder; null for a folder in `runs/` named after task, model, `name` and seed."""

    @model_validator(mode="after")
    def _validation_is_used(self) -> Self:
        if self.select == "validation" and self.validation_size is None:
            raise ValueError("select=validation chooses on questions of its own: set validation_size")
        if self.select == "last" and self.validation_size is not None:
            raise ValueError("validation_size is for select=validation")
        return self


class RunConfig(FEMConfig):
    """A whole run."""

    task: str
    """A built-in task's name or the path of a task file."""
    model: str
    """`smollm2-135m`, a local folder, or a hub id."""

    @property
    def max_new_tokens(self) -> int:
        """`engine.max_new_tokens` of a resolved configuration."""
        assert self.engine.max_new_tokens is not None, "not resolved: the task's default is not filled in"
        return self.engine.max_new_tokens

    @property
    def folder(self) -> Path:
        """The run's folder."""
        if self.run_dir is not None:
            return Path(self.run_dir).expanduser()
        parts = (
            short_task(self.task).replace("/", "-"),
            Path(self.model).name,
            self.name or self.proposal.type,
            f"s{self.seed}",
        )
        return Path("runs") / "-".join(parts)


def without_placement(content: dict[str, Any]) -> dict[str, Any]:
    """A dumped configuration without the keys that say where a run is computed, so that it can go on elsewhere."""
    return {
        **{key: value for key, value in content.items() if key != "cluster"},
        "engine": {key: value for key, value in content["engine"].items() if key != "data_parallel"},
        "m_step": {key: value for key, value in content["m_step"].items() if key != "devices"},
    }


def short_task(task: str) -> str:
    """A built-in task's name, or that of a task file without its folder."""
    return Path(task).stem if task.endswith((".yaml", ".yml")) else task

"""The configuration of a run: flat, and no key that is not known.

    estep train configs/demo.yaml proposal.type=star m_step.batch_size=8

A variant is chosen by its `type`; each variant has its own defaults, and refuses the others' keys.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from estep.config.engine import AutoEngineConfig, EngineConfig, ProposalModel, Section

# Proposals


class _Sampled(Section):
    model: ProposalModel | None = None
    """A served model that is sampled from in the policy's place; null for the policy itself."""


class RejectionProposal(_Sampled):
    """Rejection sampling (Algorithm 2)."""

    type: Literal["rejection"] = "rejection"
    budget: int = Field(1, ge=1)
    """M: how often a question is tried."""
    n: int = Field(1, ge=1)
    """Draws a question."""


class STaRProposal(_Sampled):
    """A plain draw, then a hinted one for the failures (Algorithm 3)."""

    type: Literal["star"] = "star"
    n: int = Field(1, ge=1)
    """Draws a question."""
    hint: str | None = None
    """The hint's variant; null for the task's default."""


class PPSProposal(_Sampled):
    """Prompt posterior sampling: draws with the correct answer in the prompt (section 3)."""

    type: Literal["pps"] = "pps"
    n: int = Field(1, ge=1)
    """Draws a question."""
    hint: str | None = None
    """The hint's variant; null for the task's default."""


class DirectProposal(Section):
    """The correct answer alone, with no rationale: the supervised baseline."""

    type: Literal["direct"] = "direct"


SimpleProposal = Annotated[RejectionProposal | STaRProposal | PPSProposal | DirectProposal, Field(discriminator="type")]


class MixtureComponent(Section):
    """A part of a mixture."""

    weight: float = Field(gt=0)
    """Relative to the other components' weights."""
    proposal: SimpleProposal
    """Any but a mixture."""


class MixtureProposal(_Sampled):
    """Every draw comes from one of several proposals, chosen by weight."""

    type: Literal["mixture"] = "mixture"
    components: tuple[MixtureComponent, ...] = Field(min_length=2)
    """The proposals, at least two."""
    n: int = Field(1, ge=1)
    """Draws a question. The components' own n is not used and must be 1."""

    @model_validator(mode="after")
    def _single_draws_and_one_hint(self) -> Self:
        parts = [component.proposal for component in self.components]
        if any(getattr(part, "n", 1) != 1 for part in parts):
            raise ValueError("a component's n must be 1; set the mixture's n")
        if any(getattr(part, "model", None) is not None for part in parts):
            raise ValueError("a component has no model of its own; set the mixture's model")
        if len({part.hint for part in parts if isinstance(part, STaRProposal | PPSProposal)}) > 1:
            raise ValueError("the components must share one hint variant")
        return self

    @property
    def hint(self) -> str | None:
        """The one hint variant of the components."""
        hints = [c.proposal.hint for c in self.components if isinstance(c.proposal, STaRProposal | PPSProposal)]
        return hints[0] if hints else None


ProposalConfig = Annotated[
    RejectionProposal | STaRProposal | PPSProposal | DirectProposal | MixtureProposal,
    Field(discriminator="type"),
]


def served_model(proposal: ProposalConfig) -> ProposalModel | None:
    """The served model that a proposal samples from; None where it samples from the policy."""
    return getattr(proposal, "model", None)


def hint_variant(proposal: ProposalConfig) -> str | None:
    """The hint variant that a proposal asks for; None for the task's default or where it uses no hint."""
    return getattr(proposal, "hint", None)


# M-step, filters, evaluation


class LoRAConfig(Section):
    """Low-rank adaptation (PEFT) instead of full fine-tuning."""

    r: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: int = Field(32, ge=1)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input, while training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers that are adapted; `all-linear` for all but the head."""


class MStepConfig(Section):
    """Supervised fine-tuning with TRL (Algorithm 1, line 5)."""

    learning_rate: tuple[float, float] = (1e-6, 1e-7)
    """[first, last]: constant within an iteration, linear from first to last (section 4.1). A number is both."""
    batch_size: int = Field(16, ge=1)
    """Pairs a gradient step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Pairs a forward pass; must divide `batch_size`; null for as many as memory holds."""
    epochs: int = Field(1, ge=1)
    """Passes over the pairs of an iteration."""
    loss_reduction: Literal["token", "sequence"] = "token"
    """What a gradient step's loss is divided by: its completion tokens, as in TRL and the paper's set-up, or its pairs,
    as Algorithm 1 is written. By `token`, the step does not grow with its rationales' length, but a pair's share of it
    depends on how long the others are; by `sequence`, a pair's log-likelihood counts as it is, and the gradient of a
    long rationale is larger by its length."""
    answer_weight: float = Field(1.0, gt=0)
    """Multiplies the loss of the answer's own tokens, which a rationale's outnumber; 1 is the paper's. Not for tasks
    whose verifier does not tell where the answer stands."""
    replay: int = Field(1, ge=1)
    """Iterations whose pairs are trained on: the present one, and before it one less than this. A pair that was
    accepted in two of them counts twice."""
    init: Literal["previous", "base"] = "previous"
    """Where each iteration's training starts: the last iteration's weights (the paper) or the base model's."""
    lora: LoRAConfig | None = None
    """Train an adapter; null for full fine-tuning."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the products. Weights and optimizer state are float32 in both."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about a third more time; null for where one pair would
    not fit otherwise."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the saved weights. Training goes on from them, and bfloat16 rounds small updates away."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes the first GPU where there is one."""

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
    """What a sample must be to be trained on, and what it weighs. All of it counts within one iteration."""

    drop_truncated: bool = True
    """Leave out texts that were cut off at `max_new_tokens`."""
    min_rationale_words: int = Field(6, ge=0)
    """0 lets samples without a rationale in."""
    drop_hint_mentions: bool = True
    """Leave out texts that talk about the hint."""
    dedup: bool = True
    """Of one question's samples with the same text, keep one."""
    max_per_question: int | None = Field(None, ge=1)
    """Pairs a question; null for no limit."""
    rank_by: RankBy = "order"
    """Which samples `max_per_question` keeps: the first, those of the highest reward, of the fewest tokens, or of the
    highest mean log-probability of a token."""
    reward: Literal["exact", "graded"] = "exact"
    """r(ŷ, y*): `exact` is 1[ŷ = y*]; `graded`, for integer answers, is 1 − |ŷ − y*| / (max − min), and weighs the
    pair."""
    min_reward: float = Field(0.5, gt=0, le=1)
    """The least reward that is trained on, where it is graded."""
    balance: Literal["none", "reweight", "subsample"] = "none"
    """Give every answer the share that it has in the data, by weighing pairs or by leaving some out: a proposal accepts
    easy answers more often."""

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
    """How the policy is asked on the held-out questions, always with the plain prompt."""

    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    samples: int = Field(1, ge=1)
    """Texts a question."""
    vote: Literal["none", "majority", "median"] = "none"
    """How a question's samples become one prediction; `none` scores each sample by itself."""

    @model_validator(mode="after")
    def _several_need_temperature(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are all the same; set a temperature")
        if self.vote != "none" and self.samples == 1:
            raise ValueError(f"vote={self.vote} needs samples > 1")
        return self


class DataConfig(Section):
    """Which of a task's questions are asked."""

    train_file: str | None = Field(None, min_length=1)
    """Training rows from a file of one's own, in place of the task's: `.jsonl`, `.csv`, `.tsv` or `.parquet`, with the
    fields that the task's own rows have. Without a `test_file`, test rows are held out of it."""
    test_file: str | None = Field(None, min_length=1)
    """Test rows from a file of one's own."""
    split: str | None = Field(None, min_length=1)
    """Another split of the hub's for the training rows."""
    split_by_group: bool = True
    """Keep rows on one document or prompt together: none is trained on where another is tested on. Off for the paper's
    random subsets. For tasks whose `data.group` says which those are."""
    permute_options: bool = False
    """Give the options of each training question an order by seed, so that no letter is right more often. Not for
    options that speak of others, such as "all of the above"."""

    @field_validator("train_file", "test_file")
    @classmethod
    def _found_from_anywhere(cls, value: str | None) -> str | None:
        return None if value is None else str(Path(value).expanduser().absolute())


# The run


DEFAULT_TYPES = {"proposal": "pps", "engine": "auto"}
"""What a section is without a `type`."""


class FEMConfig(Section):
    """Everything about a run but its model and its task."""

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
    """What samples."""
    m_step: MStepConfig = MStepConfig()
    """How the model is fine-tuned."""
    filters: FilterConfig = FilterConfig()
    """Which samples are trained on, and what they weigh."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the held-out questions are asked."""
    data: DataConfig = DataConfig()
    """Which of the task's questions are asked."""
    iterations: int = Field(5, ge=1)
    """K of Algorithm 1."""
    train_size: int | None = Field(None, ge=1)
    """N: training questions, drawn by seed; null for all."""
    test_size: int | None = Field(None, ge=1)
    """Held-out questions, drawn by seed; null for all of a test file, or a fifth of a file without one."""
    validation_size: int | None = Field(None, ge=1)
    """Questions for `select: validation`, held out of the training questions."""
    select: Literal["last", "validation"] = "last"
    """Which iteration's weights the run ends in: the last one's, or those that answer most validation questions right,
    the earliest of equals. The base model counts as iteration 0. Test questions never choose."""
    seed: int = Field(257, ge=0)
    """Of the questions' choice, every draw and every M-step. The paper's seeds are 257, 521 and 1031."""
    few_shot: Literal["first", "both", "proposal"] | None = None
    """Which prompts contain the few-shot examples. `first`: the proposal's prompts, until the policy has been trained
    once; after that the proposal samples from the prompt that is trained, which closes the loop. `both`: the
    proposal's prompts and the policy's own. `proposal`: the proposal's prompts in every iteration, never the policy's
    own. null for the task's default."""
    on_invalid_row: Literal["stop", "skip"] = "stop"
    """What to do with a data row that has no answer, or one that is not allowed: stop, or leave it out and count."""
    on_overlength: Literal["stop", "skip"] = "stop"
    """What to do with a question that does not fit the model's context: stop, or leave it out and count. Its hinted
    prompt counts under every proposal, so that all of them are compared on the same questions. A server does not tell
    how long a prompt is: one that it refuses stops."""
    keep_weights: Literal["all", "last"] = "all"
    """Whether the weights of earlier iterations stay in the run folder, beside those that the next one starts from and
    those that are selected."""
    name: str | None = Field(None, min_length=1, pattern=r"^[\w.-]+$")
    """What the run is called in its folder's name; null for the proposal's type."""
    run_dir: str | None = Field(None, min_length=1)
    """Where the run is kept; null for a folder below `runs/` named after task, model, `name` and seed."""

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


def short_task(task: str) -> str:
    """A built-in task's name, or that of a task file without its folder."""
    return Path(task).stem if task.endswith((".yaml", ".yml")) else task

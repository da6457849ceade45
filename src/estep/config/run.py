"""The configuration of a run: flat sections that refuse unknown keys.

    estep train configs/demo.yaml proposal.type=star m_step.batch_size=8

`type` chooses a variant of a section. Each variant has its own defaults and refuses the keys of the others.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from estep.config.engine import AutoEngineConfig, Cluster, Count, EngineConfig, Section, whole_number_or
from estep.config.proposal import PPSProposal, ProposalConfig, can_hint, served_model

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
    replay: Annotated[int | Literal["last"], whole_number_or("last")] = 1
    """Number of iterations whose pairs are trained on: the current one and the `replay - 1` before it. A pair that was
    accepted in two of them counts twice. `last`: each attempt's last accepted pair, until a new one replaces it."""
    init: Literal["previous", "base"] = "previous"
    """The weights from which each iteration trains: those of the previous iteration (the paper) or of the base
    model."""
    lora: LoRAConfig | None = None
    """Train an adapter; null for full fine-tuning."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients with a larger norm are scaled down to this one."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of matrix multiplications; `auto` is bfloat16, or float32 on a CPU without bfloat16 instructions.
    Weights and optimizer state are float32 in either case."""
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

    @field_validator("learning_rate", mode="before", json_schema_input_type=float | tuple[float, float])
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
    weight_by: Literal["none", "answer", "importance"] = "none"
    """Weights of a question's accepted samples, which then sum to 1. `answer`: in proportion to π(y* | x, z), how
    surely the policy gives the correct answer after the rationale. `importance`: in proportion to
    (π(z, y* | x) / q(z, y* | x, y*))^τ, how likely the policy is to write the sample without the hint, compared with
    the probability that it was drawn with (with the hint, at `engine.temperature`)."""
    min_ess: float = Field(0.5, gt=0, le=1)
    """With `weight_by: importance`, τ is the largest exponent up to 1 for which the effective sample size is at least
    this share of the question's accepted samples."""
    length_normalized: bool = False
    """With `weight_by: importance`, divide each sample's log-ratio by its number of tokens."""
    resample: bool = False
    """With `weight_by`, train on one sample per question, drawn by its weight, instead of on all of them."""
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
        if self.weight_by != "importance" and (self.min_ess != 0.5 or self.length_normalized):
            raise ValueError("min_ess and length_normalized are for weight_by=importance")
        if self.resample and self.weight_by == "none":
            raise ValueError("resample draws by weight: set weight_by")
        if self.weight_by != "none" and self.max_per_question is not None:
            raise ValueError("weight_by gives each question a total weight of 1, so max_per_question must be null")
        if self.weight_by != "none" and self.reward == "graded":
            raise ValueError("weight_by weighs correct samples: set reward=exact")
        if self.weight_by != "none" and not self.resample and self.balance == "subsample":
            raise ValueError("balance=subsample counts pairs, whatever their weight: with weight_by, set reweight")
        return self


class EvaluationConfig(Section):
    """How the policy answers the held-out questions, always with the plain prompt."""

    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    samples: int = Field(1, ge=1)
    """Samples per question."""
    vote: Literal["none", "majority", "median"] = "none"
    """How the samples of a question become one prediction; `none` scores each sample by itself."""
    probabilities: bool = False
    """After each response to a test question, also compute how likely the policy finds each allowed answer behind the
    rationale: for expected scores, and for probabilities of predictions with their calibration. Only for tasks with a
    fixed set of answers (`integer` and `choice`), and not for a served model. With several samples, the probabilities
    of a vote are their mean."""

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


TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
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
    """Number of questions held out of the training questions, for `select: validation` and `diagnostics: full`."""
    select: Literal["last", "validation"] = "last"
    """Which weights the run returns: those of the last iteration, or those that answer the most validation questions
    correctly (the earliest in a tie; the base model is iteration 0). Test questions are never used to choose."""
    seed: int = Field(257, ge=0)
    """Seeds question selection, sampling and the M-step. The paper uses 257, 521 and 1031."""
    diagnostics: Literal["off", "cheap", "full"] = "cheap"
    """Figures that show what goes wrong inside the EM. `cheap`: from the samples alone. `full`: also from the
    log-probabilities of accepted samples, and of four samples per validation question after each iteration."""
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
    report_to: tuple[TrackerName, ...] = ()
    """Experiment trackers that receive the configuration and the metrics of each iteration: a name or a list of names,
    null for none. `tensorboard` writes to `tensorboard/` in the run folder; the others are set up by their own
    environment variables. Each needs the extra of its name."""
    name: str | None = Field(None, min_length=1, pattern=r"^[\w.-]+$")
    """The name of the run within its folder's name; null for the proposal's type."""
    run_dir: str | None = Field(None, min_length=1)
    """The run folder; null for a folder in `runs/` named after task, model, `name` and seed."""

    @field_validator("report_to", mode="before", json_schema_input_type=TrackerName | tuple[TrackerName, ...] | None)
    @classmethod
    def _one_or_none(cls, value: Any) -> Any:
        if value is None or value == "none":  # what TRL's trainers call it
            return ()
        return (value,) if isinstance(value, str) else value

    @field_validator("report_to")
    @classmethod
    def _each_once(cls, value: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"each tracker once, got {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _validation_is_used(self) -> Self:
        if self.select == "validation" and self.validation_size is None:
            raise ValueError("select=validation chooses on questions of its own: set validation_size")
        if self.diagnostics == "full" and self.validation_size is None:
            raise ValueError("diagnostics=full asks questions of its own: set validation_size, for example to 64")
        if self.select == "last" and self.diagnostics != "full" and self.validation_size is not None:
            raise ValueError("validation_size is for select=validation and diagnostics=full")
        return self

    @model_validator(mode="after")
    def _samples_are_weighed(self) -> Self:
        if self.filters.weight_by != "none" and getattr(self.proposal, "n", 1) < 2:
            raise ValueError(
                f"filters.weight_by={self.filters.weight_by} weighs a question's samples against each other: set "
                "proposal.n to 2 or more"
            )
        if self.filters.weight_by == "importance":
            if served_model(self.proposal) is not None:
                raise ValueError(
                    "filters.weight_by=importance needs the probabilities of the proposal's samples, which a served "
                    "model does not report"
                )
            if self.engine.temperature == 0:
                raise ValueError("filters.weight_by=importance weighs random draws: set engine.temperature above 0")
            engine = self.engine
            unchanged = engine.temperature == 1 and engine.top_p == 1 and not getattr(engine, "structured", False)
            if unchanged and not can_hint(self.proposal):
                raise ValueError(
                    f"filters.weight_by=importance corrects for the hint or the temperature, and {self.proposal.type} "
                    "at temperature 1 has neither: all weights would be equal"
                )
        return self

    @model_validator(mode="after")
    def _last_pairs_stand_alone(self) -> Self:
        if self.m_step.replay == "last":
            for key in ("weight_by", "balance"):
                if (value := getattr(self.filters, key)) != "none":
                    raise ValueError(
                        f"filters.{key}={value} weighs the pairs of one iteration against each other, and "
                        "m_step.replay=last trains on those of several: use one or the other"
                    )
        return self

    @model_validator(mode="after")
    def _chains_keep_their_state(self) -> Self:
        if self.proposal.type != "chain":
            return self
        if self.m_step.replay != "last":
            raise ValueError(
                f"proposal.type=chain trains on each chain's last accepted pair: set m_step.replay=last, "
                f"got {self.m_step.replay}"
            )
        if self.filters.max_per_question is not None:
            raise ValueError("filters.max_per_question would leave out new states of chains: set it to null")
        if self.proposal.n > 1 and self.filters.dedup:
            raise ValueError(
                "two chains of a question may reach the same text, of which filters.dedup would leave one out: with "
                "proposal.n above 1, set filters.dedup=false"
            )
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
    def scores_samples(self) -> bool:
        """Whether the correct samples of each E-step are scored."""
        return self.filters.weight_by != "none" or self.diagnostics == "full"

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
    """A dumped configuration without the keys that say where a run is computed and reported, so that it can go on
    elsewhere."""
    return {
        **{key: value for key, value in content.items() if key not in ("cluster", "report_to")},
        "engine": {key: value for key, value in content["engine"].items() if key != "data_parallel"},
        "m_step": {key: value for key, value in content["m_step"].items() if key != "devices"},
    }


def short_task(task: str) -> str:
    """A built-in task's name, or that of a task file without its folder."""
    return Path(task).stem if task.endswith((".yaml", ".yml")) else task

"""The section `proposal` of a configuration: where rationales are sampled from."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from estep.config.engine import ProposalModel, Section


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


class ChainProposal(_Sampled):
    """Markov chains (TRICE; Phan et al., 2023): PPS until a sample is accepted, then plain samples, of which a correct
    one replaces the pair. Needs `m_step.replay: last`, and with `n` above 1 `filters.dedup: false`."""

    type: Literal["chain"] = "chain"
    n: int = Field(1, ge=1)
    """Chains per question."""
    hint: str | None = None
    """The wording of the hint; null for the task's default."""


class AdaptiveProposal(_Sampled):
    """STaR with as many plain samples per question as its acceptance in the previous iteration makes worthwhile."""

    type: Literal["adaptive"] = "adaptive"
    budget: int = Field(3, ge=1)
    """The most plain samples before the hinted one. A question that needs more is hinted at once."""
    confidence: float = Field(0.5, gt=0, lt=1)
    """The probability of a correct plain sample for which a question gets enough of them."""
    n: int = Field(1, ge=1)
    """Samples per question."""
    hint: str | None = None
    """The wording of the hint; null for the task's default."""


class DirectProposal(Section):
    """The correct answer alone, with no rationale: the supervised baseline."""

    type: Literal["direct"] = "direct"


class GoldProposal(Section):
    """The worked solution of the data as the rationale, with the correct answer: the supervised baseline with
    rationales. For tasks whose rows have solutions."""

    type: Literal["gold"] = "gold"


SimpleProposal = Annotated[
    RejectionProposal | STaRProposal | PPSProposal | AdaptiveProposal | DirectProposal | GoldProposal,
    Field(discriminator="type"),
]


class MixtureComponent(Section):
    """A part of a mixture."""

    weight: float = Field(gt=0)
    """Relative to the other components' weights."""
    proposal: SimpleProposal
    """Any proposal except a chain or a mixture."""


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
    RejectionProposal
    | STaRProposal
    | PPSProposal
    | ChainProposal
    | AdaptiveProposal
    | DirectProposal
    | GoldProposal
    | MixtureProposal,
    Field(discriminator="type"),
]


def served_model(proposal: ProposalConfig) -> ProposalModel | None:
    """The served model that a proposal samples from; None if it samples from the policy."""
    return getattr(proposal, "model", None)


def can_hint(proposal: ProposalConfig) -> bool:
    """Whether some of a proposal's draws see the correct answer."""
    if isinstance(proposal, MixtureProposal):
        return any(can_hint(component.proposal) for component in proposal.components)
    return takes_hint(proposal.type)


def takes_hint(type_: str) -> bool:
    """Whether a proposal of this type has a key `hint`; False for an unknown `type`."""
    variants: tuple[type[Section], ...] = get_args(get_args(ProposalConfig)[0])
    return any(v.model_fields["type"].default == type_ and "hint" in v.model_fields for v in variants)


def hint_variant(proposal: ProposalConfig) -> str | None:
    """The hint variant that a proposal asks for; None for the task's default or if it uses no hint."""
    return getattr(proposal, "hint", None)

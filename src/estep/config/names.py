"""Names of arms and files."""

import hashlib
import re

from estep.config import ProposalConfig, RejectionProposal

BASE = "base"
"""The name of the untrained model in reports."""


_LONGEST_NAME = 120


def arm_name(proposal: ProposalConfig) -> str:
    """The default name of a proposal's arm, as in the paper's tables.

    >>> arm_name(RejectionProposal(budget=3))
    'rejection-3'
    """
    return f"rejection-{proposal.budget}" if isinstance(proposal, RejectionProposal) else proposal.type


def file_name(text: str) -> str:
    """A text as a file name, without special characters; long names are cut and end in a hash."""
    name = re.sub(r"[^\w.-]+", "-", text)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

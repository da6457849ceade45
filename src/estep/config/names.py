"""What arms and files are called."""

import hashlib
import re

from estep.config import ProposalConfig, RejectionProposal

BASE = "base"
"""What a report calls the model before training."""


_LONGEST_NAME = 120


def arm_name(proposal: ProposalConfig) -> str:
    """What a proposal is called where the study gives it no name: as in the paper's tables.

    >>> arm_name(RejectionProposal(budget=3))
    'rejection-3'
    """
    return f"rejection-{proposal.budget}" if isinstance(proposal, RejectionProposal) else proposal.type


def file_name(text: str) -> str:
    """A text as a file's name: without what systems read otherwise, and not too long."""
    name = re.sub(r"[^\w.-]+", "-", text)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

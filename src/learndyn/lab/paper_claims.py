"""Every claim about finetuned models, tested on the runs of some seeds."""

from collections.abc import Sequence

from learndyn.lab.claims import Claim
from learndyn.lab.dpo_claims import DPO_STATEMENTS
from learndyn.lab.extend_claims import EXTEND_STATEMENTS
from learndyn.lab.paper_statements import tested
from learndyn.lab.recorded import Recorded
from learndyn.lab.sft_claims import SFT_STATEMENTS


STATEMENTS = (*SFT_STATEMENTS, *DPO_STATEMENTS, *EXTEND_STATEMENTS)


def paper_claims(seeds: Sequence[Recorded]) -> tuple[Claim, ...]:
    """All statements about SFT, DPO and extend, in the paper's order."""
    return tested(STATEMENTS, seeds)

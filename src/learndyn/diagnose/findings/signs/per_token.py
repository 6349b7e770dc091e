"""The same changes token by token: favourites, labels, and former favourites."""

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Finding, Place, limits_of
from learndyn.diagnose.numbers import number


class PerToken(Finding):
    """What moved along chosen, position by position."""

    name = "per_token"
    section = "verdict"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where the run has no values per token."""
        state, off = facts.state, facts.state.off_target
        greedy, chosen, sq = state.greedy, state.chosen, state.sq
        if off is None or greedy is None or chosen is None or sq is None:
            return None
        if not chosen.counted:
            return None
        count = facts.evidence.off_target_tokens
        numbers = {
            "favourite": limits_of(greedy.per_token),
            "beyond_label": limits_of(sq.per_token),
            "off_target": limits_of(off.per_token),
            "off_target_tokens": count,
        }
        says = (
            "Per token along chosen, its own tokens changed by "
            f"{number(chosen.per_token)} nats and the model's favourites by "
            f"{number(greedy.per_token)}; at the {count} positions where the first "
            "model favoured another token, that token changed by "
            f"{number(off.per_token)}."
        )
        return cls("fine", says, numbers)

    @property
    def place(self) -> Place | None:
        """The verdict leaves it to the list."""
        return None

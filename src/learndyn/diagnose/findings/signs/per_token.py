"""Squeezing at the same positions, token by token."""

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Finding, Place, limits_of
from learndyn.diagnose.numbers import number


class PerTokenSqueeze(Finding):
    """Along chosen the favourites gain, beyond the labels, wrong ones among them."""

    name = "per_token"
    section = "verdict"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where the run has no values per token."""
        tokens = facts.tokens
        if tokens is None:
            return None
        gain, ahead = tokens.favourite.at(-1), tokens.squeeze["chosen"].at(-1)
        numbers = {
            "favourite": limits_of(gain),
            "beyond_label": limits_of(ahead),
            "off_target": limits_of(tokens.off_target),
            "off_target_tokens": tokens.off_target_tokens,
        }
        astray = "none of the first favourites was wrong"
        if tokens.off_target is not None:
            astray = f"wrong first favourites by {number(tokens.off_target, 2)}"
        shows = "shows" if tokens.fires else "does not show"
        sure = "" if tokens.sure or not tokens.fires else ", but not surely"
        says = (
            f"Token by token squeezing {shows}{sure}: along chosen the favourites "
            f"changed by {number(gain, 2)} nats per token, {number(ahead, 2)} beyond "
            f"the labels; {astray}."
        )
        return cls("watch" if tokens.sure else "fine", says, numbers)

    @property
    def place(self) -> Place | None:
        """The verdict leaves it to the list."""
        return None

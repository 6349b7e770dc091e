"""The part of a run's page about single prompts: which were squeezed, and by what."""

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import bracket, nats
from learndyn.diagnose.prompts import (
    ByPrompt,
    ChosenTokens,
    PromptRow,
    by_prompt,
    token_texts,
)
from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory
from learndyn.show.page import (
    Markup,
    cut,
    details,
    table,
    text as escaped,
)


_MOST = 8
"""Prompts in the table: the most squeezed ones."""

_POSITIONS = 8
"""Positions of the most squeezed answer: those whose own token fell most."""


def prompts_section(trajectory: Trajectory, *, text: bool) -> str:
    """The most squeezed prompts, and the tokens that gained; "" where there is nothing
    to show. With `text` false no prompt and no token is on the page."""
    if len(trajectory.steps) < 2 or "chosen" in trajectory.means_only:
        return ""
    squeezing = by_prompt(trajectory)
    if squeezing is None or not squeezing.rows:
        return ""
    share = squeezing.squeezed
    few = sum(row.squeezed for row in squeezing.rows)
    parts = [
        f"<h3>{few} of {len(squeezing.rows)} prompts were squeezed</h3>",
        f"<p>Squeezed: the greedy path rose and chosen fell by {trajectory.unit} "
        f"{squeezing.step:g}. That is {escaped(_percent(share))} of the prompts. Where "
        "next to nothing moves, one prompt in four does so by chance.</p>",
        _table(trajectory, squeezing, text),
        _tokens(trajectory, squeezing) if text else "",
    ]
    return "".join(parts)


def _table(trajectory: Trajectory, squeezing: ByPrompt, text: bool) -> str:
    head = ["prompt", "chosen", "rejected", "greedy path", "off-target"]
    rows = [
        [_named(trajectory, row, text), *_changes(row)]
        for row in squeezing.rows[:_MOST]
    ]
    note = (
        "The most squeezed prompts first; changes since the start, in nats per "
        "response. off-target: of the first model's favourites that are not chosen's "
        "tokens."
    )
    return table(head, rows) + f"<p class='muted'>{note}</p>"


def _changes(row: PromptRow) -> list[str]:
    values = (row.chosen, row.rejected, row.greedy, row.off_target)
    return ["unknown" if value is None else nats(value) for value in values]


def _named(trajectory: Trajectory, row: PromptRow, text: bool) -> Markup:
    name = escaped(row.prompt_id)
    if not text:
        return Markup(name)
    prompt = trajectory.probes["prompt"][row.probe].as_py()
    about = escaped(cut(prompt.strip(), 90))
    return Markup(f"{name}<div class='muted'>{about}</div>", running=True)


def _tokens(trajectory: Trajectory, squeezing: ByPrompt) -> str:
    """Which tokens gained as wrong favourites, over all prompts and in one."""
    tokens = ChosenTokens.of(trajectory)
    if tokens is None:
        return ""
    texts = _texts(trajectory)
    gained = [
        [
            _token(item.token, texts),
            nats(item.gain, 2),
            f"{item.mass_before:.2f}",
            f"{item.mass:.2f}",
            f"{item.positions_before} → {item.positions}",
        ]
        for item in tokens.favourites()
    ]
    parts = []
    if gained:
        head = ("token", "gain", "first", "last", "positions")
        note = (
            "Probability of a token where it is the model's favourite and not chosen's "
            "own, summed over all positions of chosen."
        )
        inner = table(head, gained) + f"<p class='muted'>{note}</p>"
        parts.append(details("Tokens that gained as wrong favourites", inner))
    worst = squeezing.rows[0]
    places = sorted(tokens.rows(worst.prompt_id), key=lambda r: r.label_change)
    if places and worst.squeezed:
        rows = [
            [
                str(place.position),
                _token(place.label, texts),
                nats(place.label_change, 2),
                _token(place.first_favourite, texts),
                nats(place.first_favourite_change, 2),
                _token(place.last_favourite, texts),
            ]
            for place in places[:_POSITIONS]
        ]
        head = (
            *("position", "chosen's token", "change"),
            *("first favourite", "change", "favourite now"),
        )
        name = f"Token by token: the most squeezed prompt, {worst.prompt_id}"
        parts.append(details(name, table(head, rows)))
    return "".join(parts)


def _token(token: int, texts: dict[int, str]) -> str:
    """A token as text where it is known, else its id."""
    return repr(texts[token]) if token in texts else f"id {token}"


def _texts(trajectory: Trajectory) -> dict[int, str]:
    try:
        return dict(token_texts(trajectory))
    except BadInput:  # a record that cannot be read is told of in its own section
        return {}


def _percent(share: Interval) -> str:
    scaled = Interval(100 * share.mean, 100 * share.low, 100 * share.high, share.n)
    return f"{100 * share.mean:.0f} % {bracket(scaled, 0)}".replace("+", "")

"""The verdict's first sentences: did chosen move, where did its probability go, and is
it a bug?

Chosen is what people ask about, so the answer follows its interval: it fell or rose
where the whole 95 % interval says so and the size counts (0.01 nats per token), else
"did not clearly change". The name of the state follows, never the other way round.
Sizes are in nats, and as rewards/chosen = beta x change where the loss has a reference.

What is said depends on the method (`RunInfo.family`): only a loss that pushes rejected
down can be said to squeeze by that push, and only SFT should raise chosen for sure.
"""

from collections.abc import Iterator, Sequence

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Finding
from learndyn.diagnose.intervals import known
from learndyn.diagnose.numbers import counted, number, signed
from learndyn.diagnose.state import DELTA, Move, State, StateReport
from learndyn.record.run_info import RunInfo


_SQUEEZED = "onto tokens the model already favoured"

_MEANS: dict[State, str] = {
    "FIT": "chosen gained",
    "SQUEEZE": "the model's favourites gained, and more than chosen",
    "DISPLACED": "chosen fell, and its favourites did not take that up",
    "COLLAPSE": "everything watched fell, its favourites too",
    "STILL": f"nothing moved by {DELTA:g} nats per token",
    "UNDECIDED": "these prompts cannot tell",
}


def answer(facts: Facts, *, faulty: bool = False) -> str:
    """What happened to chosen: the first sentence of a run without a fault. Where a
    fault stands before it (`faulty`), nothing is called as it should be."""
    state = facts.state
    if state.reason is not None:
        return f"What happened to chosen cannot be judged: {state.reason}"
    chosen = state.chosen
    assert chosen is not None  # it is judged
    if state.state == "STILL":
        if chosen.nats.mean == chosen.nats.low == chosen.nats.high == 0:
            return "Nothing moved: chosen has the log-probability that it began with."
        return f"Nothing moved by a size that counts: chosen changed by {_size(facts)}."
    if state.state == "COLLAPSE":
        return _collapse(facts, state)
    if chosen.matters and chosen.nats.below_zero:
        return f"Chosen fell: {_size(facts)}{_whither(facts, state)}."
    if chosen.matters:
        return _rose(facts, state, faulty)
    if not known(chosen.nats):
        verb = "fell" if chosen.nats.mean < 0 else "rose"
        return f"Chosen {verb}: {_size(facts)}, a mean without an interval."
    return _held(facts, state, faulty)


def _collapse(facts: Facts, state: StateReport) -> str:
    if degenerate(state):
        how = "everything watched fell, the model's own favourites too"
        if state.new_peaks:
            how = "it is sure of tokens now that it did not favour before"
        return f"The model has degenerated: {how}. Chosen fell, {_size(facts)}."
    return (
        f"Chosen fell: {_size(facts)}, and so did every other watched answer and the "
        "model's own favourites: probability went to answers that nobody watches."
    )


def degenerate(state: StateReport) -> bool:
    """Whether a collapse is so deep that the model can hardly answer: new peaks, or a
    nat per token lost along chosen, which leaves a token 37 % of its probability."""
    if state.state != "COLLAPSE" or state.chosen is None:
        return False
    return state.new_peaks or state.chosen.surely.mean <= -1


def _whither(facts: Facts, state: StateReport) -> str:
    """Where the probability that chosen lost went, as the end of a sentence."""
    if state.state == "SQUEEZE":
        cause = _because(facts)
        if cause:
            return (
                f", {cause} the push on rejected squeezes chosen's probability "
                f"{_SQUEEZED}"
            )
        return f", and probability moved {_SQUEEZED}"
    if state.state != "DISPLACED":
        return "; where its probability went, these prompts cannot tell"
    greedy, off = state.greedy, state.off_target
    if greedy is not None and greedy.up and off is not None and off.down:
        return (
            ", and its probability moved to tokens that the model did not favour before"
        )
    if greedy is not None and greedy.up:
        return ", while the model's own favourites gained"
    if greedy is not None and (greedy.down or greedy.still):
        how = "fell too" if greedy.down else "held"
        return (
            ", and its probability did not go to the model's own favourites: they "
            f"{how}"
        )
    return ", and the model's own favourites did not clearly gain it"


def _because(facts: Facts) -> str | None:
    """ "because" where recorded updates carry it, "probably because" where rejected was
    pushed and surely fell; None where no push is known, or the margin fell with it."""
    rejected, margin = facts.state.rejected, facts.state.margin
    pushed = facts.trajectory.run.info.pushes_rejected
    if not pushed or rejected is None or not rejected.down:
        return None
    if margin is not None and margin.matters and margin.nats.below_zero:
        return None
    if facts.why is not None and facts.why.carries and not facts.why.by_push:
        return None
    carried = facts.why is not None and facts.why.because_of_push
    return "because" if carried else "probably because"


def _rose(facts: Facts, state: StateReport, faulty: bool) -> str:
    if state.state == "SQUEEZE" and state.sq is not None:
        return (
            f"Chosen rose: {_size(facts)}, but the model's own favourites gained "
            f"{number(state.sq.nats)} nats more: probability moves {_SQUEEZED}."
        )
    size, family = _size(facts), facts.trajectory.run.info.family
    should = (
        "Chosen rose: " if faulty else "Training does what it should: chosen rose by "
    )
    if family in ("sft", "unpaired"):
        return f"{should}{size}."
    margin = state.margin
    if family != "preference" or margin is None or not margin.matters:
        return f"Chosen rose: {size}."
    if margin.nats.below_zero:
        return f"Chosen rose: {size}, and rejected rose more."
    return f"{should}{size}, and the margin grew by {number(margin.nats)} nats."


def _held(facts: Facts, state: StateReport, faulty: bool) -> str:
    """Chosen did not clearly change."""
    chosen, margin = state.chosen, state.margin
    assert chosen is not None
    held = "did not clearly change"
    if chosen.still or chosen.nats.excludes_zero:
        held = f"changed by less than {DELTA:g} nats per token"
    moved = f"; some probability moved {_SQUEEZED}" if state.state == "SQUEEZE" else ""
    preference = facts.trajectory.run.info.family == "preference"
    if preference and margin is not None and margin.up:
        faulty = faulty or _favourites_took_over(state)
        should = "T" if faulty else "Training does what it should: t"
        return (
            f"{should}he margin grew by {number(margin.nats)} nats, and chosen {held}, "
            f"{_size(facts)}{moved}."
        )
    text = f"Chosen {held}: {_size(facts)}{moved}"
    if preference and margin is not None:
        text += f"; the margin changed by {number(margin.nats)}"
    return text + "."


def _favourites_took_over(state: StateReport) -> bool:
    """Whether favourites gained too far beyond chosen to be praised."""
    far = state.sq is not None and state.sq.surely.mean > 0.05
    return state.state == "SQUEEZE" and far


def _unclear(move: Move) -> str:
    """The verb of a change that is no clear rise or fall of a size that counts."""
    if not move.known:
        return "changed"
    return "hardly changed" if move.nats.excludes_zero else "did not clearly change"


def _size(facts: Facts) -> str:
    """Chosen's change per response, per token and as the reward."""
    move = facts.state.chosen
    assert move is not None
    more = ", ".join(_other_units(move, facts, "chosen"))
    return f"{number(move.nats)} nats per response" + (f" ({more})" if more else "")


def _other_units(move: Move, facts: Facts, kind: str) -> Iterator[str]:
    if move.counted:
        yield f"{signed(move.per_token.mean)} per token"
    beta = facts.trajectory.run.info.reward_beta
    if beta is not None:
        yield f"rewards/{kind} {signed(beta * move.nats.mean)}"


def is_it_a_bug(facts: Facts, findings: Sequence[Finding]) -> str:
    """The second sentence."""
    problems = [finding for finding in findings if finding.severity == "problem"]
    state, info = facts.state, facts.trajectory.run.info
    if problems:
        return problems[0].bug(facts)
    if state.reason is not None:
        return "Whether it is a bug cannot be told from this run."
    chosen = state.chosen
    assert chosen is not None
    if state.state == "STILL":
        return "No sign of a bug, and no effect yet."
    fell = chosen.nats.mean < 0 if not chosen.known else chosen.nats.below_zero
    if not (fell and (chosen.matters or not chosen.known)):
        doubts = [f.doubt for f in findings if f.severity == "watch" and f.doubt]
        return f"No sign of a bug{f', but look at {doubts[0]}' if doubts else ''}."
    if info.family == "preference":
        return _of_pairs(state)
    return f"Whether it is a bug cannot be told: {_why_not(info)}"


def _of_pairs(state: StateReport) -> str:
    """Whether it is a bug that chosen fell, of training on pairs."""
    margin, rejected = state.margin, state.rejected
    if margin is not None and margin.up:
        return (
            "Probably not a bug: the loss rewards the margin alone, and the margin "
            f"grew by {number(margin.nats)} nats{_price(state)}."
        )
    if rejected is not None and rejected.down:
        return "Probably not a bug: the loss pushed rejected down, and it fell."
    return (
        "Whether it is a bug cannot be told: neither did rejected surely fall nor "
        "the margin surely grow."
    )


def _why_not(info: RunInfo) -> str:
    """Why it cannot be told of a method without pairs, as the end of a sentence."""
    name = info.method.upper() or "this method"
    if info.family == "sft":
        return "SFT should raise chosen, and these prompts are too few to say more."
    if info.family == "unpaired":
        return (
            f"{name} raises desirable answers, so look whether rewards/chosen rises in "
            "its log, and whether these prompts are like the training data."
        )
    if info.family == "online":
        return (
            f"{name} trains on the model's own samples, so look at the reward that it "
            "logs."
        )
    if info.method:
        return f"what {info.method} should do to these answers is not known here."
    return "run.json does not say by which method the run was trained."


def _price(state: StateReport) -> str:
    """What a margin that grew has cost, where all that is watched fell."""
    if state.state != "COLLAPSE":
        return ""
    return "; but everything watched fell with it, so look at answers before you use it"


def in_units(facts: Facts) -> str | None:
    """Rejected and the margin, and what share of the margin is rejected's fall."""
    state = facts.state
    rejected, margin, chosen = state.rejected, state.margin, state.chosen
    if rejected is None or margin is None or chosen is None:
        return None
    more = ", ".join(_other_units(rejected, facts, "rejected"))
    text = f"Rejected changed by {number(rejected.nats)} nats per response"
    text += f" ({more})" if more else ""
    if facts.sft:
        return text + "."
    text += f", the margin by {number(margin.nats)}"
    grew = margin.matters and margin.nats.above_zero
    if not grew or not rejected.matters:
        return text + "."
    if rejected.nats.above_zero:
        return f"{text}: chosen rose more than rejected."
    if not chosen.matters:
        return f"{text}: it grew by the fall of rejected alone."
    if chosen.nats.above_zero:
        share = -rejected.nats.mean / margin.nats.mean
        return f"{text}, {100 * share:.0f} % of it by the fall of rejected."
    times = rejected.nats.mean / chosen.nats.mean
    more = f"{times:.0f} times as far as" if times >= 1.95 else "further than"
    return f"{text}: both fell, rejected {more} chosen."


def where_it_went(facts: Facts) -> str | None:
    """Greedy path, SQ and former favourites."""
    state = facts.state
    greedy = state.greedy
    if greedy is None:
        return None
    verb = _verb(greedy)
    if greedy.known and greedy.still:
        verb = f"stayed within {DELTA:g} nats per token"
    text = (
        f"The model's present favourite tokens along chosen (greedy path) {verb}: "
        f"{number(greedy.nats)} nats per response"
    )
    off = state.off_target
    if off is None:
        return f"{text}; no values per token are recorded."
    return (
        f"{text}; those that it favoured at the start instead of chosen's own "
        f"{_verb(off)}: {number(off.per_token)} nats per token."
    )


def _verb(move: Move) -> str:
    if not move.matters:
        return _unclear(move)
    return "gained" if move.nats.above_zero else "lost"


def how_many(facts: Facts) -> str | None:
    """How many watched kinds fell and rose, by sizes that count."""
    state = facts.state
    if not state.kinds:
        return None
    moves = list(state.kinds.values())
    of = f"Of {counted(len(moves), 'watched kind')} of answer"
    clear = [move for move in moves if move.matters]
    if not any(move.known for move in moves):
        clear, of = moves, "By their means alone, " + of.replace("Of", "of")
    fell = sum(move.nats.mean < 0 for move in clear)
    rest = len(moves) - len(clear)
    text = f"{of} {fell} fell and {len(clear) - fell} rose"
    text += f"; {rest} did not clearly change by a size that counts" if rest else ""
    text += "."
    if state.labels:
        names = ", ".join(state.labels)
        text += (
            f" Left out: {names}, the same text for most prompts; they decide nothing."
        )
    return text


def called(facts: Facts) -> str:
    """The state's name, how sure it is and since when; empty where there is none."""
    state = facts.state
    sure = "sure" if state.sure else "not sure"
    if state.reason is not None:
        return ""
    after = counted(int(facts.trajectory.steps[-1]), facts.unit)
    means = _MEANS[state.state]
    if state.new_peaks:
        means = "the model is sure of new tokens"
    elif state.state == "FIT" and state.chosen is not None and state.chosen.still:
        means = "chosen held while the margin grew"
    about = f"{sure} over {counted(state.prompts, 'prompt')} of this run"
    if state.onset_step is not None:
        about += f", since {facts.unit} {state.onset_step}"
    return (
        f"State after {after}: {state.state} ({means}), {about}; means over the last "
        "fifth of the observations."
    )

"""The losses: what each asks of every response token (`push` = dL/dlogp), and by name.

`docs/losses.md` has them side by side.
"""

import dataclasses
from typing import Any, Literal, get_origin

from learndyn.errors import BadInput, nearest
from learndyn.forces.losses.loss import Loss, Responses
from learndyn.forces.losses.preference import (
    CDPO,
    CWDPO,
    DPO,
    DPOP,
    IPO,
    ORPO,
    SPPO,
    CalDPO,
    DPOShift,
    GateDPO,
    IPOMean,
    SimPO,
    SLiC,
)
from learndyn.forces.losses.unpaired import (
    GRPO,
    KTO,
    NPO,
    SFT,
    GradientAscent,
    SFTMean,
    Unlikelihood,
)


__all__ = ["LOSSES", "Loss", "Responses", "loss_named"]

LOSSES: dict[str, type[Loss]] = {
    loss.name: loss
    for loss in (
        *(SFT, SFTMean, DPO, CDPO, IPO, IPOMean, SLiC, SimPO, KTO, ORPO, SPPO),
        *(DPOP, DPOShift, CalDPO, GateDPO, CWDPO),
        *(Unlikelihood, GradientAscent, NPO, GRPO),
    )
}
"""Every loss by its name."""


def loss_named(name: str, **options: Any) -> Loss:
    """The loss of that name; options as text (from a command line) or as they are.

    Raises:
        BadInput: if the loss or option is unknown (close ones are named), or the value
            of an option cannot be used.
    """
    if name not in LOSSES:
        raise BadInput(
            f"the loss {name!r} is unknown.{nearest(name, LOSSES)} "
            f"Losses: {', '.join(LOSSES)}."
        )
    known = {field.name: field for field in dataclasses.fields(LOSSES[name])}
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise BadInput(
                f"loss {name} has no option {option!r}; {has}.{nearest(option, known)}"
            )
    read = {k: _read(f"{name}: {k}", v, known[k].type) for k, v in options.items()}
    return LOSSES[name](**read)


def _read(what: str, value: Any, kind: Any) -> Any:
    """An option as its field's type: a number, or a word (which the loss checks)."""
    if get_origin(kind) is Literal:
        return value
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{what} is {value!r}: give a number.") from error

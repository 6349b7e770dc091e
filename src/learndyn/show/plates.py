"""A plate: one figure of the paper's, drawn anew, for both widths of a page."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from learndyn.show.canvas import NARROW, WIDE, Sheet, save
from learndyn.show.page import figure, text
from learndyn.show.panels import NothingToDraw


@dataclass(frozen=True)
class Plate:
    """One figure, and which of the paper's it answers to."""

    name: str
    """Stem of its files, such as `dpo_chosen_and_rejected`; unique."""
    paper: str
    """The paper's figure or section, such as "Figure 4"."""
    draw: Callable[[int], Sheet]
    """Draws it at a width in CSS pixels; its title says what is seen, from the data."""
    about: str = ""
    """What is shown and from which data, for the line below the figure."""

    @cached_property
    def wide(self) -> Sheet:
        """For a desktop page and for print."""
        return self.draw(WIDE)

    @property
    def narrow(self) -> Sheet:
        """For a phone."""
        return self.draw(NARROW)

    @property
    def is_empty(self) -> bool:
        """Whether no run has what it would show."""
        try:
            return self.wide is None
        except NothingToDraw:
            return True


def drawn(plate: Plate, folder: Path) -> str:
    """A plate as HTML, for both widths, with its line below; its files go to `folder`.

    `folder` must be there.
    """
    wide = plate.wide
    save(wide, folder / plate.name)
    return (
        figure(wide, plate.narrow, wide.title)
        + f"<p class='muted'>{text(plate.paper)}. {text(plate.about)}</p>"
    )

"""The one exception that means: the input is at fault, and the message says how."""

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """Input that cannot be used as given.

    The message says what is wrong, where, with which numbers, and what to do about
    it. The command line prints it without a traceback and exits with status 2.
    """


def listed(problems: list[str], limit: int = 20) -> str:
    """Join `problems` as indented lines: the first `limit`, the rest counted."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """ " Did you mean X?" for a mistyped name, or "" if nothing is like it."""
    close = difflib.get_close_matches(name, list(known), n=limit)
    return f" Did you mean {' or '.join(close)}?" if close else ""

"""The one exception that means: the input is at fault, and the message says how."""


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

"""The exceptions whose message says what is at fault and what to do about it."""

import difflib
import importlib.util
from collections.abc import Iterable


class BadInput(ValueError):
    """Input that cannot be used as given.

    The message says what is wrong, where, with which numbers, and what to do about
    it. The command line prints it without a traceback and exits with status 2.
    """


_EXTRA_OF = {
    **dict.fromkeys(("torch", "transformers"), "measure"),
    **dict.fromkeys(("trl", "datasets", "accelerate", "peft"), "train"),
    "sklearn": "paper",
}
"""Which extra of ours installs a package that reading a run does without."""


class NotInstalled(BadInput, ImportError):
    """A package of an extra is needed and not installed; the message names both."""

    @classmethod
    def of(cls, error: ModuleNotFoundError) -> "NotInstalled | None":
        """What to say of a failed import; None if no extra of ours has the package."""
        package = (error.name or "").split(".")[0]
        if package not in _EXTRA_OF:
            return None
        return cls(
            f"{package} is not installed. Reading a run does not need it; this does. "
            f"Install it with: pip install 'learndyn[{_EXTRA_OF[package]}]'"
        )


def needs(*packages: str) -> None:
    """Check that packages are installed, importing none.

    A room that measures calls it before its first module imports torch.

    Raises:
        NotInstalled: if one of them is not.
    """
    for name in packages:
        if importlib.util.find_spec(name) is None:
            missing = NotInstalled.of(ModuleNotFoundError(name=name))
            assert missing is not None, name
            raise missing


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

"""Any value as JSON can hold it, and any text as UTF-8 can."""

import json
import math
import re
from typing import Any


HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def to_plain(value: Any) -> Any:
    """The same value as JSON can hold it: NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def dumps(value: Any, indent: int | None = None) -> str:
    """A value as JSON text that UTF-8 can hold."""
    text = json.dumps(to_plain(value), indent=indent, ensure_ascii=False)
    # A lone surrogate, from a file name that is no UTF-8, becomes JSON's own \udc80.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def storable(text: str) -> str:
    """The same text with U+FFFD for lone surrogates, which no file of text holds."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def visible(text: str) -> str:
    """Show a sign for what no page or terminal may be given: control characters, lone
    surrogates, and the marks that turn the direction of all text after them."""
    return HIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)

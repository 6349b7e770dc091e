"""What a notebook shows of a value: a caption and a table, every text escaped."""

from collections.abc import Sequence
from html import escape


def table_html(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str | int]]
) -> str:
    """A table whose first column is text and whose other columns are numbers or text.

    Everything is escaped: probes and run names are others' text.
    """
    return (
        f"<p>{escape(caption)}</p><table><thead>{_row('th', head)}</thead>"
        f"<tbody>{''.join(_row('td', row) for row in rows)}</tbody></table>"
    )


def sentences_html(head: str, sentences: Sequence[str]) -> str:
    """A heading and a list of sentences, escaped."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<p><b>{escape(head)}</b></p><ul>{items}</ul>"


def shortened(text: str, letters: int = 60) -> str:
    """One line of at most so many letters, quoted."""
    return repr(text if len(text) <= letters else text[: letters - 1] + "…")


def _row(cell: str, values: Sequence[str | int]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(str(v))}</{cell}>' for v in values)}</tr>"

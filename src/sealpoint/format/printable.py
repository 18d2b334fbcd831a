"""Text from a checkpoint on its way to a terminal or a log."""

from __future__ import annotations


def printable(text: str | bytes) -> str:
    """The text without control characters, which could steer a terminal or hide what was printed."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text)

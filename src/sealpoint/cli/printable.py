"""Text from a checkpoint on its way to a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text without control characters, which could steer a terminal or hide what was printed."""
    return "".join(c if c.isprintable() else "?" for c in text)

"""How far a long operation is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """done: bytes of plaintext (or of file, where nothing is decrypted); total: 0 if unknown.

    zero, compressed: shares of `done` that were all-zero chunks or got smaller by compression.
    """

    done: int
    total: int = 0
    zero: int = 0
    compressed: int = 0


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """The report of those who do not want one."""

"""Text from a checkpoint on its way to a terminal."""

from __future__ import annotations

from sealpoint.format.printable import printable

__all__ = ["printable"]

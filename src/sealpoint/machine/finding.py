"""One line of what `doctor` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sealpoint.errors import SealpointError

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """level: fail is what keeps sealing from working or lets plaintext out; hint: what to do about it."""

    level: Level
    topic: str
    text: str
    hint: str = ""


def ok(topic: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", topic, text)


def warn(topic: str, text: str, hint: str = "") -> Finding:
    """Works, but somebody should know."""
    return Finding("warn", topic, text, hint)


def fail(topic: str, text: str, hint: str = "") -> Finding:
    """Does not work, or lets plaintext out."""
    return Finding("fail", topic, text, hint)


def guarded(topic: str, check: Callable[[], Sequence[Finding]]) -> list[Finding]:
    """What a check finds; one that cannot be made is a finding, too."""
    try:
        return list(check())
    except SealpointError as error:
        return [fail(topic, error.message, error.hint or "")]
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        return [fail(topic, f"cannot be checked: {error.strerror or type(error).__name__}{name}")]

"""What the agent counts, in the text format of Prometheus (0.0.4), and whether it is well.  Thread-safe."""

from __future__ import annotations

import threading
import time
from typing import Final, NamedTuple

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_STUCK: Final = (
    120.0  # seconds without a sign of life, beside what a store is given for its acknowledgement
)


class _Figure(NamedTuple):
    kind: str
    help: str


_FIGURES: Final = {
    "sealed_total": _Figure("counter", "Archives that the store has acknowledged."),
    "failed_total": _Figure("counter", "Attempts that failed and are repeated."),
    "refused_total": _Figure("counter", "Archives that cannot be sealed as they are."),
    "gone_total": _Figure("counter", "Archives that someone else removed before they were sealed."),
    "expired_total": _Figure("counter", "Sealed files that retention has removed from the store."),
    "plain_bytes_total": _Figure("counter", "Bytes of the archives that were sealed."),
    "sealed_bytes_total": _Figure("counter", "Bytes of the sealed files."),
    "seconds_total": _Figure("counter", "Seconds that archives needed until they were stored."),
    "queue_length": _Figure("gauge", "Archives that were taken over and are not stored yet."),
    "refused": _Figure("gauge", "Archives that lie in the clear because they were refused."),
    "unfinished": _Figure("gauge", "Files that are still being written."),
    "oldest_plain_seconds": _Figure("gauge", "Age of the oldest file that lies in the clear."),
    "store_up": _Figure("gauge", "Whether the store took the last one."),
    "last_success_seconds": _Figure("gauge", "When an archive was last stored, since 1970."),
}


class Figures:
    """Counts, and the reasons why the agent is not ready."""

    def __init__(self, patience: float) -> None:
        """patience: seconds for which one step may be silent."""
        self._lock = threading.Lock()
        self._values: dict[str, float] = dict.fromkeys(_FIGURES, 0)
        self._values["store_up"] = 1
        self._problems: dict[str, str] = {"start": "it has not looked into the directories yet"}
        self._patience = patience + _STUCK
        self._alive = time.monotonic()

    def add(self, name: str, value: float = 1) -> None:
        """Count."""
        with self._lock:
            self._values[name] += value

    def set(self, name: str, value: float) -> None:
        """A gauge."""
        with self._lock:
            self._values[name] = value

    def value(self, name: str) -> float:
        """As it is now."""
        with self._lock:
            return self._values[name]

    def problem(self, topic: str, text: str | None) -> bool:
        """Why it is not ready, None: it is, as far as this topic goes.  Returns whether that is news."""
        with self._lock:
            news = self._problems.get(topic) != text
            if text is None:
                self._problems.pop(topic, None)
            else:
                self._problems[topic] = text
            return news

    def live(self) -> None:
        """A sign of life."""
        self._alive = time.monotonic()

    def is_alive(self) -> bool:
        """Whether it goes on."""
        return time.monotonic() - self._alive < self._patience

    def problems(self) -> list[str]:
        """Why it is not ready."""
        with self._lock:
            return [self._problems[topic] for topic in sorted(self._problems)]

    def text(self) -> str:
        """All figures."""
        with self._lock:
            values = dict(self._values)
        lines = []
        for name, figure in _FIGURES.items():
            full = f"sealpoint_agent_{name}"
            lines += [
                f"# HELP {full} {figure.help}",
                f"# TYPE {full} {figure.kind}",
                f"{full} {values[name]:.17g}",
            ]
        return "\n".join(lines) + "\n"

"""Runs all detectors over a buffer: one pass for the triggers, a close look where one hits.

With Hyperscan (the extra `scan`) the pass reads several GB/s and other threads run meanwhile; without, Python's `re`
finds the same, some twenty times slower.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from sealpoint.errors import SystemEnvironmentError
from sealpoint.inspect.detectors import DETECTORS, GUESS, Hit

_MOST_TRIGGERS: Final = (
    20_000  # in one piece: memory that is made of triggers must not take for ever
)
_MOST_SECRETS: Final = 100_000  # that are told apart when they are counted

Triggers = Callable[[memoryview], list[tuple[int, int]]]


@functools.cache
def _expressions() -> list[tuple[int, bytes]]:
    """(detector, expression)."""
    return [(n, trigger) for n, detector in enumerate(DETECTORS) for trigger in detector.triggers]


def has_hyperscan() -> bool:
    """Whether the extra is installed."""
    try:
        import hyperscan  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def _database() -> Any:
    import hyperscan

    expressions = [expression for _, expression in _expressions()]
    database = hyperscan.Database()
    database.compile(
        expressions=expressions,
        ids=list(range(len(expressions))),
        elements=len(expressions),
        flags=[hyperscan.HS_FLAG_DOTALL] * len(expressions),
    )
    return database


def fast_triggers() -> Triggers:
    """By Hyperscan, for one thread.  Raises SystemEnvironmentError where it is not installed."""
    try:
        import hyperscan
    except ImportError:
        raise SystemEnvironmentError(
            "scanning while dumping needs Hyperscan",
            hint=f"install it for sealpoint: {sys.executable} -m pip install hyperscan",
        ) from None
    database = _database()
    scratch = database.scratch.clone()
    detectors = [n for n, _ in _expressions()]

    def triggers(view: memoryview) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []

        def add(number: int, _start: int, end: int, _flags: int, _context: object) -> bool | None:
            found.append((end, detectors[number]))
            return True if len(found) >= _MOST_TRIGGERS else None

        try:
            database.scan(view, match_event_handler=add, scratch=scratch)
        except hyperscan.ScanTerminated:
            pass  # enough is enough
        return found

    return triggers


def slow_triggers() -> Triggers:
    """By Python's `re`."""
    alternatives = b"|".join(
        b"(?P<d%d>%s)" % (n, re.sub(rb"^\(\?i\)(.*)", rb"(?i:\1)", expression, flags=re.DOTALL))
        for n, (_, expression) in enumerate(_expressions())
    )
    compiled = re.compile(alternatives, re.DOTALL)
    detectors = [n for n, _ in _expressions()]

    def triggers(view: memoryview) -> list[tuple[int, int]]:
        found = []
        for match in compiled.finditer(view):
            assert match.lastgroup is not None
            found.append((match.end(), detectors[int(match.lastgroup[1:])]))
            if len(found) >= _MOST_TRIGGERS:
                break
        return found

    return triggers


class Scanner:
    """For one thread."""

    def __init__(self, triggers: Triggers | None = None) -> None:
        """triggers: default is the fastest that is installed."""
        self._triggers = triggers or (fast_triggers() if has_hyperscan() else slow_triggers())

    def scan(self, view: memoryview) -> list[Hit]:
        """Secrets in a buffer, in order, none overlapping another: what is recognised counts before what is guessed."""
        hits: dict[tuple[int, str], Hit] = {}
        for at, number in self._triggers(view):
            for hit in DETECTORS[number].find(view, at):
                known = hits.get((hit.start, hit.kind))
                if known is None or known.end < hit.end:
                    hits[hit.start, hit.kind] = hit
        kept: list[Hit] = []
        for hit in sorted(hits.values(), key=lambda h: (h.start, -h.end)):
            if not kept or hit.start >= kept[-1].end:
                kept.append(hit)
            elif kept[-1].kind == GUESS != hit.kind:
                kept[-1] = hit
        return kept


def _try_compile() -> None:
    with contextlib.suppress(Exception):
        _database()  # whoever scans tries again, and reports it


class Tally:
    """Counts secrets while a dump is sealed; called with each chunk by the threads that seal.

    Never raises: a scan must not fail a dump.  Secrets that straddle two chunks are not seen: `sealpoint secrets` does.
    """

    def __init__(self) -> None:
        """Raises SystemEnvironmentError where Hyperscan is not installed."""
        if not has_hyperscan():
            fast_triggers()
        # A tenth of a second of compiling, while CRIU gets ready to freeze the tree.
        self._compiling = threading.Thread(target=_try_compile, name="compile", daemon=True)
        self._compiling.start()
        self._local = threading.local()
        self._lock = threading.Lock()
        self._seen: set[bytes] = set()
        self.counts: Counter[str] = Counter()
        self.failed: str = ""

    def __call__(self, data: memoryview) -> None:
        try:
            scanner = getattr(self._local, "scanner", None)
            if scanner is None:
                self._compiling.join()
                scanner = self._local.scanner = Scanner(fast_triggers())
            for hit in scanner.scan(data):
                self._count(hit.kind, data[hit.start : hit.end])
        except Exception as error:  # noqa: BLE001 - see above
            self.failed = type(error).__name__

    def _count(self, kind: str, secret: memoryview) -> None:
        digest = hashlib.blake2b(secret, digest_size=16).digest()
        with self._lock:
            if digest not in self._seen:
                if len(self._seen) < _MOST_SECRETS:
                    self._seen.add(digest)
                self.counts[kind] += 1

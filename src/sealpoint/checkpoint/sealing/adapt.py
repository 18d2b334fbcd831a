"""Choosing how hard to compress while a file is being sealed: the policy "auto".

Of source, sealing threads and sink, one is the bottleneck.  The writing thread sees which: it waits for something to
seal (source), for something being sealed (CPU), or for its own writes (sink).  Where the sink is slow, compressing
harder makes it carry less; where the CPU is, less compression is faster.  The idea is that of `zstd --adapt`; but a
step that was measured to be slower is not taken again for a while, and a slow sink that takes much at once, because it
had less to do before, is not taken for a fast one.

Out of scope: whether one chunk gains at all, which a sample of it decides (`codec`).
"""

from __future__ import annotations

import time
from typing import Final

# What is tried, from the least work to the most: (codec policy, level of zstd).
LEVELS: Final = (("none", 0), ("lz4", 0), ("zstd", 1), ("zstd", 3), ("zstd", 6), ("zstd", 9))
_START: Final = 1
_SETTLE: Final = (
    3  # chunks after a decision that are of the level before, or half and half: not measured
)
_WINDOW: Final = 5  # chunks measured for the next decision
_MOSTLY: Final = 0.6  # share of the time that makes a bottleneck
_MEMORY: Final = (
    16  # decisions for which a measured speed is believed; twice as many each time it proved right
)
_GAIN: Final = 1.05  # by which a step up has to be faster
_ROOM: Final = 8 << 20  # bytes that a slow sink may take at once: pipes and sockets have less
_LONGEST: Final = 64
_CHANGED: Final = (
    1.5  # a level's speed that differs by this factor from what it was: sink or data have changed
)


class Adaptive:
    """The current level, and the writing thread's observations: `began`, `sealed` and `wrote` for each chunk."""

    def __init__(self) -> None:
        self._level = _START
        self._waits = [0.0, 0.0, 0.0]  # of this chunk: for source, CPU, sink
        self._total = [0.0, 0.0, 0.0]  # of this window
        self._size = 0
        self._stored = 0
        self._chunks = 0
        self._rate = 0.0  # bytes per second of the sink when it was the bottleneck last
        self._room = 0.0  # bytes that it could have taken since, had it been given them
        self._decisions = 0
        self._speeds: dict[int, float] = {}  # bytes per second, by level
        self._before: dict[tuple[int, bool], float] = {}  # the same, by level and bottleneck
        self._until: dict[int, int] = {}  # decisions up to which they are believed
        self._memory: dict[int, int] = {}
        self._at = time.monotonic()

    @property
    def level(self) -> int:
        """Index in LEVELS for the next chunk.  Read by the sealing threads."""
        return self._level

    def began(self) -> None:
        """A chunk was submitted: until now the writer waited for the source."""
        self._waits[0] = self._lap()

    def sealed(self) -> None:
        """It is sealed: until now the writer waited for the CPU."""
        self._waits[1] = self._lap()

    def wrote(self, size: int, stored: int, *, counts: bool) -> None:
        """It is written: until now the writer waited for the sink.

        size: of the plaintext; stored: bytes written; counts: whether it was up to the level how the chunk is stored.
        """
        self._waits[2] = self._lap()
        room = self._room + self._rate * sum(self._waits) - stored
        self._room = min(max(room, 0.0), _ROOM)
        if not counts:
            return
        self._chunks += 1
        if self._chunks > _SETTLE:
            self._total = [t + w for t, w in zip(self._total, self._waits, strict=True)]
            self._size += size
            self._stored += stored
        if self._chunks >= _SETTLE + _WINDOW:
            self._decide()
            self._total, self._size, self._stored, self._chunks = [0.0, 0.0, 0.0], 0, 0, 0

    def _lap(self) -> float:
        now = time.monotonic()
        passed, self._at = now - self._at, now
        return passed

    def _decide(self) -> None:
        _, cpu, sink = self._total
        total = sum(self._total) or 1e-9
        busy, full = cpu > _MOSTLY * total, sink > _MOSTLY * total
        speed, rate = self._size / total, self._stored / total
        if full:
            self._rate = rate
        elif self._room and rate > self._rate:
            return  # faster than it was when it was the bottleneck; but it may only be making up for that
        self._decisions += 1
        self._note(speed, busy=busy)
        known = {
            self._speeds[n]: n
            for n in (self._level - 1, self._level + 1)
            if self._decisions < self._until.get(n, 0)
        }
        if known and max(known) > speed:
            self._level = known[max(known)]
            return
        step = 1 if full else -1 if busy else 0
        if step == 1 and max(known, default=0.0) * _GAIN > speed:
            return  # the last step up brought nothing, so the next one will not
        if (
            step
            and 0 <= self._level + step < len(LEVELS)
            and self._level + step not in known.values()
        ):
            self._level += step

    def _note(self, speed: float, *, busy: bool) -> None:
        """busy: whether the CPU was the bottleneck, or else the sink."""
        level = self._level
        # Like is compared with like.
        before = self._before.get((level, busy), speed)
        self._before[level, busy] = self._speeds[level] = speed
        if speed > before * _CHANGED:
            self._forget(above=busy)
        elif speed < before / _CHANGED:
            self._forget(above=not busy)
        if self._decisions >= self._until.get(level, 0):
            memory = self._memory.get(level, _MEMORY)
            self._until[level] = self._decisions + memory
            self._memory[level] = min(2 * memory, _LONGEST)

    def _forget(self, *, above: bool) -> None:
        """The bottleneck has changed: the levels above this one, or those below, may no longer be as they were."""
        levels = range(self._level + 1, len(LEVELS)) if above else range(self._level)
        for level in levels:
            self._until.pop(level, None)
            self._memory.pop(level, None)

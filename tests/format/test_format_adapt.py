"""The policy "auto" against every fixed choice: source, sealing threads and sink of known speeds, a simulated clock."""

from __future__ import annotations

import itertools

import pytest

from sealpoint.checkpoint.sealing import adapt
from sealpoint.checkpoint.sealing.adapt import LEVELS, Adaptive

MIB = 1 << 20
BUFFERS = 4  # chunks under way at once, as with two sealing threads

# A compressible process: seconds of CPU per chunk and share of the size, for each of LEVELS; encryption, hash and write
# are in all of them.  As measured on the heap of a Python service.
COST = (0.0004, 0.0016, 0.0026, 0.0042, 0.0120, 0.0200)
SHARE = (1.0, 0.27, 0.16, 0.15, 0.135, 0.13)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(adapt, "time", fake)
    return fake


class Machine:
    """A pipeline in which everything takes the time that it is said to take.  Speeds in bytes per second.

    room: bytes that the sink takes at once before it is slow, as a pipe or a socket does.
    """

    def __init__(self, *, sink, source=1.2e9, workers=2, cost=COST, share=SHARE, room=0):
        self.sink, self.source, self.workers, self.room = sink, source, workers, room
        self.cost, self.share = cost, share
        self._drained = 0.0  # when the sink will have got rid of all that it took

    def run(self, chunks, clock, *, fixed=None, compressible=lambda _: True, sink=None):
        """Seconds for that many chunks of 1 MiB, with the adaptive level or a fixed one."""
        clock.now = self._drained = 0.0
        adaptive = Adaptive()
        free = [0.0] * self.workers
        submitted, sealed, sizes, written = [], [], [], []

        def write_next() -> None:
            n = len(written)
            clock.now = max(written[-1] if written else 0.0, submitted[n])
            adaptive.began()
            clock.now = max(clock.now, sealed[n])
            adaptive.sealed()
            clock.now = self.taken(clock.now, sizes[n], sink(clock.now) if sink else self.sink)
            adaptive.wrote(MIB, int(sizes[n]), counts=compressible(n))
            written.append(clock.now)

        for n in range(chunks):
            while len(written) <= n - BUFFERS:
                write_next()
            ready = max(n * MIB / self.source, written[n - BUFFERS] if n >= BUFFERS else 0.0)
            worker = min(range(self.workers), key=free.__getitem__)
            start = max(ready, free[worker])
            while len(written) < n and self.next_write(written, submitted, sealed, sizes) <= start:
                write_next()
            level = adaptive.level if fixed is None else fixed
            gains = compressible(n)
            free[worker] = start + (self.cost[level] if gains else self.cost[0])
            submitted.append(ready)
            sealed.append(free[worker])
            sizes.append(MIB * (self.share[level] if gains else 1.0))
        while len(written) < chunks:
            write_next()
        return written[-1]

    def taken(self, now, size, rate) -> float:
        """When the sink has taken that much."""
        self._drained = max(now, self._drained) + size / rate
        return max(now, self._drained - self.room / rate)

    def next_write(self, written, submitted, sealed, sizes) -> float:
        n = len(written)
        begin = max(written[-1] if written else 0.0, submitted[n], sealed[n])
        return max(begin, max(begin, self._drained) + (sizes[n] - self.room) / self.sink)


@pytest.mark.parametrize("sink", [20e6, 100e6, 300e6, 1e9, 5e9])
@pytest.mark.parametrize("slower", [1, 3], ids=["idle machine", "busy machine"])
def test_auto_is_nearly_as_fast_as_the_best_fixed_choice(clock, sink, slower):
    machine = Machine(sink=sink, source=1.2e9 / slower, cost=[c * slower for c in COST])
    best = min(machine.run(1000, clock, fixed=level) for level in range(len(LEVELS)))
    assert machine.run(1000, clock) <= 1.1 * best


@pytest.mark.parametrize("sink", [20e6, 50e6, 100e6, 200e6, 1e9])
@pytest.mark.parametrize("slower", [1, 3], ids=["idle machine", "busy machine"])
def test_a_sink_that_has_room_for_a_while_does_not_mislead_it(clock, sink, slower):
    machine = Machine(
        sink=sink, source=1.2e9 / slower, cost=[c * slower for c in COST], room=2 * MIB
    )
    best = min(machine.run(1000, clock, fixed=level) for level in range(len(LEVELS)))
    assert machine.run(1000, clock) <= 1.1 * best


@pytest.mark.parametrize("sink", [100e6, 1e9])
def test_incompressible_chunks_in_between_do_not_mislead_it(clock, sink):
    machine = Machine(sink=sink)
    mixed = {"compressible": lambda n: n % 3 == 0}
    best = min(machine.run(1500, clock, fixed=level, **mixed) for level in range(len(LEVELS)))
    assert machine.run(1500, clock, **mixed) <= 1.1 * best


def test_it_follows_a_sink_that_becomes_slow(clock):
    machine = Machine(sink=100e6)
    later = {"sink": lambda now: 5e9 if now < 0.5 else 100e6}
    fixed = [machine.run(2000, clock, fixed=level, **later) for level in range(len(LEVELS))]
    assert machine.run(2000, clock, **later) <= 1.15 * min(fixed)


def test_where_the_source_is_the_bottleneck_nothing_changes(clock):
    adaptive = Adaptive()
    for _ in range(100):
        clock.now += 1.0
        adaptive.began()
        clock.now += 0.01
        adaptive.sealed()
        clock.now += 0.01
        adaptive.wrote(MIB, MIB // 4, counts=True)
        assert adaptive.level == 1


def test_levels_rise_in_work():
    kinds = [policy for policy, _ in LEVELS]
    assert kinds == sorted(kinds, key=("none", "lz4", "zstd").index)
    assert all(a < b for a, b in itertools.pairwise(n for p, n in LEVELS if p == "zstd"))

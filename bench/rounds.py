"""Interleaved rounds: in each, every variant once. The first round is discarded, it also verifies what was restored."""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import measure, tree
from bench.measure import BenchError
from bench.tools import Tools, say
from bench.variants import Place, Stock, StockUnsynced, Variant
from bench.workloads import Workload

# Values of one measured command; not all of them exist for a restore.
QUANTITIES = ("wall", "cpu", "frozen", "bytes", "peak")
_READ = 1 << 20


@dataclass
class Series:
    """What was measured of one variant, a list entry for each round."""

    label: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def median(self, quantity: str) -> float | None:
        found = self.values.get(quantity)
        return statistics.median(found) if found else None

    def ratio(self, base: Series, quantity: str) -> float | None:
        """Median of the ratios within the rounds: noise that lasts longer than a round falls out."""
        mine, theirs = self.values.get(quantity), base.values.get(quantity)
        if not mine or not theirs or not all(theirs):
            return None
        return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))

    def as_json(self, base: Series | None) -> dict[str, Any]:
        result: dict[str, Any] = {"label": self.label}
        for quantity, values in self.values.items():
            result[quantity] = {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "rounds": values,
            }
            ratio = self.ratio(base, quantity) if base else None
            if ratio is not None and quantity != "peak":
                result[quantity]["ratio"] = ratio
        return result


@dataclass
class Table:
    """The series of one action (dump or restore) of one workload at one target."""

    workload: str
    target: str
    action: str
    memory: int  # resident bytes of the workload
    series: dict[str, Series]

    def ratio(self, name: str, quantity: str, base: str = Stock.name) -> float | None:
        """None where one of the two was not measured."""
        if name not in self.series or base not in self.series:
            return None
        return self.series[name].ratio(self.series[base], quantity)

    def as_json(self) -> dict[str, Any]:
        base = self.series[Stock.name]
        return {
            "workload": self.workload,
            "target": self.target,
            "action": self.action,
            "memory_bytes": self.memory,
            "variants": {name: series.as_json(base) for name, series in self.series.items()},
        }


class Arena:
    """One workload at one target (a directory in memory or on disk). `scratch`, `stage`: in memory, `target`: there."""

    def __init__(
        self, tools: Tools, variants: Sequence[Variant], *, scratch: Path, target: Path, name: str
    ) -> None:
        self.tools = tools
        self.name = name
        self.on_disk = name == "disk"
        self.scratch = scratch
        self.dumping = [
            v for v in variants if v.dumps and (self.on_disk or v.name != StockUnsynced.name)
        ]
        self.restoring = [v for v in variants if v.restores]
        self.target = target
        self.memory = 0  # that the workload takes

    def place(self, variant: Variant) -> Place:
        name = variant.input_of
        return Place(self.target / name, self.scratch / "stage" / name, self.on_disk)

    def settle(self) -> None:
        """What the variant before left to be written must not be charged to the next one."""
        if not self.on_disk:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            libc.syncfs(fd)
        finally:
            os.close(fd)

    def dumps(self, workload: Workload, rounds: int) -> Table:
        """The tree runs on after each dump (--leave-running), so all variants dump the same process."""
        self.memory = workload.memory

        def once(variant: Variant, _: bool) -> dict[str, float]:
            place = self.place(variant)
            place.clear()
            self.settle()
            before = tree.cpu_seconds(workload.pids)
            cost, frozen = self._dump(variant, workload)
            inside = tree.cpu_seconds(workload.pids) - before  # CRIU works inside of the tree, too
            values = {"wall": cost.wall, "cpu": cost.cpu + inside, "frozen": frozen}
            values |= {"bytes": place.size(), "peak": cost.peak}
            place.clear()
            return values

        return self._table("dump", workload, self.dumping, rounds, once)

    def _dump(self, variant: Variant, workload: Workload) -> tuple[measure.Cost, float]:
        place = self.place(variant)
        cost = self._run(variant, variant.dump(place, workload.pid))
        return cost, variant.frozen(place, cost.output)

    def make(self, variant: Variant, workload: Workload) -> Place:
        """A dump that is not measured, to do something with it."""
        place = self.place(variant)
        place.clear()
        self.memory = workload.memory
        self._dump(variant, workload)
        place.clear_stage()
        return place

    def restores(self, workload: Workload, rounds: int) -> Table:
        """Ends the workload; every variant restores its own dump of it, from files that are in the page cache."""
        memory = workload.memory
        inputs = {v.input_of for v in self.restoring}
        for variant in [v for v in self.dumping if v.name in inputs]:
            self.make(variant, workload)
        self.settle()
        workload.end()

        def once(variant: Variant, verify: bool) -> dict[str, float]:
            place = self.place(variant)
            place.clear_stage()
            for path in place.files():
                _read(path)
            try:
                cost = self._run(variant, variant.restore(place), variant.feed(place))
                inside = tree.cpu_seconds(workload.pids)  # a restored task reads its own memory
                if verify:
                    workload.check()
            finally:
                workload.end()
                place.clear_stage()
            return {"wall": cost.wall, "cpu": cost.cpu + inside, "peak": cost.peak}

        try:
            return self._table("restore", workload, self.restoring, rounds, once, memory)
        finally:
            for variant in self.dumping:
                self.place(variant).clear()

    def _run(self, variant: Variant, command: list[str], feed: Path | None = None) -> measure.Cost:
        measure.touch(variant.copies * self.memory + self.memory // 4)
        environment = self.tools.environment
        return measure.run(
            command,
            environment=environment,
            scratch=self.scratch,
            feed=feed,
            helper=variant.helper,
        )

    def _table(
        self,
        action: str,
        workload: Workload,
        variants: Sequence[Variant],
        rounds: int,
        once: Callable[[Variant, bool], dict[str, float]],
        memory: int | None = None,
    ) -> Table:
        series = {v.name: Series(v.label) for v in variants}
        for number in range(rounds + 1):
            # Each round begins with another variant: none always follows the one that dirties most.
            for variant in [
                *variants[number % len(variants) :],
                *variants[: number % len(variants)],
            ]:
                try:
                    values = once(variant, number == 0)
                except BenchError as error:
                    raise BenchError(f"{action} by {variant.label}: {error}") from None
                if number:
                    series[variant.name].add(**values)
            walls = [f"{v.name} {s:.2f}" for v in variants if (s := _last(series[v.name]))]
            what = f"{workload.kind}, {self.name}, {action}, round {number} of {rounds}"
            say(f"{what}: {'  '.join(walls) or 'warm-up, discarded'}")
        resident = workload.memory if memory is None else memory
        kept = {name: _without_peak(name, s) for name, s in series.items()}
        return Table(workload.kind, self.name, action, resident, kept)


def _last(series: Series) -> float | None:
    return series.values["wall"][-1] if series.values else None


def _without_peak(name: str, series: Series) -> Series:
    """The peak of anything but sealpoint says nothing: of a shell, or of CRIU alone without its helpers."""
    if not name.startswith(("sealpoint", "dropin")):
        series.values.pop("peak", None)
    return series


def _read(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(_READ)
        while file.readinto(buffer):
            pass


@contextlib.contextmanager
def running(kind: str, size: int, directory: Path) -> Iterator[Workload]:
    """A workload that is ended whatever happens, restored or not."""
    workload = Workload(kind, size, directory)
    try:
        yield workload
    finally:
        workload.end()

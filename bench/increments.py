"""`python -m bench increments`: increments of a process that changes 1, 10 and 50 percent of its memory between dumps.

In each round: a full dump by stock CRIU and one by sealpoint, the change, and an increment on top of the latter. Then a
chain of ten increments is restored, against a full sealed dump of the same process. All in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import findings, measure, tree
from bench.findings import MIB, Figure, Findings, spread
from bench.measure import Cost
from bench.plot import Bar, Chart
from bench.rounds import running
from bench.tools import Tools, say
from bench.variants import Place, Stock
from bench.workloads import Workload

PAGE = 4096
PERCENT = (1, 10, 50)
STEPS = 10


class Bench:
    def __init__(self, tools: Tools, workload: Workload, directory: Path) -> None:
        self.tools, self.workload, self.directory = tools, workload, directory
        self.memory = workload.memory * 5 // 4  # while it runs; for what has to be touched

    def dump(self, name: str, *options: str, running: bool = True) -> tuple[Cost, dict[str, Any]]:
        command = [str(self.tools.sealpoint), "dump", "-t", str(self.workload.pid), "--json"]
        command += ["-o", str(self.directory / name), "-r", self.tools.recipient]
        command += ["--sign", self.tools.signer, "--criu", str(self.tools.criu), *options]
        command += ["--state", str(self.directory / "state"), "--compress", "none", "--force"]
        command += ["-R"] if running else []
        cost = self._run(command)
        return cost, json.loads(cost.output)

    def stock(self) -> tuple[Cost, float]:
        place = Place(self.directory / "stock", self.directory / "stage", False)
        shutil.rmtree(place.directory, ignore_errors=True)
        place.directory.mkdir()
        variant = Stock(self.tools)
        cost = self._run(variant.dump(place, self.workload.pid))
        frozen = variant.frozen(place, cost.output)
        shutil.rmtree(place.directory)
        return cost, frozen

    def restore(self, name: str) -> float:
        tree.end(self.workload.pids)
        command = [str(self.tools.sealpoint), "restore", str(self.directory / name), "--detach"]
        command += ["-i", self.tools.identity, "--trust", self.tools.trusted]
        command += ["--criu", str(self.tools.criu)]
        cost = self._run(command)
        self.workload.check()
        return cost.wall

    def _run(self, command: list[str]) -> Cost:
        measure.touch(self.memory)
        return measure.run(command, environment=self.tools.environment, scratch=self.directory)


def changes(bench: Bench, percent: int, rounds: int) -> dict[str, Any]:
    """By quantity, all rounds; ratios are of a round's increment to the full stock dump of the same round."""
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        bench.dump("full.sealed", "--track")
        stock, stock_frozen = bench.stock()
        bench.workload.change(percent)
        cost, said = bench.dump("step.sealed", "--parent", str(bench.directory / "full.sealed"))
        frozen = said["criu"]["frozen_time"] / 1e6
        # The interpreter around the memory changes pages too, some hundred: they are as changed as the others.
        changed = said["pages_stored"] * PAGE
        values = {
            "wall": cost.wall,
            "stock_wall": stock.wall,
            "wall_ratio": cost.wall / stock.wall,
            "frozen": frozen,
            "stock_frozen": stock_frozen,
            "frozen_ratio": frozen / stock_frozen,
            "pages_changed": said["pages_stored"],
            "file_size": said["file_size"],
            "bytes_per_changed_byte": said["file_size"] / changed,
        }
        if number:
            for name, value in values.items():
                found.setdefault(name, []).append(value)
        say(f"{percent} % changed, round {number} of {rounds}")
    return {name: spread(values) for name, values in found.items()}


def chain(bench: Bench, rounds: int) -> dict[str, Any]:
    """Restoring ten increments of 10 percent each, against one full dump of the same memory."""
    bench.dump("0.sealed", "--track")
    for step in range(1, STEPS + 1):
        bench.workload.change(10)
        bench.dump(f"{step}.sealed", "--parent", str(bench.directory / f"{step - 1}.sealed"))
    bench.dump("whole.sealed", running=False)
    bench.workload.pids = tree.below(bench.workload.pid)
    times: dict[str, list[float]] = {"whole": [], str(STEPS): []}
    for number in range(rounds + 1):
        for name, values in times.items():
            seconds = bench.restore(f"{name}.sealed")
            if number:
                values.append(seconds)
        say(f"a chain of {STEPS} increments restored, round {number} of {rounds}")
    ratios = [a / b for a, b in zip(times[str(STEPS)], times["whole"], strict=True)]
    full, several = spread(times["whole"]), spread(times[str(STEPS)])
    return {"full": full, "chain": several, "ratio": spread(ratios)}


def digests() -> float:
    """GB of pages that are digested in a second, by one core."""
    from sealpoint.checkpoint.history.matching import digests_of

    data = memoryview(bytearray(os.urandom(64 * MIB)))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        for at in range(0, len(data), 2 * MIB):
            digests_of(data[at : at + 2 * MIB], bytes(32))
        times.append(time.perf_counter() - started)
    return len(data) / min(times) / 1e9


def overhead(rows: dict[int, dict[str, Any]]) -> tuple[float, float]:
    """What an increment takes beside its pages: bytes in any case, and bytes for each page (a line through the least
    and the most changed)."""
    points = [(row["pages_changed"]["median"], row["file_size"]["median"]) for row in rows.values()]
    (few, small), (many, large) = min(points), max(points)
    each = (large - small) / (many - few) - PAGE
    return small - few * (PAGE + each), each


def _figures(speed: float, rows: dict[int, dict[str, Any]], restored: Any) -> list[Figure]:
    found = [
        Figure(
            f"bytes of an increment to bytes changed, {percent} % changed",
            row["bytes_per_changed_byte"]["median"],
            decimals=3,
            most=1.02,
        )
        for percent, row in rows.items()
    ]
    for percent, row in rows.items():
        for quantity, what in (("wall", "time to dump"), ("frozen", "time frozen by")):
            said = f"{what} an increment, {percent} % changed, to a full dump by criu"
            found.append(Figure(said, row[f"{quantity}_ratio"]["median"]))
    what = f"time to restore a chain of {STEPS} increments, to that of one full dump"
    found.append(Figure(what, restored["ratio"]["median"], most=1.3))
    found.append(Figure("GB of pages digested in a second by one core", speed, least=1))
    return found


def _rows(rows: dict[int, dict[str, Any]], restored: Any) -> list[list[str]]:
    lines = [
        [
            f"{percent} % changed",
            *(
                f"{row[name]['median']:.2f}"
                for name in ("wall", "stock_wall", "wall_ratio", "frozen", "frozen_ratio")
            ),
            f"{row['file_size']['median'] / MIB:.1f}",
            f"{row['bytes_per_changed_byte']['median']:.3f}",
        ]
        for percent, row in rows.items()
    ]
    times = [f"{restored[name]['median']:.2f}" for name in ("chain", "full", "ratio")]
    return [*lines, [f"restore of {STEPS} increments", *times, "", "", "", ""]]


def _charts(rows: dict[int, dict[str, Any]], restored: Any) -> list[Chart]:
    found = []
    for quantity, title in (("wall", "Dump"), ("frozen", "Frozen")):
        stock = [value for row in rows.values() for value in row[f"stock_{quantity}"]["rounds"]]
        bars = [Bar("criu, all of it", "stock", stock)]
        bars += [
            Bar(
                f"increment, {percent} % changed",
                "sealpoint",
                row[quantity]["rounds"],
                f" · {row[f'{quantity}_ratio']['median']:.2f}×",
            )
            for percent, row in rows.items()
        ]
        what = "seconds (median, range), ratio to a full dump by stock CRIU"
        found.append(Chart(title, what, bars, statistics.median(stock)))
    bars = [
        Bar(f"{percent} % changed", "sealpoint", row["bytes_per_changed_byte"]["rounds"])
        for percent, row in rows.items()
    ]
    found.append(Chart("Stored", "bytes of the file for each changed byte", bars, 1.0, decimals=3))
    full = restored["full"]
    bars = [
        Bar("one full dump", "other", full["rounds"]),
        Bar(
            f"chain of {STEPS} increments",
            "sealpoint",
            restored["chain"]["rounds"],
            f" · {restored['ratio']['median']:.2f}×",
        ),
    ]
    what = "wall seconds (median, range), ratio to the full dump"
    found.append(Chart("Restore by sealpoint", what, bars, full["median"]))
    return found


NOTES = """\
Medians; a first round is discarded. Sealed files, images and workload are in memory; --compress none.
In each round: a full dump by sealpoint and one by stock CRIU, the process changes pages here and there, an increment.
Bytes changed: 4096 for each page that differs from the parent, those of the interpreter around the memory included.
Frozen: CRIU's own figure.
The chain is of increments of 10 % each; the full dump is of the same memory after the last.
"""


def main(arguments: Sequence[str]) -> int:
    options = findings.parse(findings.parser("increments", __doc__, size=1024, rounds=5), arguments)
    speed = digests()
    with findings.instruments(2) as (tools, directory):
        with running("random", options.size * MIB, directory / "workload") as workload:
            bench = Bench(tools, workload, directory)
            rows = {percent: changes(bench, percent, options.rounds) for percent in PERCENT}
            restored = chain(bench, options.rounds)
        fixed, each = overhead(rows)
        say(f"an increment takes {fixed:.0f} bytes, and {each:.1f} for each changed page")
        header = ["", "wall s", "criu, or full", "ratio", "frozen s", "ratio", "MiB", "stored"]
        found = Findings(
            "increments",
            "Increments",
            _figures(speed, rows, restored),
            (header, _rows(rows, restored)),
            _charts(rows, restored),
            NOTES
            + f"So {fixed:.0f} bytes in any case, and {each:.1f} for each changed page beside it.\n",
            {
                "digests_gb_per_s": speed,
                "overhead": {"bytes": fixed, "bytes_per_page": each},
                "changes": rows,
                "restore": restored,
            },
            {},
        )
        return found.publish(options, tools)

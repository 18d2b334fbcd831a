"""`python -m bench store`: ten checkpoints of the same service, with a chunk store and without.

Of one process of which a part changes between dumps, and of ten processes that hold the same data: bytes on the disk,
and how long dumps into the store take against dumps into files of their own. All in memory.
"""

from __future__ import annotations

import contextlib
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
from bench.workloads import MODEL, SESSIONS, Workload

COUNT = 10
# name: kind of workload, percent of records that are made anew between dumps (none: another process each time), what
CASES = {
    "service, 1 % new": (SESSIONS, 1, "one service, 1 % of its records are new each time"),
    "service, 10 % new": (SESSIONS, 10, "one service, 10 % of its records are new each time"),
    "service, 1 % scattered": ("heap", 1, "the same, but 1 % here and there in its heap"),
    "replicas, heap": ("heap", None, "ten processes with the same records"),
    "replicas, model": (MODEL, None, "ten processes with the same block of numbers"),
}


class Bench:
    """One case: each checkpoint is dumped into a file of its own, and into the store."""

    def __init__(self, tools: Tools, directory: Path) -> None:
        self.tools, self.directory = tools, directory
        self.store, self.key = directory / "store", directory / "tenant.key"
        self.run("store", "init", str(self.store), "--tenant-key", str(self.key))
        self.plain: list[int] = []
        self.wall: list[tuple[float, float]] = []
        self.frozen: list[tuple[float, float]] = []

    def run(self, *arguments: str) -> Cost:
        return measure.run(
            [str(self.tools.sealpoint), *arguments],
            environment=self.tools.environment,
            scratch=self.directory,
        )

    def dump(self, pid: int, target: Path, *options: str) -> tuple[Cost, dict[str, Any]]:
        keys = ["-r", self.tools.recipient, "--sign", self.tools.signer]
        cost = self.run(
            "dump", "-t", str(pid), "-R", "--json", "-o", str(target), *keys,
            "--criu", str(self.tools.criu), "--compress", "lz4", "--force", *options,
        )  # fmt: skip
        return cost, json.loads(cost.output)

    def add(self, pid: int) -> None:
        """One checkpoint, both ways."""
        file, number = self.directory / "plain.sealed", len(self.plain)
        alone, said = self.dump(pid, file)
        self.plain.append(said["file_size"])
        file.unlink()
        options = ("--store", str(self.store), "--tenant-key", str(self.key))
        cost, stored = self.dump(pid, self.store / f"{number}.sealed", *options)
        self.wall.append((cost.wall, alone.wall))
        times = (stored["criu"]["frozen_time"] / 1e6, said["criu"]["frozen_time"] / 1e6)
        self.frozen.append(times)

    def restore(self, workload: Workload) -> None:
        """The last one, from the store: it is all there. Raises BenchError."""
        keys = ["-i", self.tools.identity, "--trust", self.tools.trusted]
        path = str(self.store / f"{len(self.plain) - 1}.sealed")
        tree.end(workload.pids)
        self.run("restore", path, "--detach", *keys, "--criu", str(self.tools.criu))
        workload.check()

    def found(self) -> dict[str, Any]:
        values = json.loads(self.run("store", "stat", str(self.store), "--json").output)
        first, later = self.wall[0], self.wall[1:]
        return {
            "alone": sum(self.plain),
            "together": values["size"],
            "ratio": values["size"] / sum(self.plain),
            "chunks": values["chunks"],
            "first_wall_ratio": first[0] / first[1],
            "later_wall_ratio": spread([a / b for a, b in later]),
            "later_frozen_ratio": spread([a / b for a, b in self.frozen[1:]]),
        }

    def close(self) -> None:
        shutil.rmtree(self.store)
        self.key.unlink()


def measured(tools: Tools, directory: Path, size: int, name: str) -> dict[str, Any]:
    """All ten checkpoints of one case."""
    kind, percent, _ = CASES[name]
    bench, place = Bench(tools, directory), directory / "workload"
    with contextlib.ExitStack() as stack:
        workload: Workload | None = None
        for number in range(COUNT):
            if workload is None or percent is None:
                stack.close()
                shutil.rmtree(place, ignore_errors=True)
                workload = stack.enter_context(running(kind, size, place))
            if percent is not None:
                workload.change(percent)
            bench.add(workload.pid)
            say(f"{name}: checkpoint {number + 1} of {COUNT}")
        assert workload is not None
        bench.restore(workload)
    shutil.rmtree(place)
    found = bench.found()
    bench.close()
    return found


def speeds() -> dict[str, float]:
    """GB of pages that are cut and named in a second by one core; that are compared with chunks that are there."""
    from sealpoint.checkpoint.sealing.chunking import Cutter
    from sealpoint.format import stored
    from sealpoint.format.codec import Coder
    from sealpoint.format.constants import Suite

    data = memoryview(bytearray(os.urandom(64 * MIB)))
    tenant = stored.Tenant(bytes(32))
    times: dict[str, list[float]] = {"cut": [], "compare": []}
    steps = [data[at : at + 2 * MIB] for at in range(0, len(data), 2 * MIB)]
    for _ in range(5):
        started = time.perf_counter()
        cutter = Cutter(tenant.cut_key)
        for step in steps:
            for run, _ in cutter.cut(step):
                tenant.chunk_id(run)
        times["cut"].append(time.perf_counter() - started)
    cutter = Cutter(tenant.cut_key)
    runs = [run for step in steps for run in cutter.cut(step)]
    ids = [tenant.chunk_id(run) for run, _ in runs]
    coder = Coder("none")
    files = [
        stored.seal(tenant, identifier, memoryview(run), coder, Suite.AES_256_GCM)[0]
        for (run, _), identifier in zip(runs, ids, strict=True)
    ]
    for _ in range(5):
        started = time.perf_counter()
        for (run, _), identifier, file in zip(runs, ids, files, strict=True):
            stored.unwrap(tenant, identifier, file, memoryview(run))
        times["compare"].append(time.perf_counter() - started)
    return {name: len(data) / min(values) / 1e9 for name, values in times.items()}


def _figures(speed: dict[str, float], rows: dict[str, dict[str, Any]]) -> list[Figure]:
    found = [
        Figure(
            f"bytes of ten checkpoints in a chunk store to those without; {CASES[name][2]}",
            row["ratio"],
        )
        for name, row in rows.items()
    ]
    later = [r for row in rows.values() for r in row["later_wall_ratio"]["rounds"]]
    found.append(
        Figure(
            "time to dump into a chunk store, to that of a file of its own",
            statistics.median(later),
        )
    )
    what = "GB of pages in a second by one core"
    found.append(Figure(f"{what}, cut and named for a chunk store", speed["cut"]))
    found.append(Figure(f"{what}, compared with chunks that are there", speed["compare"]))
    return found


def _rows(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [
        [
            CASES[name][2],
            f"{row['alone'] / MIB:.1f}",
            f"{row['together'] / MIB:.1f}",
            f"{row['ratio']:.2f}",
            str(row["chunks"]),
            f"{row['first_wall_ratio']:.2f}",
            f"{row['later_wall_ratio']['median']:.2f}",
            f"{row['later_frozen_ratio']['median']:.2f}",
        ]
        for name, row in rows.items()
    ]


def _charts(rows: dict[str, dict[str, Any]]) -> list[Chart]:
    bars = []
    for name, row in rows.items():
        bars.append(Bar(f"{name}: alone", "other", [row["alone"] / MIB]))
        note = f" · {row['ratio']:.2f}×"
        bars.append(Bar(f"{name}: in a store", "sealpoint", [row["together"] / MIB], note))
    return [Chart("Ten checkpoints", "MiB on the disk, ratio to files of their own", bars, None, 1)]


NOTES = """\
Everything in memory; --compress lz4 both ways. The service is a Python process with a heap of small records.
Each checkpoint is dumped into a file of its own, and a moment later into the store; the last one is restored.
Bytes with a store are those of all chunks and of the ten sealed files.
Replicas are separate processes: addresses differ, and with them the pointers in nearly every page of a heap.
"""


def main(arguments: Sequence[str]) -> int:
    parser = findings.parser("store", __doc__, size=512, rounds=COUNT)
    options = findings.parse(parser, arguments)
    speed = speeds()
    with findings.instruments(3) as (tools, directory):
        size = options.size * MIB
        rows = {name: measured(tools, directory, size, name) for name in CASES}
        header = [
            "",
            "alone MiB",
            "store MiB",
            "ratio",
            "chunks",
            "first dump",
            "later dumps",
            "frozen",
        ]
        found = Findings(
            "store",
            "Chunk store",
            _figures(speed, rows),
            (header, _rows(rows)),
            _charts(rows),
            NOTES,
            {"gb_per_s": speed, "cases": rows},
            {},
        )
        return found.publish(options, tools)

"""`python -m bench sinks`: dumps of a compressible process into sinks of limited speed.

By way of compression into a pipe whose reader takes no more than so many bytes a second, as a network or an object
store does. And onto a file system whose disk is slow, against stock CRIU that writes to the same.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import findings, slow_disk
from bench.findings import MIB, Figure, Findings
from bench.measure import BenchError
from bench.plot import Bar, Chart, chart_of
from bench.rounds import Arena, Table, running
from bench.tools import Tools, say
from bench.variants import Sealpoint, StockUnsynced, usable
from bench.workloads import KINDS, Workload

POLICIES = ("none", "lz4", "zstd", "auto")
_READER = Path(__file__).with_name("slow_reader.py")


def dump(tools: Tools, workload: Workload, policy: str, rate: float) -> tuple[float, int]:
    """Seconds until the reader has all, and how many bytes that was. Raises BenchError."""
    command = [str(tools.sealpoint), "dump", "-t", str(workload.pid), "-o", "-", "-R"]
    command += ["-r", tools.recipient, "--sign", tools.signer, "--compress", policy]
    command += ["--criu", str(tools.criu)]
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=tools.environment,
    ) as dumping:
        reader = subprocess.run(
            [sys.executable, "-I", "-S", str(_READER), str(rate)],
            stdin=dumping.stdout,
            stdout=subprocess.PIPE,
            check=True,
        )
        assert dumping.stderr is not None
        said = dumping.stderr.read().decode(errors="replace")
    if dumping.returncode:
        raise BenchError(f"sealpoint dump ended with {dumping.returncode}: {said}")
    return time.perf_counter() - started, int(reader.stdout)


def measure(tools: Tools, workload: Workload, rate: float, rounds: int) -> dict[str, Any]:
    """Medians for one sink, by policy; `ratio`: of the median to that of the best fixed policy."""
    times: dict[str, list[float]] = {p: [] for p in POLICIES}
    sizes: dict[str, int] = {}
    for number in range(rounds + 1):
        turn = number % len(POLICIES)
        for policy in POLICIES[turn:] + POLICIES[:turn]:
            seconds, sizes[policy] = dump(tools, workload, policy, rate)
            if number:
                times[policy].append(seconds)
        say(f"pipe, {_name(rate)}, round {number} of {rounds}")
    medians = {p: statistics.median(t) for p, t in times.items()}
    best = min(medians[p] for p in POLICIES if p != "auto")
    return {
        p: {"wall": medians[p], "rounds": times[p], "bytes": sizes[p], "ratio": medians[p] / best}
        for p in POLICIES
    }


def measure_disk(tools: Tools, workload: Workload, directory: Path, options: Any) -> Table:
    """Dumps by stock CRIU and by sealpoint onto a file system whose disk takes `options.disk_rate`."""
    variants, _ = usable(tools, [StockUnsynced.name])
    size = 2 * workload.memory + 256 * MIB
    scratch = directory / "scratch"
    scratch.mkdir()
    with slow_disk.slow_disk(directory, size, options.disk_rate * 1e6) as disk:
        arena = Arena(tools, variants, scratch=scratch, target=disk, name="disk")
        return arena.dumps(workload, options.disk_rounds)


def _name(rate: float) -> str:
    return f"{rate / 1e6:.0f} MB/s"


def _figures(pipes: dict[str, Any], disk: Table | None, rate: float) -> list[Figure]:
    found = [
        Figure(
            f"dump into a pipe of {name} MB/s, `--compress auto` to the best fixed choice",
            sink["auto"]["ratio"],
            most=1.1,
        )
        for name, sink in pipes.items()
    ]
    if disk is not None:
        for quantity, what in (("wall", "time"), ("frozen", "time frozen")):
            ratio = disk.ratio(Sealpoint.name, quantity)
            assert ratio is not None
            said = f"{what} to dump a compressible process to a disk of {rate:g} MB/s"
            found.append(Figure(said, ratio, most=1))
    return found


def _rows(pipes: dict[str, Any], disk: Table | None, rate: float) -> list[list[str]]:
    rows = [
        [
            f"pipe, {name} MB/s",
            f"sealpoint --compress {policy}",
            f"{f['wall']:.2f}",
            f"{f['bytes'] / MIB:.1f}",
            f"{f['ratio']:.2f} (best fixed)",
        ]
        for name, sink in pipes.items()
        for policy, f in sink.items()
    ]
    if disk is not None:
        for name, series in disk.series.items():
            wall, size = series.median("wall"), series.median("bytes")
            rows.append(
                [
                    f"disk, {rate:g} MB/s",
                    series.label,
                    f"{wall:.2f}",
                    f"{(size or 0) / MIB:.1f}",
                    f"{disk.ratio(name, 'wall'):.2f} (criu)",
                ]
            )
    return rows


def _charts(pipes: dict[str, Any], disk: Table | None, rate: float) -> list[Chart]:
    found = []
    for name, sink in pipes.items():
        bars = [
            Bar(
                f"--compress {policy}",
                "sealpoint" if policy == "auto" else "other",
                f["rounds"],
                f" · {f['ratio']:.2f}×",
            )
            for policy, f in sink.items()
        ]
        best = min(f["wall"] for policy, f in sink.items() if policy != "auto")
        what = "wall seconds (median, range), ratio to the best fixed choice"
        found.append(Chart(f"Dump into a pipe of {name} MB/s", what, bars, best))
    if disk is not None:
        found.append(replace(chart_of(disk), title=f"Dump to a disk of {rate:g} MB/s"))
    return found


NOTES = """\
Medians; a first round is discarded, each round begins with another variant. The process runs on after each dump.
Pipe: a reader that takes no more than so many bytes a second, as a network or an object store does. The time is until \
it has all.
Disk: ext4 on a loop device in memory whose writes the kernel limits (blkio.throttle.write_bps_device). `criu` syncs \
every image in its post-dump hook, with the tree frozen, as sealpoint does with its file; `criu, not synced` returns \
with its images in the page cache, from where they are written to the disk later: a checkpoint that a crash loses.
"""


def main(arguments: Sequence[str]) -> int:
    parser = findings.parser("sinks", __doc__, size=3072, rounds=4)
    parser.add_argument("--rate", type=float, action="append", metavar="MB", help="of a pipe")
    parser.add_argument("--disk-rate", type=float, default=200, metavar="MB", help="default 200")
    parser.add_argument("--disk-rounds", type=int, default=3)
    parser.add_argument("--only", choices=("pipe", "disk"))
    parser.add_argument("--kind", default="heap", choices=tuple(KINDS))
    options = findings.parse(parser, arguments)
    rates = [r * 1e6 for r in options.rate or (100.0, 1000.0)]
    pipes: dict[str, Any] = {}
    disk: Table | None = None
    skipped: dict[str, str] = {}
    with findings.instruments(4) as (tools, directory):
        with running(options.kind, options.size * MIB, directory / "workload") as workload:
            memory = workload.memory
            for rate in rates if options.only != "disk" else ():
                pipes[f"{rate / 1e6:.0f}"] = measure(tools, workload, rate, options.rounds)
            if options.only != "pipe":
                if reason := slow_disk.why_not():
                    skipped["a disk of limited speed"] = reason
                else:
                    disk = measure_disk(tools, workload, directory, options)
        found = Findings(
            "sinks",
            "Sinks of limited speed",
            _figures(pipes, disk, options.disk_rate),
            (
                ["sink", "variant", "wall s", "MiB", "ratio to"],
                _rows(pipes, disk, options.disk_rate),
            ),
            _charts(pipes, disk, options.disk_rate),
            NOTES,
            {
                "workload": options.kind,
                "memory_bytes": memory,
                "sinks_mb_per_s": pipes,
                "disk_mb_per_s": options.disk_rate,
                "disk": disk.as_json() if disk else None,
            },
            skipped,
        )
        return found.publish(options, tools)

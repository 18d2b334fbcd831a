"""`python -m bench sinks`: dumps of a compressible process into sinks of limited speed, by way of compression.

Each dump goes through a pipe to a reader that takes no more than so many bytes a second, as a network or an object
store does. In each round every way runs once, beginning with another one each time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine, tree
from bench.measure import BenchError
from bench.rounds import running
from bench.tools import Tools, say
from bench.workloads import Workload

MIB = 1 << 20
RESULTS = Path(__file__).with_name("results") / "sinks.json"
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
    """Medians for one sink, by policy; `ratio`: of the rounds' times to the best fixed policy's median."""
    times: dict[str, list[float]] = {p: [] for p in POLICIES}
    sizes: dict[str, int] = {}
    for number in range(rounds + 1):
        turn = number % len(POLICIES)
        for policy in POLICIES[turn:] + POLICIES[:turn]:
            seconds, sizes[policy] = dump(tools, workload, policy, rate)
            if number:
                times[policy].append(seconds)
    medians = {p: statistics.median(t) for p, t in times.items()}
    best = min(medians[p] for p in POLICIES if p != "auto")
    return {
        p: {"wall": medians[p], "rounds": times[p], "bytes": sizes[p], "ratio": medians[p] / best}
        for p in POLICIES
    }


def table(rate: float, found: dict[str, Any]) -> str:
    name = f"{rate / 1e6:.0f} MB/s" if rate else "as fast as it can"
    lines = [f"{name:18} {'s':>8} {'MiB':>8} {'to the best fixed':>18}"]
    lines += [
        f"  --compress {p:6}{f['wall']:8.2f} {f['bytes'] / MIB:8.1f} {f['ratio']:18.2f}"
        for p, f in found.items()
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench sinks", description=__doc__)
    parser.add_argument("--size", type=int, default=3072, metavar="MIB", help="of the workload")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, action="append", metavar="MB", help="repeatable")
    parser.add_argument("--kind", default="heap")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    tree.become_subreaper()
    rates = [r * 1e6 for r in options.rate or (100.0, 1000.0)]
    with tempfile.TemporaryDirectory(prefix="sealpoint-bench-", dir="/dev/shm") as name:
        tools = Tools.prepare(Path(name) / "keys")
        try:
            with running(options.kind, options.size * MIB, Path(name) / "workload") as workload:
                found = {}
                for rate in rates:
                    found[f"{rate / 1e6:.0f}"] = measure(tools, workload, rate, options.rounds)
                    print(table(rate, found[f"{rate / 1e6:.0f}"]))
            about = {"machine": machine.facts(tools, {}), "rounds": options.rounds}
        finally:
            tools.close()
    about |= {"workload": options.kind, "size_mib": options.size}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**about, "sinks_mb_per_s": found}, indent=1) + "\n")
    say(f"written to {os.fspath(options.output)}")
    return 0

"""`python -m bench increments`: increments of a process that changes 1, 10 and 50 percent of its memory between dumps.

In each round: a full dump by stock CRIU and one by sealpoint, the change, and an increment on top of the latter. Then a
chain of ten increments is restored, against a full sealed dump of the same process. All in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine, measure, tree
from bench.measure import Cost
from bench.rounds import running
from bench.tools import Tools, say
from bench.variants import Place, Stock
from bench.workloads import Workload

MIB = 1 << 20
PAGE = 4096
RESULTS = Path(__file__).with_name("results") / "increments.json"
PERCENT = (1, 10, 50)
STEPS = 10


class Bench:
    def __init__(self, tools: Tools, workload: Workload, directory: Path) -> None:
        self.tools, self.workload, self.directory = tools, workload, directory

    def dump(self, name: str, *options: str, running: bool = True) -> tuple[Cost, dict[str, Any]]:
        command = [str(self.tools.sealpoint), "dump", "-t", str(self.workload.pid), "--json"]
        command += ["-o", str(self.directory / name), "-r", self.tools.recipient]
        command += ["--sign", self.tools.signer, "--criu", str(self.tools.criu), *options]
        command += ["--state", str(self.directory / "state"), "--compress", "none", "--force"]
        command += ["-R"] if running else []
        cost = measure.run(command, environment=self.tools.environment, scratch=self.directory)
        return cost, json.loads(cost.output)

    def stock(self) -> tuple[Cost, float]:
        place = Place(self.directory / "stock", self.directory / "stage", False)
        shutil.rmtree(place.directory, ignore_errors=True)
        place.directory.mkdir()
        variant = Stock(self.tools)
        command = variant.dump(place, self.workload.pid)
        cost = measure.run(command, environment=self.tools.environment, scratch=self.directory)
        frozen = variant.frozen(place, cost.output)
        shutil.rmtree(place.directory)
        return cost, frozen

    def restore(self, name: str) -> float:
        tree.end(self.workload.pids)
        command = [str(self.tools.sealpoint), "restore", str(self.directory / name), "--detach"]
        command += ["-i", self.tools.identity, "--trust", self.tools.trusted]
        command += ["--criu", str(self.tools.criu)]
        cost = measure.run(command, environment=self.tools.environment, scratch=self.directory)
        self.workload.check()
        return cost.wall


def changes(bench: Bench, percent: int, rounds: int) -> dict[str, Any]:
    """Medians, and ratios of the rounds' increments to the full stock dump of the same round."""
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        bench.dump("full.sealed", "--track")
        stock, stock_frozen = bench.stock()
        changed = bench.workload.change(percent)
        cost, said = bench.dump("step.sealed", "--parent", str(bench.directory / "full.sealed"))
        values = {
            "wall": cost.wall,
            "wall_ratio": cost.wall / stock.wall,
            "frozen": said["criu"]["frozen_time"] / 1e6,
            "frozen_ratio": said["criu"]["frozen_time"] / 1e6 / stock_frozen,
            "pages_stored": said["pages_stored"],
            "bytes_per_changed_byte": said["file_size"] / (changed * PAGE),
        }
        if number:
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def chain(bench: Bench, rounds: int) -> dict[str, float]:
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
    ratios = [a / b for a, b in zip(times[str(STEPS)], times["whole"], strict=True)]
    return {
        "chain": statistics.median(times[str(STEPS)]),
        "full": statistics.median(times["whole"]),
        "ratio": statistics.median(ratios),
    }


def digests() -> float:
    """GB of pages that are digested in a second, by one core."""
    from sealpoint.checkpoint.matching import digests_of

    data = memoryview(bytearray(os.urandom(64 * MIB)))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        for at in range(0, len(data), 2 * MIB):
            digests_of(data[at : at + 2 * MIB], bytes(32))
        times.append(time.perf_counter() - started)
    return len(data) / min(times) / 1e9


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench increments", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the workload")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    tree.become_subreaper()
    found: dict[str, Any] = {"digests_gb_per_s": digests(), "changes": {}}
    print(f"digests: {found['digests_gb_per_s']:.2f} GB/s")
    with tempfile.TemporaryDirectory(prefix="sealpoint-bench-", dir="/dev/shm") as name:
        tools = Tools.prepare(Path(name) / "keys")
        try:
            with running("random", options.size * MIB, Path(name) / "workload") as workload:
                bench = Bench(tools, workload, Path(name))
                for percent in PERCENT:
                    row = found["changes"][percent] = changes(bench, percent, options.rounds)
                    print(
                        f"{percent:3} % changed: {row['wall']:.2f} s ({row['wall_ratio']:.2f} of a full stock dump), "
                        f"frozen {row['frozen']:.2f} s ({row['frozen_ratio']:.2f}), "
                        f"{row['bytes_per_changed_byte']:.3f} bytes stored for each changed"
                    )
                row = found["restore"] = chain(bench, options.rounds)
                print(
                    f"a chain of {STEPS} increments restored: {row['chain']:.2f} s, "
                    f"{row['ratio']:.2f} of a full sealed dump"
                )
            about = {"machine": machine.facts(tools, {}), "rounds": options.rounds}
        finally:
            tools.close()
    about |= {"size_mib": options.size}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**about, **found}, indent=1) + "\n")
    say(f"written to {os.fspath(options.output)}")
    return 0

"""`python -m bench migration`: a process that goes on writing to its memory moves over a link of limited speed.

By `sealpoint migrate` into `sealpoint receive`, and by stock `criu dump`, scp, `criu restore`, in turn. The other
machine is a set of namespaces of this one, behind a virtual cable whose rate the kernel limits (tc-tbf).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import far, findings, measure, tools as bench_tools
from bench.far import SSH_PORT, FarSide, wait_until
from bench.findings import MIB, Figure, Findings, spread
from bench.measure import BenchError
from bench.plot import Bar, Chart
from bench.rounds import running
from bench.tools import SSH, Tools, say
from bench.workloads import BUSY, Workload

PORT = 7777
QUANTITIES = ("total", "frozen", "still", "wire")


@dataclass(frozen=True)
class Scene:
    """directory: in memory, of this round alone."""

    tools: Tools
    side: FarSide
    workload: Workload
    directory: Path

    def run(self, command: Sequence[str]) -> str:
        environment = self.tools.environment
        return measure.run(command, environment=environment, scratch=self.directory).output


def by_sealpoint(scene: Scene, *more: str) -> dict[str, Any]:
    """Its receiver listens already, as an ssh daemon does. Returns what `migrate --json` said."""
    instruments, side = scene.tools, scene.side
    address = f"tcp://{side.address}:{PORT}"
    command = [str(instruments.sealpoint), "receive", "--listen", address, "--json"]
    command += ["--keep", str(scene.directory / "keep"), "--criu", str(instruments.criu)]
    command += ["-i", instruments.identity, "--trust", instruments.trusted]
    said = scene.directory / "receive.log"
    with said.open("wb") as log:
        receiver = subprocess.Popen(
            side.command(*command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=instruments.environment,
            cwd=scene.directory,
        )
    try:
        wait_until(lambda: side.listens(PORT) or receiver.poll() is not None, "it listens")
        command = [str(instruments.sealpoint), "migrate", "-t", str(scene.workload.pid), "--json"]
        command += ["--to", address, "-r", instruments.recipient, "--sign", instruments.signer]
        command += ["--criu", str(instruments.criu), *more]
        started = time.perf_counter()
        output = scene.run(command)
        if receiver.wait(60):
            raise BenchError(f"sealpoint receive: {said.read_text()[-1000:]}")
        return {"total": time.perf_counter() - started, "said": json.loads(output)}
    finally:
        receiver.kill()
        receiver.wait()


def without_rounds(scene: Scene) -> dict[str, Any]:
    return by_sealpoint(scene, "--rounds", "0")


def by_scp(scene: Scene) -> dict[str, Any]:
    """The images lie in memory, on both sides, in the clear. The old protocol of scp: dropbear has no sftp."""
    images, there = scene.directory / "images", scene.directory / "there"
    images.mkdir()
    criu = [str(scene.tools.criu)]
    log = ["--no-default-config", "-o", str(scene.directory / "criu.log")]
    dump = [*criu, "dump", "-D", str(images), *log, "-t", str(scene.workload.pid)]
    restore = [*criu, "restore", "-D", str(there), *log, "-d"]
    options, host = scene.side.ssh_options(), f"root@{scene.side.address}"
    copy = ["scp", "-O", "-q", "-r", "-P", str(SSH_PORT), *options, str(images), f"{host}:{there}"]
    run = ["ssh", "-n", "-p", str(SSH_PORT), *options, host, shlex.join(restore)]
    started = time.perf_counter()
    scene.run(["sh", "-c", " && ".join(map(shlex.join, (dump, copy, run)))])
    return {"total": time.perf_counter() - started}


@dataclass(frozen=True)
class Way:
    """move: returns when the process runs on the far side, and the seconds that it took as `total`."""

    label: str
    kind: str
    move: Callable[[Scene], dict[str, Any]]


WAYS = {
    "stock": Way("criu, scp, criu", "stock", by_scp),
    "sealpoint": Way("sealpoint migrate", "sealpoint", by_sealpoint),
    "sealpoint-0": Way("sealpoint migrate --rounds 0", "other", without_rounds),
}


def once(tools: Tools, way: Way, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """One move of a new process, which must run on over there with its memory intact."""
    directory.mkdir()
    try:
        # The other side ends first, and with it what has moved there.
        with (
            running(BUSY, options.size * MIB, directory / "workload") as workload,
            FarSide(tools, directory, int(options.rate * 1e6)) as side,
        ):
            if way.kind == "stock":
                side.start_sshd()
            scene = Scene(tools, side, workload, directory)
            workload.stood_still()  # what was before
            sent = side.bytes_on_wire()
            found = way.move(scene)
            found["wire"] = side.bytes_on_wire() - sent
            workload.moved(side.pid_of(workload.pid))
            gaps = workload.stood_still()
            workload.check()
    finally:
        shutil.rmtree(directory)
    found["frozen"] = sum(seconds for seconds, moved in gaps if moved)
    found["still"] = sum(seconds for seconds, _ in gaps)
    if not found["frozen"]:
        raise BenchError(f"the process did not notice that it was moved: {gaps}")
    return found


def rounds(
    tools: Tools, options: argparse.Namespace, directory: Path, skipped: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """By way, all rounds."""
    ways = {name: way for name, way in WAYS.items() if way.label not in skipped}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        names = list(ways)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            values = once(tools, ways[name], options, directory / "round")
            if number:
                found[name].append(values)
            say(f"{ways[name].label}, round {number} of {options.rounds}: {values['total']:.2f} s")
    return found


NOTES = """\
Medians; a first round is discarded. A new process for each move; it checks its memory when it has arrived.
The process writes to a sixteenth of its memory, 1000 pages a second in turn.
The other side: network, pid, mount and host name namespaces of the same machine, with the same two cores, behind a \
veth whose rate tc-tbf limits in both directions. Bytes are those of the virtual cable, with all headers.
Frozen: by the process's own clock, from its last step here to its first over there. Standing still: all times \
together that it did not run for 0.05 s or more, those of the copies before the last included.
`criu, scp, criu`: images in memory on both sides, in the clear; OpenSSH's scp and ssh to a dropbear. Stock CRIU's own \
pre-dump needs a kernel with soft-dirty tracking.
sealpoint sends with its default compression; this memory is random and does not compress.
"""


def main(arguments: Sequence[str]) -> int:
    parser = findings.parser("migration", __doc__, size=1024, rounds=3)
    parser.add_argument("--rate", type=float, default=1000, metavar="MBIT", help="default 1000")
    parser.add_argument("--no-install", action="store_true", help="do not install an ssh daemon")
    options = findings.parse(parser, arguments)
    if not options.no_install:
        bench_tools.install_missing(SSH)
    if reason := far.why_not():
        raise BenchError(reason)
    skipped = {}
    if reason := bench_tools.missing(SSH):
        skipped[WAYS["stock"].label] = reason
    with findings.instruments(4) as (tools, directory):
        found = rounds(tools, options, directory, skipped)
        return _findings(found, options, skipped).publish(options, tools)


def _findings(
    found: dict[str, list[dict[str, Any]]], options: argparse.Namespace, skipped: dict[str, str]
) -> Findings:
    values = {
        name: {quantity: [r[quantity] for r in each] for quantity in QUANTITIES}
        for name, each in found.items()
    }
    medians = {
        name: {quantity: statistics.median(v) for quantity, v in each.items()}
        for name, each in values.items()
    }
    base = values.get("stock")

    def ratio(name: str, quantity: str) -> float | None:
        if base is None:
            return None
        pairs = zip(values[name][quantity], base[quantity], strict=True)
        return statistics.median(a / b for a, b in pairs)

    what = {
        "total": "time to migrate",
        "frozen": "time frozen by a migration",
        "still": "time standing still in a migration, copies included,",
        "wire": "bytes sent by a migration",
    }
    link = f"{options.rate:g} Mbit/s"
    figures = [
        Figure(f"{text} over {link}, to criu, scp, criu", value)
        for quantity, text in what.items()
        if (value := ratio("sealpoint", quantity)) is not None
    ]
    rows = []
    for name, each in medians.items():
        row = [WAYS[name].label]
        for quantity in QUANTITIES:
            row.append(f"{each[quantity] / (MIB if quantity == 'wire' else 1):.2f}")
            value = ratio(name, quantity)
            row.append("" if value is None else f"{value:.2f}")
        rows.append(row)
    header = ["", "total s", "ratio", "frozen s", "ratio", "still s", "ratio", "MiB", "ratio"]
    titles = {
        "total": ("Total time", "seconds"),
        "frozen": ("Frozen, from the last step here to the first there", "seconds"),
        "still": ("Standing still in all, copies before included", "seconds"),
        "wire": ("On the wire", "MiB"),
    }
    charts = []
    for quantity, (title, unit) in titles.items():
        scale = MIB if quantity == "wire" else 1
        bars = []
        for name, each in values.items():
            value = ratio(name, quantity) if name != "stock" else None
            note = "" if value is None else f" · {value:.2f}×"
            scaled = [v / scale for v in each[quantity]]
            bars.append(Bar(WAYS[name].label, WAYS[name].kind, scaled, note))
        line = medians["stock"][quantity] / scale if base else None
        panel = f"{unit} (median, range), ratio to criu, scp, criu; {link}"
        charts.append(Chart(title, panel, bars, line))
    data = {
        "link_mbit_per_s": options.rate,
        "ways": {
            name: {quantity: spread(v) for quantity, v in each.items()}
            for name, each in values.items()
        },
        "said": {name: [r["said"] for r in each if "said" in r] for name, each in found.items()},
    }
    title = f"Migration over a link of {link}"
    return Findings("migration", title, figures, (header, rows), charts, NOTES, data, skipped)

"""`python -m bench containers`: what the drop-in `criu` adds to the checkpoint and the restore of a small container.

runc finds a `criu` in PATH: the stock one, or sealpoint's. The container is one busybox shell that sleeps.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import findings, measure, tools, tree
from bench.findings import MIB, Figure, Findings, spread
from bench.measure import BenchError, Cost
from bench.plot import Bar, Chart
from bench.tools import RUNC, Tools, say

ACTIONS = ("checkpoint", "restore")
VARIANTS = {"stock": "criu", "dropin": "criu (sealpoint's drop-in)"}
_PROMISED = 0.3  # seconds
_HELPER = 200  # MiB
# Its standard streams are its own: nothing of the machine is open in it.
_SCRIPT = """
exec 6<>/tick </dev/null >/dev/null 2>&1
data=$(yes secret | head -c 1000000)
while :; do read -t 1000 x <&6; done
"""
_MOUNTS = [("/proc", "proc", "proc"), ("/dev", "tmpfs", "tmpfs"), ("/tmp", "tmpfs", "tmpfs")]


class Container:
    """A container of runc. It has no network namespace: not every machine has what runc wants for that."""

    def __init__(self, instruments: Tools, directory: Path) -> None:
        self._tools = instruments
        self._directory = directory
        self._bundle = directory / "bundle"
        self._images, self._work = directory / "images", directory / "criu-work"
        self._scratch = directory / "scratch"
        self._name = f"sealpoint-bench-{os.getpid()}"
        self._runc = str(tools.find("runc"))
        for made in (self._scratch, self._work):
            made.mkdir()
        self._make_bundle()

    def _make_bundle(self) -> None:
        root = self._bundle / "rootfs"
        for name in ("bin", "dev", "proc", "tmp"):
            (root / name).mkdir(parents=True)
        shutil.copy(str(tools.find("busybox")), root / "bin/busybox")
        for name in ("sh", "yes", "head"):
            (root / "bin" / name).symlink_to("busybox")
        os.mkfifo(root / "tick")
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/sh", "-c", _SCRIPT],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "noNewPrivileges": True,
            },
            "root": {"path": "rootfs"},
            "hostname": "bench",
            "mounts": [{"destination": d, "type": t, "source": s} for d, t, s in _MOUNTS],
            "linux": {
                "resources": {"devices": [{"allow": False, "access": "rwm"}]},
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            },
        }
        (self._bundle / "config.json").write_text(json.dumps(config))

    def _command(self, *words: str) -> list[str]:
        return [self._runc, "--root", str(self._directory / "state"), *words]

    def _call(self, variant: str, *words: str) -> Cost:
        environment = dict(self._tools.environment)
        path = self._tools.dropin if variant == "dropin" else self._tools.criu
        environment["PATH"] = f"{path.parent}:{environment['PATH']}:/usr/sbin:/sbin"
        try:
            return measure.run(
                self._command(*words),
                environment=environment,
                scratch=self._scratch,
                helper=str(self._tools.dropin) if variant == "dropin" else "",
            )
        except BenchError as error:
            log = self._work / ("dump.log" if words[0] == "checkpoint" else "restore.log")
            said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise BenchError(f"{error}\n{said}") from None

    def start(self) -> None:
        words = ["run", "-d", "--bundle", str(self._bundle), self._name]
        measure.run(
            self._command(*words), environment=self._tools.environment, scratch=self._scratch
        )
        self._check()

    def checkpoint(self, variant: str) -> tuple[Cost, float]:
        """Its cost, and how many bytes were written. The container ends."""
        shutil.rmtree(self._images, ignore_errors=True)
        self._images.mkdir()
        cost = self._call(variant, "checkpoint", *self._options(), self._name)
        return cost, sum(path.stat().st_size for path in self._images.iterdir())

    def restore(self, variant: str) -> Cost:
        words = ["restore", "-d", "--bundle", str(self._bundle), *self._options(), self._name]
        cost = self._call(variant, *words)
        self._check()
        return cost

    def _options(self) -> list[str]:
        return ["--image-path", str(self._images), "--work-path", str(self._work)]

    def _check(self) -> None:
        """Raises BenchError if it does not run."""
        state = json.loads(self._tools.call(self._command("state", self._name)))
        if state["status"] != "running":
            raise BenchError(f"the container is {state['status']}, not running")

    def end(self) -> None:
        """Whether it runs or not."""
        pids: list[int] = []
        command = self._command("state", self._name)
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0 and (pid := json.loads(found.stdout)["pid"]):
            pids = tree.below(pid)
            os.kill(pid, signal.SIGKILL)
            tree.end(pids)
        subprocess.run(self._command("delete", "-f", self._name), capture_output=True, check=False)


def rounds(container: Container, count: int) -> dict[str, dict[str, list[float]]]:
    """By variant: checkpoint and restore in seconds, peak in bytes, size of what was written."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in VARIANTS}
    for number in range(count + 1):
        names = list(VARIANTS)
        for name in names if number % 2 else reversed(names):
            container.start()
            dumped, size = container.checkpoint(name)
            restored = container.restore(name)
            container.end()
            values = {
                "checkpoint": dumped.wall,
                "restore": restored.wall,
                "bytes": size,
                "peak": max(dumped.peak, restored.peak),
            }
            if number:
                for quantity, value in values.items():
                    found[name].setdefault(quantity, []).append(value)
        say(f"container, round {number} of {count}")
    return found


def added(found: dict[str, dict[str, list[float]]], action: str) -> list[float]:
    """Seconds, of every round."""
    pairs = zip(found["dropin"][action], found["stock"][action], strict=True)
    return [mine - theirs for mine, theirs in pairs]


NOTES = """\
Medians; a first round is discarded, in every other round the drop-in comes first. Wall time of `runc checkpoint` and \
`runc restore -d`, with everything in memory.
The drop-in seals to a hybrid recipient and signs; its restore verifies the signature and all of the file. What it \
adds is the start of Python twice, keys, FUSE, and two fsyncs.
Peak: the most resident memory of its helper, in either of the two.
"""


def main(arguments: Sequence[str]) -> int:
    parser = findings.parser("containers", __doc__, rounds=10)
    parser.add_argument("--no-install", action="store_true", help="do not install runc")
    options = findings.parse(parser, arguments)
    if not options.no_install:
        tools.install_missing(RUNC)
    if reason := tools.missing(RUNC):
        raise BenchError(reason)
    with findings.instruments(1) as (instruments, directory):
        container = Container(instruments, directory)
        try:
            found = rounds(container, options.rounds)
        finally:
            container.end()
        return _findings(found).publish(options, instruments)


def _findings(found: dict[str, dict[str, list[float]]]) -> Findings:
    figures = []
    for action in ACTIONS:
        seconds = statistics.median(added(found, action))
        what = f"seconds that the drop-in adds to the {action} of a small container"
        figures.append(Figure(what, seconds, most=_PROMISED))
    peak = max(found["dropin"]["peak"]) / MIB
    what = "most memory that its helper took for that, MiB"
    figures.append(Figure(what, peak, decimals=0, most=_HELPER))
    rows = []
    for name, label in VARIANTS.items():
        values = found[name]
        row = [label, *(_range(values[action]) for action in ACTIONS)]
        row.append(f"{statistics.median(values['bytes']) / 1024:.0f}")
        rows.append([*row, f"{peak:.0f}" if name == "dropin" else ""])
    header = ["variant", "checkpoint s", "restore s", "KiB", "peak MiB"]
    charts = [
        Chart(
            f"{action.capitalize()} of a small container by runc",
            "wall seconds (median, range)",
            [
                Bar(
                    label.replace("sealpoint's ", ""),
                    "stock" if name == "stock" else "sealpoint",
                    found[name][action],
                    "" if name == "stock" else f" · {statistics.median(added(found, action)):+.2f}",
                )
                for name, label in VARIANTS.items()
            ],
            statistics.median(found["stock"][action]),
        )
        for action in ACTIONS
    ]
    data: dict[str, Any] = {
        "added": {action: spread(added(found, action)) for action in ACTIONS},
        "variants": {
            name: {quantity: spread(v) for quantity, v in values.items() if any(v)}
            for name, values in found.items()
        },
    }
    return Findings(
        "containers", "A small container of runc", figures, (header, rows), charts, NOTES, data, {}
    )


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"

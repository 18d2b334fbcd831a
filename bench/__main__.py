"""`python -m bench`: measure dump and restore. `python -m bench NAME`: what else is measured, see SUBCOMMANDS."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine, place, report, small, tools, tree
from bench.measure import BenchError
from bench.plot import draw
from bench.rounds import Arena, Table, running
from bench.tools import Tools, say
from bench.variants import NAMES, Sealpoint, Variant, usable
from bench.workloads import KINDS, MIB, why_not

HERE = Path(__file__).resolve().parent
MEMORY = place.MEMORY
RESULTS = HERE / "results"  # committed
PARTIAL = HERE.parent / "build" / "bench"
SUBCOMMANDS = {
    "micro": "the sealing and reading code alone, without CRIU",
    "sinks": "dumps into pipes and onto a disk of limited speed",
    "increments": "increments of a process that changes 1, 10 and 50 % of its memory",
    "store": "what a chunk store saves on ten checkpoints of a service",
    "stores": "dumps into buckets and registries, and copies from there",
    "migration": "a move over a link of limited speed, against criu, scp, criu",
    "containers": "what the drop-in adds to a small container of runc",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure sealpoint against stock CRIU.",
        epilog="\n".join(
            f"python -m bench {name:10}  {what}" for name, what in SUBCOMMANDS.items()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, help="counted rounds (default 5; one more is discarded)")
    add("--size", type=int, metavar="MIB", help="of the random memory (default 1024)")
    add("--quick", action="store_true", help="64 MiB and 2 rounds: to see that it works")
    add("--only", choices=("tmpfs", "disk"), help="only this target")
    add("--workload", action="append", choices=tuple(KINDS), help="only this one; repeatable")
    add(
        "--variant",
        action="append",
        default=[],
        choices=NAMES,
        help="only this one, sealpoint and stock; repeatable",
    )
    add("--disk", type=Path, metavar="DIR", help="a directory on the disk to measure")
    add("--output", type=Path, metavar="DIR", help="where results go (a whole run: bench/results)")
    add("--no-install", action="store_true", help="do not install tools to compare with")
    options = parser.parse_args(arguments)
    whole = not (
        options.quick or options.only or options.workload or options.variant or options.size
    )
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.size = (options.size or (64 if options.quick else 1024)) * MIB
    options.workload = options.workload or list(KINDS)
    # A partial run must not replace the results that are committed.
    options.output = options.output or (RESULTS if whole else PARTIAL)
    return options


def check_space(options: argparse.Namespace, variants: Sequence[Variant]) -> None:
    """A restore keeps the dumps of all variants at once, in memory. Raises BenchError."""
    inputs = len({v.input_of for v in variants if v.restores})
    needed = (inputs + 3) * options.size
    free = {"memory": machine.available_memory(), str(MEMORY): shutil.disk_usage(MEMORY).free}
    if options.only != "tmpfs":
        free["the disk"] = shutil.disk_usage(options.disk or HERE).free
    for where, size in free.items():
        if size < needed:
            raise BenchError(
                f"{needed // MIB} MiB of {where} are needed, {size // MIB} are free: use a smaller --size"
            )


@dataclass
class Findings:
    """What a run has found so far. `skipped`: what was not measured, and why; `failed`: the same, but it should have
    been."""

    tables: list[Table] = field(default_factory=list)
    small: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure_all(
    options: argparse.Namespace,
    instruments: Tools,
    variants: Sequence[Variant],
    places: dict[str, Path],
    findings: Findings,
) -> None:
    """Every workload at every target. A failure is noted, and the others are measured all the same."""
    for kind in options.workload:
        if reason := why_not(kind):
            findings.skipped[KINDS[kind]] = reason
            continue
        for target, directory in places.items():
            with contextlib.ExitStack() as stack:
                scratch = stack.enter_context(place.temporary(MEMORY))
                arena = Arena(instruments, variants, scratch=scratch, target=directory, name=target)
                try:
                    measure_one(options, arena, kind, findings)
                except BenchError as error:
                    say(f"bench: {error}")
                    findings.failed[f"{KINDS[kind]}, {target}"] = str(error).splitlines()[-1]


def measure_one(options: argparse.Namespace, arena: Arena, kind: str, findings: Findings) -> None:
    """One workload at one target: dumps, small figures, restores."""
    with running(kind, options.size, arena.scratch / "workload") as workload:
        findings.tables.append(arena.dumps(workload, options.rounds))
        if kind == "random":
            findings.small[arena.name] = small_figures(arena, workload, options)
        findings.tables.append(arena.restores(workload, options.rounds))


def small_figures(arena: Arena, workload: Any, options: argparse.Namespace) -> dict[str, Any]:
    variant = next(v for v in arena.dumping if v.name == Sealpoint.name)
    place = arena.make(variant, workload)
    try:
        return small.figures(arena.tools, place.sealed, arena.scratch, 2 * options.rounds)
    finally:
        place.clear()


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in SUBCOMMANDS:
        module = importlib.import_module(f"bench.{arguments[0]}")
        return int(module.main(arguments[1:]))
    options = parse(arguments)
    tree.become_subreaper()
    if not options.no_install:
        tools.install_missing()
    with contextlib.ExitStack() as stack:
        keys = stack.enter_context(place.temporary(MEMORY))
        instruments = Tools.prepare(keys / "keys")
        stack.callback(instruments.close)
        findings = Findings()
        variants, findings.skipped = usable(instruments, options.variant)
        check_space(options, variants)
        places: dict[str, Path] = {}
        if options.only != "disk":
            places["tmpfs"] = stack.enter_context(place.temporary(MEMORY))
        if options.only != "tmpfs":
            disk = options.disk or place.DISK
            places["disk"] = stack.enter_context(place.temporary(disk))
            if machine.file_system(places["disk"]) in ("tmpfs", "ramfs"):
                raise BenchError(f"{disk} is not on a disk: name a directory with --disk")
        about = {
            "rounds": options.rounds,
            "size_mib": options.size // MIB,
            "machine": machine.facts(instruments, places),
        }
        measure_all(options, instruments, variants, places, findings)
    return publish(options, findings, about)


def publish(options: argparse.Namespace, findings: Findings, about: dict[str, Any]) -> int:
    """Write the results and print them; the exit status."""
    tables, figures = findings.tables, findings.small
    missing = findings.skipped | findings.failed
    data = report.results(tables, figures, about, missing)
    written = report.markdown(tables, figures, about, missing, "latest.svg")
    if findings.failed and options.output == RESULTS:
        options.output = PARTIAL
    report.write(options.output, data, written, draw(tables))
    print(report.text(tables, figures, missing))
    say(f"written to {options.output}: latest.json, latest.md, latest.svg")
    return 1 if findings.failed else 0


if __name__ == "__main__":
    place.heed_signals()
    try:
        sys.exit(main(sys.argv[1:]))
    except BenchError as error:
        say(f"bench: {error}")
        sys.exit(1)
    except place.Interrupted as interrupted:
        say("bench: interrupted")
        sys.exit(128 + interrupted.number)

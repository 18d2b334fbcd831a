"""`sealpoint watch`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from sealpoint.cli import notice, numbers, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.cli.running import Running, note_newest, runs_criu
from sealpoint.cli.sealing import SealOptions, seals_checkpoint
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.checkpoint import Opening, WatchedCheckpoint
    from sealpoint.format.writer import Signing

_LONGEST = 366 * 86400  # seconds
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@options.tree_option
@click.option(
    "--every",
    required=True,
    metavar="TIME",
    help="Time from one checkpoint to the next: 30s, 10m, 1h.",
)
@click.option(
    "-o", "--output", "directory", required=True, metavar="DIR", help="Directory for the files."
)
@click.option("--count", type=numbers.count(1), metavar="N", help="End after N checkpoints.")
@click.option(
    "--keep-last",
    type=numbers.count(),
    default=0,
    metavar="N",
    help="Keep the newest N, and merge older ones into them, as prune does.",
)
@click.option(
    "--keep-daily",
    type=numbers.count(),
    default=0,
    metavar="N",
    help="Keep the newest of each day, for N days, in the same way.",
)
@reads_checkpoint()
@seals_checkpoint()
@options.workload_option
@runs_criu()
def command(
    *,
    pid: int,
    every: str,
    directory: str,
    count: int | None,
    keep_last: int,
    keep_daily: int,
    reading: Reading,
    seal: SealOptions,
    running: Running,
    workload: str,
    as_json: bool,
) -> None:
    """Take checkpoints of a running process tree at regular intervals: a full one, then what has changed.

    Each checkpoint is a sealed file in DIR, named after the time, and continues the one before. The command ends when
    the tree ends. Thinning out (--keep-last, --keep-daily) reads the files, so it needs an identity. Without it, this
    machine needs no key that opens them.

    \b
    Example:
      sealpoint watch -t 4711 --every 30s -o checkpoints -r keys/recipient.pub --sign keys/signer.key
    """
    seconds = _seconds(every)
    reading.harden()
    search = running.search()
    from sealpoint.checkpoint import DumpRequest, Watch, WatchRequest, retention
    from sealpoint.cli.prune import merging
    from sealpoint.state.chains import StateStore

    prepared = seal.sealing()
    thinning = bool(keep_last or keep_daily)
    opening = _opening(reading, prepared.signing)
    if thinning and not opening.identities():  # now: nobody may be there later to be asked
        raise UsageError("thinning out needs an identity", hint="name one with -i")
    make = merging(prepared)
    request = WatchRequest(
        DumpRequest(
            pid=pid,
            criu=search.result(),
            options=running.criu_arguments,
            workload=workload,
            criu_log=running.criu_log,
            sealing=prepared,
        ),
        every=seconds,
        directory=directory,
        store=StateStore(running.states),
        say=notice.warn,
    )
    for number, taken in enumerate(Watch(request).run(), 1):
        note_newest(running.states, workload, taken.result)
        _show(taken, as_json=as_json)
        if thinning:
            retention.prune(taken.path, opening, make, last=keep_last, daily=keep_daily)
        if number == count:
            break


def _opening(reading: Reading, signing: Signing) -> Opening:
    """How the files that this command made itself are read, to thin them out: who signs them is trusted as well."""
    trust = (*reading.trust, *signing.signers)
    unsigned = reading.allow_unsigned or not signing.signers
    return replace(reading, trust=trust, allow_unsigned=unsigned).opening()


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd]?)", text, re.ASCII)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= _LONGEST:
        raise UsageError(f"{text!r} is not a time up to 366d", hint="write 30s, 10m, 1h")
    return seconds


def _show(taken: WatchedCheckpoint, *, as_json: bool) -> None:
    result = taken.result
    frozen = result.criu.get("frozen_time", 0) / 1e6
    if as_json:
        values = {
            "file": taken.path,
            "checkpoint": result.checkpoint_id.hex(),
            "file_size": result.file_size,
            "pages_stored": taken.stored,
            "pages": taken.pages,
            "seconds": round(result.seconds, 3),
            "frozen_seconds": round(frozen, 3),
        }
        echo_json(values, indent=None)
        return
    click.echo(
        f"{printable(taken.path)}: {taken.stored} of {taken.pages} pages, {notice.show_size(result.file_size)}, "
        f"{result.seconds:.2f} s (frozen {frozen:.2f} s)"
    )

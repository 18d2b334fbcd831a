"""`sealpoint dump`."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import keyring, notice, numbers, options
from sealpoint.cli.printable import echo_json
from sealpoint.cli.running import Running, ack_line, note_newest, runs_criu
from sealpoint.cli.sealing import A_FILE_OR_URL, SealOptions, seals_checkpoint
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.checkpoint import ChunkAdder, DumpResult, Track
    from sealpoint.format.writer import Signing
    from sealpoint.inspect.scanner import Tally


@click.command(context_settings={"ignore_unknown_options": False})
@options.tree_option
@seals_checkpoint(A_FILE_OR_URL, metavar="FILE|URL|-", stores=True)
@click.option("-R", "--leave-running", is_flag=True, help="Let the tree run on after the dump.")
@click.option(
    "--kill-after",
    type=click.Choice(["ack"]),
    help="With -o - or another pipe: end the tree once the receiver's acknowledgement (restore --ack) arrives on "
    "standard input.",
)
@click.option(
    "--ack-timeout", type=numbers.SECONDS, default=600.0, show_default=True, metavar="SECONDS"
)
@click.option(
    "--commit-timeout",
    type=numbers.SECONDS,
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="With a URL: how long the tree may stay frozen while the store acknowledges the file.",
)
@click.option(
    "--commit",
    type=click.Choice(["store", "spool"]),
    default="store",
    show_default=True,
    help="With a URL: the tree ends when the store has acknowledged all of it, or as soon as the sealed file is "
    "durable in --spool DIR, from where it goes to the store afterwards.",
)
@click.option("--track", is_flag=True, help="Begin a chain: remember what a later --parent needs.")
@click.option(
    "--parent",
    metavar="PREV",
    help="Store only pages that have changed since this sealed file was dumped here; implies --track.",
)
@click.option(
    "--store",
    metavar="DIR",
    help="Keep memory in this chunk store, which other checkpoints share, and refer to it; needs --tenant-key.",
)
@click.option("--tenant-key", metavar="FILE", help="The key of the store's tenant.")
@options.workload_option
@click.option(
    "--scan",
    is_flag=True,
    help="Count what looks like secrets, by kind, while they are sealed (sealpoint secrets shows more).",
)
@runs_criu()
def command(
    *,
    pid: int,
    seal: SealOptions,
    running: Running,
    leave_running: bool,
    kill_after: str | None,
    ack_timeout: float,
    commit_timeout: float,
    commit: str,
    track: bool,
    parent: str | None,
    store: str | None,
    tenant_key: str | None,
    workload: str,
    scan: bool,
    as_json: bool,
) -> None:
    """Dump a process tree with stock CRIU into one encrypted, signed file.

    The tree ends when the sealed file is complete and durable (with -R, or to a pipe, it runs on), in a store when
    the store has acknowledged it. If anything fails, it runs on and no file is left.

    To restore an increment (--parent) you need its parents, too. If no increment is possible, the command makes a full
    dump and says so.

    \b
    Example:
      sealpoint dump -t 4711 -o app.sealed -r keys/recipient.pub --sign keys/signer.key -- --shell-job
      sealpoint dump -t 4711 -o 2.sealed --parent 1.sealed -r recipient.pub --sign signer.key
      sealpoint dump -t 4711 --store store --tenant-key tenant.key -o store/app.sealed \\
        -r recipient.pub --sign signer.key
    """
    notice.protect()
    _check(seal, kill_after=bool(kill_after), leave_running=leave_running, spool=commit == "spool")
    if bool(store) != bool(tenant_key):
        raise UsageError("--store and --tenant-key go together")
    search = running.search()
    from sealpoint.checkpoint import Dump, DumpRequest
    from sealpoint.cli.bar import Bar
    from sealpoint.cli.store import open_store

    prepared = seal.sealing()
    tally = _tally() if scan else None
    tracked = None
    if track or parent:
        tracked = _track(parent, running.states, workload, seal.output, prepared.signing)
    opened: AbstractContextManager[ChunkAdder | None] = nullcontext()
    if store and tenant_key:
        opened = open_store(store, tenant_key, prepared, observe=tally)
    request = DumpRequest(
        pid=pid,
        criu=search.result(),
        leave_running=leave_running or (seal.piped and not kill_after),
        options=running.criu_arguments,
        workload=workload,
        criu_log=running.criu_log,
        acknowledge=_await_ack(ack_timeout) if kill_after else None,
        scan=tally,
        track=tracked,
        sealing=prepared,
    )
    # A tree that runs on need not wait for the store; the command does, at the end of this block.
    spooled = seal.open_spooled() if commit == "spool" else None
    timeout = None if request.leave_running else commit_timeout
    to = spooled or seal.open_output(timeout=timeout, later=request.leave_running)
    name = tracked.workload if tracked else workload
    with opened as adder, to as out:
        with Bar(f"dumping {pid}") as bar:
            result = Dump(request._replace(store=adder), out).run(bar)
        if spooled is not None:
            note_newest(running.states, name, result)
            notice.going_on(
                f"{pid} is sealed in {spooled.path}, from where it goes to {seal.where} now"
            )
            spooled.upload()
    if spooled is None:
        note_newest(running.states, name, result)
    _Outcome(pid, seal, result, tracked, adder, tally).show(as_json=as_json)


def _check(seal: SealOptions, *, kill_after: bool, leave_running: bool, spool: bool) -> None:
    """Raises UsageError where the options contradict each other."""
    if spool and leave_running:
        raise UsageError("--commit spool says when the tree ends: with --leave-running it does not")
    if not kill_after:
        return
    if not seal.piped:
        raise UsageError(
            "--kill-after ack is for -o - and other pipes: a file is durable before the tree ends"
        )
    if leave_running:
        raise UsageError("--kill-after and --leave-running contradict each other")
    if "-" in (seal.passphrase_file, seal.sign_passphrase_file):
        raise UsageError("standard input cannot carry both a passphrase and the acknowledgement")
    if os.isatty(0):
        raise UsageError(
            "--kill-after ack waits for the receiver on standard input, which is a terminal"
        )


@dataclass
class _Outcome:
    """What a dump made, for people and for programs."""

    pid: int
    seal: SealOptions
    result: DumpResult
    tracked: Track | None
    adder: ChunkAdder | None
    tally: Tally | None

    def show(self, *, as_json: bool) -> None:
        """Print it: to standard error where the sealed file went to standard output."""
        from sealpoint.cli.store import warn_damaged

        if self.adder is not None:
            warn_damaged(self.adder)
        if self.tally is not None and self.tally.failed:
            notice.warn(f"the scan for secrets is not complete: {self.tally.failed}")
        if as_json:
            echo_json(self._values(), err=self.seal.piped)
            return
        for line in self._lines():
            click.echo(line, err=self.seal.piped)

    def _values(self) -> dict[str, Any]:
        from sealpoint.cli.store import described

        result = self.result
        values: dict[str, Any] = {
            "checkpoint": result.checkpoint_id.hex(),
            "origin": result.origin_digest.hex(),
            "file": self.seal.output,
            "file_size": result.file_size,
            "plain_size": result.plain_size,
            "zero_size": result.zero_size,
            "compressed_size": result.compressed_size,
            "seconds": round(result.seconds, 3),
            "left_running": result.left_running,
            "criu": result.criu,
        }
        if self.tracked is not None:
            values["increment"] = self.tracked.continues
            values["pages_stored"], values["pages"] = self.tracked.changed
        if self.adder is not None:
            values |= described(self.adder)
        if self.tally is not None:
            values["secrets"] = dict(sorted(self.tally.counts.items()))
        return values

    def _lines(self) -> list[str]:
        from sealpoint.cli.store import in_words

        result = self.result
        frozen = result.criu.get("frozen_time", 0) / 1e6
        sizes = f"{notice.show_size(result.plain_size)} in {notice.show_size(result.file_size)}"
        if self.tracked is not None and self.tracked.continues:
            stored, pages = self.tracked.changed
            sizes = f"{stored} of {pages} pages have changed, {sizes}"
        if self.adder is not None:
            sizes += f" and {in_words(self.adder)}"
        lines = [
            (
                f"process {self.pid} sealed into {self.seal.where}: {sizes}, {result.seconds:.2f} s "
                f"(frozen {frozen:.2f} s){', still running' if result.left_running else ''}"
            ),
            f"checkpoint {result.checkpoint_id.hex()}",
        ]
        if self.tally is not None:
            counts = sorted(self.tally.counts.items())
            found = ", ".join(f"{n} {kind}" for kind, n in counts) or "none"
            lines.append(f"looks like secrets: {found}")
        return lines


def _tally() -> Tally:
    """Before the tree is frozen: compiling what to look for takes a moment.  Raises SystemEnvironmentError."""
    from sealpoint.inspect.scanner import Tally

    return Tally()


def _track(
    parent: str | None,
    states: str,
    workload: str,
    output: str,
    signing: Signing,
) -> Track:
    """What makes a dump an increment; a parent that is no good costs a full dump, and only that."""
    from sealpoint.checkpoint import Opening, Track
    from sealpoint.errors import FileError, PolicyError
    from sealpoint.state.chains import StateStore

    track = Track(StateStore(states), notice.warn, workload)
    if parent is None:
        track.start(None)
        return track
    if os.path.isfile(output) and os.path.samefile(parent, output):
        raise UsageError("the increment would replace its parent", hint="name another output")
    policy = keyring.configured().policy(more=signing.signers, allow_unsigned=not signing.signers)
    try:
        checkpoint = Opening(policy, alone=True).open(parent)
    except (FileError, PolicyError) as error:
        notice.warn(f"a full dump is made: {error.message}")
        track.start(None)
        return track
    with checkpoint:
        track.start(checkpoint.links[0])
    return track


def _await_ack(timeout: float) -> Callable[[bytes, bytes], bool]:
    def acknowledge(checkpoint_id: bytes, origin_digest: bytes) -> bool:
        """Wait for the line that `restore --ack` prints.  The tree is frozen meanwhile."""
        expected = ack_line(checkpoint_id, origin_digest)
        received = b""
        deadline = time.monotonic() + timeout
        while b"\n" not in received and len(received) < len(expected):
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select([0], [], [], wait)[0]:
                raise UsageError("the receiver did not acknowledge in time: the tree runs on")
            piece = os.read(0, 256)
            if not piece:
                raise UsageError("the receiver closed without acknowledging: the tree runs on")
            received += piece
        if received != expected:
            raise UsageError("the receiver acknowledged another checkpoint: the tree runs on")
        return True

    return acknowledge

"""`sealpoint dump`."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from sealpoint import config as configuration
from sealpoint.cli import numbers, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.checkpoint.chunking import ChunkAdder
    from sealpoint.checkpoint.dump import DumpResult
    from sealpoint.checkpoint.track import Track
    from sealpoint.format.writer import Signing
    from sealpoint.inspect.scanner import Tally
    from sealpoint.podman.checkpoint import CheckpointResult


@click.command(context_settings={"ignore_unknown_options": False})
@click.option(
    "-t",
    "--tree",
    "pid",
    type=numbers.PID,
    required=True,
    metavar="PID",
    help="Root of the process tree.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE|-",
    help="The sealed file, or - for standard output.",
)
@options.seal_options
@click.option("-R", "--leave-running", is_flag=True, help="Let the tree run on after the dump.")
@click.option(
    "--kill-after",
    type=click.Choice(["ack"]),
    help="With -o -: end the tree once the receiver's acknowledgement (restore --ack) arrives on standard input.",
)
@click.option(
    "--ack-timeout", type=numbers.SECONDS, default=600.0, show_default=True, metavar="SECONDS"
)
@click.option("--track", is_flag=True, help="Begin a chain: remember what a later --parent needs.")
@click.option(
    "--parent",
    metavar="PREV",
    help="Store only pages that have changed since this sealed file was dumped here; implies --track.",
)
@options.state_option
@click.option(
    "--store",
    metavar="DIR",
    help="Keep memory in this chunk store, which other checkpoints share, and refer to it; needs --tenant-key.",
)
@click.option("--tenant-key", metavar="FILE", help="The key of the store's tenant.")
@click.option("--workload", default="", metavar="ID", help="Opaque public name of what is dumped.")
@click.option(
    "--scan",
    is_flag=True,
    help="Count what looks like secrets, by kind, while they are sealed (sealpoint secrets shows more).",
)
@options.criu_options
@options.json_option
@click.argument("criu_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- CRIU-OPTIONS]")
def command(
    *,
    pid: int,
    output: str,
    leave_running: bool,
    kill_after: str | None,
    ack_timeout: float,
    track: bool,
    parent: str | None,
    state: str | None,
    store: str | None,
    tenant_key: str | None,
    workload: str,
    scan: bool,
    criu: str | None,
    criu_log: str | None,
    as_json: bool,
    criu_arguments: tuple[str, ...],
    **seal: Any,
) -> None:
    """Dump a process tree with stock CRIU into one encrypted, signed file.

    The tree ends when the sealed file is complete and durable (with -R, or to a pipe, it runs on). If anything fails,
    it runs on and no file is left.

    An increment (--parent) needs its parents to be restored. If none is possible, the dump is a full one and says
    so.

    \b
    Example:
      sealpoint dump -t 4711 -o app.sealed -r keys/recipient.pub --sign keys/signer.key -- --shell-job
      sealpoint dump -t 4711 -o 2.sealed --parent 1.sealed -r recipient.pub --sign signer.key
      sealpoint dump -t 4711 --store store --tenant-key tenant.key -o store/app.sealed \\
        -r recipient.pub --sign signer.key
    """
    config = configuration.load()
    options.protect()
    piped = output == "-"
    if bool(store) != bool(tenant_key):
        raise UsageError("--store and --tenant-key go together")
    if kill_after and not piped:
        raise UsageError("--kill-after ack is for -o -: a file is durable before the tree ends")
    if kill_after and leave_running:
        raise UsageError("--kill-after and --leave-running contradict each other")
    if kill_after and "-" in (seal["passphrase_file"], seal["sign_passphrase_file"]):
        raise UsageError("standard input cannot carry both a passphrase and the acknowledgement")
    if kill_after and os.isatty(0):
        raise UsageError(
            "--kill-after ack waits for the receiver on standard input, which is a terminal"
        )

    from sealpoint.criu.binary import Search

    search = Search(criu or config.criu or None, fault=config.criu_fault)
    from sealpoint.checkpoint.dump import Dump, DumpRequest
    from sealpoint.cli.bar import Bar
    from sealpoint.cli.store import described, in_words, open_store, warn_damaged
    from sealpoint.store.output import open_output

    prepared = options.sealing(config, seal)
    tally = _tally() if scan else None
    tracked = None
    if track or parent:
        tracked = _track(parent, state, workload, output, config, prepared.signing)
    opened: AbstractContextManager[ChunkAdder | None] = nullcontext()
    if store and tenant_key:
        opened = open_store(store, tenant_key, prepared, observe=tally)
    request = DumpRequest(
        pid=pid,
        criu=search.result(),
        leave_running=leave_running or (piped and not kill_after),
        options=criu_arguments,
        workload=workload,
        criu_log=criu_log,
        acknowledge=_await_ack(ack_timeout) if kill_after else None,
        scan=tally,
        track=tracked,
        sealing=prepared,
    )
    with (
        opened as adder,
        open_output(output, force=seal["force"]) as out,
        Bar(f"dumping {pid}") as bar,
    ):
        result = Dump(request._replace(store=adder), out).run(bar)
    note_newest(state or config.state, tracked.workload if tracked else workload, result)
    values = {
        "checkpoint": result.checkpoint_id.hex(),
        "origin": result.origin_digest.hex(),
        "file": output,
        "file_size": result.file_size,
        "plain_size": result.plain_size,
        "zero_size": result.zero_size,
        "compressed_size": result.compressed_size,
        "seconds": round(result.seconds, 3),
        "left_running": result.left_running,
        "criu": result.criu,
    }
    stored, pages = (0, 0) if tracked is None else tracked.changed
    if tracked is not None:
        values["increment"] = tracked.continues
        values["pages_stored"], values["pages"] = stored, pages
    if adder is not None:
        warn_damaged(adder)
        values |= described(adder)
    if tally is not None:
        values["secrets"] = dict(sorted(tally.counts.items()))
        if tally.failed:
            options.warn(f"the scan for secrets is not complete: {tally.failed}")
    if as_json:
        _print_json(values, err=piped)
        return
    frozen = result.criu.get("frozen_time", 0) / 1e6
    where = "standard output" if piped else output
    sizes = f"{options.show_size(result.plain_size)} in {options.show_size(result.file_size)}"
    if tracked is not None and tracked.continues:
        sizes = f"{stored} of {pages} pages have changed, {sizes}"
    if adder is not None:
        sizes += f" and {in_words(adder)}"
    click.echo(
        f"process {pid} sealed into {printable(where)}: {sizes}, {result.seconds:.2f} s (frozen {frozen:.2f} s)"
        f"{', still running' if result.left_running else ''}\ncheckpoint {result.checkpoint_id.hex()}",
        err=piped,
    )
    if tally is not None:
        found = ", ".join(f"{n} {kind}" for kind, n in sorted(tally.counts.items())) or "none"
        click.echo(f"looks like secrets: {found}", err=piped)


def _tally() -> Tally:
    """Before the tree is frozen: compiling what to look for takes a moment.  Raises SystemEnvironmentError."""
    from sealpoint.inspect.scanner import Tally

    return Tally()


def note_newest(state: str, workload: str, result: DumpResult | CheckpointResult) -> None:
    """Older checkpoints of this workload are from now on restored on request only."""
    from sealpoint.checkpoint.newest import Mark, Newest
    from sealpoint.checkpoint.state import DEFAULT_DIRECTORY
    from sealpoint.errors import SystemEnvironmentError

    mark = Mark(result.checkpoint_id, result.captured, 1)
    try:
        Newest(state or DEFAULT_DIRECTORY).note(workload, mark)
    except SystemEnvironmentError as error:
        options.warn(error.message)


def _track(
    parent: str | None,
    state: str | None,
    workload: str,
    output: str,
    config: configuration.Config,
    signing: Signing,
) -> Track:
    """What makes a dump an increment; a parent that is no good costs a full dump, and only that."""
    from sealpoint.checkpoint.opening import Opening
    from sealpoint.checkpoint.state import DEFAULT_DIRECTORY, StateStore
    from sealpoint.checkpoint.track import Track
    from sealpoint.errors import FileError, PolicyError

    track = Track(StateStore(state or config.state or DEFAULT_DIRECTORY), options.warn, workload)
    if parent is None:
        track.start(None)
        return track
    if output != "-" and os.path.exists(output) and os.path.samefile(parent, output):
        raise UsageError("the increment would replace its parent", hint="name another output")
    policy = config.policy(more=signing.signers, allow_unsigned=not signing.signers)
    try:
        checkpoint = Opening(policy, alone=True).open(parent)
    except (FileError, PolicyError) as error:
        options.warn(f"a full dump is made: {error.message}")
        track.start(None)
        return track
    with checkpoint:
        track.start(checkpoint.links[0])
    return track


def _print_json(values: dict[str, Any], *, err: bool) -> None:

    echo_json(values, err=err)


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
            raise UsageError("the receiver acknowledged something else: the tree runs on")
        return True

    return acknowledge


def ack_line(checkpoint_id: bytes, origin_digest: bytes) -> bytes:
    """What the receiver prints when everything has verified: it names exactly this checkpoint."""
    return b"sealpoint-ack %s %s\n" % (checkpoint_id.hex().encode(), origin_digest.hex().encode())

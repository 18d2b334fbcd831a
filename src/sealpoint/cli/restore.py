"""`sealpoint restore`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from sealpoint.cli import notice, options
from sealpoint.cli.printable import echo_json, standard_output
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.cli.running import Running, ack_line, runs_criu

if TYPE_CHECKING:
    from sealpoint.checkpoint import Admission, OpenedCheckpoint


@click.command()
@click.argument("file", metavar="FILE|-")
@reads_checkpoint("expect", "parents", "stores", "max_size")
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Return as soon as the tree runs, instead of waiting until it ends.",
)
@click.option(
    "--spool",
    metavar="DIR",
    help="With -: hold the ciphertext in an unlinked file in DIR, not in memory.",
)
@click.option(
    "--ack", is_flag=True, help="Print the acknowledgement that dump --kill-after ack waits for."
)
@options.allow_older_option
@runs_criu()
def command(
    *,
    file: str,
    reading: Reading,
    running: Running,
    detach: bool,
    spool: str | None,
    ack: bool,
    allow_older: bool,
    as_json: bool,
) -> int:
    """Restore a process tree from a sealed file, if a trusted signer made it and every byte is authentic.

    No task of the tree runs before everything has been verified. Without --detach the command waits until the tree
    ends. The parents of an increment are found beside it.

    \b
    Example:
      sealpoint restore app.sealed -i keys/identity.key --trust keys/signer.pub --detach
      ssh HOST cat app.sealed | sealpoint restore - -i identity.key --trust signer.pub
    """
    reading.harden()
    search = running.search()
    from sealpoint.checkpoint import Admission, Restore, RestoreRequest
    from sealpoint.cli.bar import Bar

    with Bar("receiving") as bar:
        opening = reading.opening_of(file, spool=spool, progress=bar.counter())
        binary = search.result()
        checkpoint = opening.open(file)
    with checkpoint:
        admission = Admission(checkpoint, running.states, notice.warn, allow_older=allow_older)
        opened = checkpoint.files()
        request = RestoreRequest(
            criu=binary,
            detach=detach,
            options=running.criu_arguments,
            criu_log=running.criu_log,
            permitted=admission.permit,
            approved=_approved(checkpoint, admission, ack=ack),
        )
        notice.announce(checkpoint)
        with Bar("restoring") as bar:
            result = Restore(request, opened).run(bar)
    if as_json:
        values = {
            "pid": result.pid,
            "seconds": round(result.seconds, 3),
            "signers": [s.name for s in checkpoint.signers],
            "criu": result.criu,
        }
        echo_json(values, err=ack)
    elif detach:
        click.echo(f"process {result.pid} restored in {result.seconds:.2f} s", err=ack)
    return result.status


def _approved(
    checkpoint: OpenedCheckpoint, admission: Admission, *, ack: bool
) -> Callable[[], None]:
    """What happens when every byte has verified, before the tree runs."""

    def approved() -> None:
        reference = checkpoint.reference
        admission.passed()
        if ack:
            with standard_output() as out:
                out.buffer.write(ack_line(reference.checkpoint_id, reference.origin_digest))
                out.buffer.flush()

    return approved

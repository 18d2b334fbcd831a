"""`sealpoint restore`."""

from __future__ import annotations

import sys

import click

from sealpoint import config as configuration
from sealpoint.cli import options
from sealpoint.cli.printable import echo_json


@click.command()
@click.argument("file", metavar="FILE|-")
@options.identity_options
@options.trust_options
@options.expect_options
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
@options.max_size_option
@click.option(
    "--ack", is_flag=True, help="Print the acknowledgement that dump --kill-after ack waits for."
)
@options.parents_option
@options.store_option
@options.allow_older_option
@options.state_option
@options.criu_options
@options.json_option
@click.argument("criu_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- CRIU-OPTIONS]")
def command(
    *,
    file: str,
    identities: tuple[str, ...],
    passphrase_file: str | None,
    trust: tuple[str, ...],
    allow_unsigned: bool,
    allow_expired: bool,
    workloads: tuple[str, ...],
    expect: tuple[str, ...],
    detach: bool,
    spool: str | None,
    max_size: int | None,
    ack: bool,
    parents: tuple[str, ...],
    stores: tuple[str, ...],
    allow_older: bool,
    state: str | None,
    criu: str | None,
    criu_log: str | None,
    as_json: bool,
    criu_arguments: tuple[str, ...],
) -> int:
    """Restore a process tree from a sealed file, if a trusted signer made it and every byte is authentic.

    No task of the tree runs before everything has been verified. Without --detach the command waits until the tree
    ends. The parents of an increment are found beside it.

    \b
    Example:
      sealpoint restore app.sealed -i keys/identity.key --trust keys/signer.pub --detach
      ssh HOST cat app.sealed | sealpoint restore - -i identity.key --trust signer.pub
    """
    options.check_standard_input(file, passphrase_file)
    config = configuration.load()
    options.protect()
    from sealpoint.criu.binary import Search

    search = Search(criu or config.criu or None, fault=config.criu_fault)
    from sealpoint.checkpoint.admission import Admission
    from sealpoint.checkpoint.progress import Progress
    from sealpoint.checkpoint.restore import Restore, RestoreRequest
    from sealpoint.checkpoint.state import DEFAULT_DIRECTORY
    from sealpoint.cli.bar import Bar
    from sealpoint.cli.dump import ack_line

    with Bar("receiving") as bar:
        received = 0

        def receive(size: int) -> None:
            nonlocal received
            received += size
            bar(Progress(received))

        opening = options.opening(
            config,
            identities=identities,
            passphrase_file=passphrase_file,
            trust=trust,
            allow_unsigned=allow_unsigned,
            allow_expired=allow_expired,
            workloads=workloads,
            expect=expect,
            parents=parents,
            stores=stores,
            spool=spool,
            limit=max_size,
            progress=receive,
        )
        binary = search.result()
        checkpoint = opening.open(file)
    with checkpoint:
        states = state or config.state or DEFAULT_DIRECTORY
        admission = Admission(checkpoint, states, options.warn, allow_older=allow_older)
        opened = checkpoint.files()

        def approved() -> None:
            reference = checkpoint.reference
            admission.passed()
            if ack:
                sys.stdout.buffer.write(ack_line(reference.checkpoint_id, reference.origin_digest))
                sys.stdout.buffer.flush()

        request = RestoreRequest(
            criu=binary,
            detach=detach,
            options=criu_arguments,
            criu_log=criu_log,
            permitted=admission.permit,
            approved=approved,
        )
        options.announce(checkpoint)
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

"""`sealpoint list`."""

from __future__ import annotations

import click

from sealpoint.cli import options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import ANY_KIND, Reading, reads_checkpoint
from sealpoint.cli.show import print_table
from sealpoint.errors import SystemEnvironmentError


@click.command("list")
@click.argument("directory", metavar="[DIR]", required=False)
@options.json_option
@reads_checkpoint(*ANY_KIND)
def command(directory: str | None, *, as_json: bool, reading: Reading) -> None:
    """List the checkpoints in a directory (default: that of the kubelet): sealed files, archives, image directories.

    Without -i, only the public part of a sealed file is shown; its signature is checked, but no signer is judged.

    \b
    Example:
      sealpoint list /var/lib/kubelet/checkpoints
    """
    from sealpoint.inspect import listing
    from sealpoint.inspect.tree_text import size

    directory = directory or listing.KUBELET
    given = bool(reading.identities)
    if given:
        reading.harden()
    try:
        found = listing.checkpoints(directory, reading.access(), identities=given)
    except OSError as error:
        raise SystemEnvironmentError(f"cannot list {directory}: {error.strerror}") from None
    if as_json:
        echo_json([one.to_json() for one in found])
        return
    if not found:
        click.echo(f"no checkpoints in {printable(directory)}", err=True)
        return
    print_table(
        [
            {
                "CHECKPOINT": one.name,
                "KIND": one.kind,
                "NAMESPACE": one.namespace,
                "POD": one.pod,
                "CONTAINER": one.container,
                "ENGINE": one.engine,
                "CHECKPOINTED": one.checkpointed,
                "SIZE": size(one.size),
                "ERROR": one.error,
            }
            for one in found
        ]
    )

"""`sealpoint list`."""

from __future__ import annotations

import click

from sealpoint.cli import options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import ANY_KIND, Reading, reads_checkpoint
from sealpoint.cli.show import print_table
from sealpoint.errors import SystemEnvironmentError, UsageError


@click.command("list")
@click.argument("directory", metavar="[DIR|URL]", required=False)
@click.option(
    "--incomplete",
    is_flag=True,
    help="In a store: what uploads have left there that were killed, or that are still under way.",
)
@click.option(
    "--remove",
    is_flag=True,
    help="With --incomplete: remove it. An upload that is still under way then fails.",
)
@options.json_option
@reads_checkpoint(*ANY_KIND)
def command(
    directory: str | None, *, incomplete: bool, remove: bool, as_json: bool, reading: Reading
) -> None:
    """List the checkpoints in a directory (default: that of the kubelet): sealed files, archives, image directories.

    Without -i, only the public part of a sealed file is shown; its signature is checked, but no signer is judged.
    Of a URL, the sealed files beside and below it are shown as the store describes them; nothing of that is verified.

    \b
    Example:
      sealpoint list /var/lib/kubelet/checkpoints
    """
    from sealpoint.store.location import is_url

    if incomplete or remove:
        if not (incomplete and directory and is_url(directory)):
            raise UsageError(
                "--incomplete needs the URL of a store, and --remove needs --incomplete"
            )
        _incomplete(directory, remove=remove, as_json=as_json)
        return
    from sealpoint.inspect import listing
    from sealpoint.inspect.tree_text import size

    directory = directory or listing.KUBELET
    given = bool(reading.identities)
    if given:
        reading.harden()
    try:
        if is_url(directory):
            found = listing.in_store(directory)
        else:
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


def _incomplete(url: str, *, remove: bool, as_json: bool) -> None:
    from sealpoint.store.location import open_store

    store = open_store(url)
    found = list(store.incomplete())
    if remove:
        for one in found:
            store.remove_incomplete(one)
    if as_json:
        echo_json([{"name": one.name, "since": one.since, "removed": remove} for one in found])
        return
    for one in found:
        since = f" since {one.since}" if one.since else ""
        click.echo(f"{printable(one.name)}{printable(since)}{': removed' if remove else ''}")

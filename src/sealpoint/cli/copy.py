"""`sealpoint copy`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click

from sealpoint.cli import notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.checkpoint import OpenedCheckpoint
    from sealpoint.format.reader import AuthenticFile
    from sealpoint.store.output import Destination, Target
    from sealpoint.store.uploading import StoreDestination, Writing


@click.command("copy")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@reads_checkpoint("expect", "max_size", keys=False)
@options.force_option
@options.upload_options
@options.json_option
def command(
    *,
    source: str,
    target: str,
    reading: Reading,
    force: bool,
    spool: str | None,
    unconditional: bool,
    as_json: bool,
) -> None:
    """Copy a sealed file as it is: a file, a URL or - (standard input) to a file, a URL or - (standard output).

    Nothing is decrypted, and no private key is needed. Signatures and the hash of every frame are checked on the way:
    what is damaged, or not signed by anyone whom you trust, is not copied. The copy has the same bytes. In a store it
    gets the layout of sealpoint, whatever it had before. Copy the parents of an increment as well.

    \b
    Example:
      sealpoint copy app.sealed s3://backup/app/1 --trust keys/signer.pub
      sealpoint copy s3://backup/app/1 oci://registry.example.org/app:1 --trust keys/signer.pub
    """
    from sealpoint.checkpoint import copy
    from sealpoint.cli.bar import Bar
    from sealpoint.store.location import is_url
    from sealpoint.store.output import destination
    from sealpoint.store.uploading import StoreDestination, Writing

    to = StoreDestination(target) if is_url(target) else destination(target)
    if not is_url(target) and (unconditional or (spool and source != "-")):
        raise UsageError("--spool and --unconditional are for an output in a store")
    opening = reading.opening_of(source, spool=spool, alone=True, lenient=True)
    how = Writing(force=force, unconditional=unconditional, spool=spool)
    with opening.open(source) as checkpoint:
        with _open(to, checkpoint, how) as out, Bar(f"copying {source}") as bar:
            copied = copy(checkpoint, opening.trust, out, bar.counter(checkpoint.top.source.size))
        url = getattr(out, "url", None)
    _warn(copied)
    if as_json:
        values = {
            "checkpoint": copied.origin.checkpoint_id.hex(),
            "origin": copied.reference.origin_digest.hex(),
            "file": target if url is None else url,
            "file_size": copied.file.size,
        }
        echo_json(values, err=to.streams)
        return
    click.echo(
        f"{printable(source)} copied to {printable(to.label)}: {notice.show_size(copied.file.size)}\n"
        f"checkpoint {copied.origin.checkpoint_id.hex()}",
        err=to.streams,
    )


def _open(
    to: Destination | StoreDestination, checkpoint: OpenedCheckpoint, how: Writing
) -> AbstractContextManager[Target]:
    """A file that lies here need not be held a second time until the store has it."""
    from sealpoint.format.raw import Descriptor
    from sealpoint.store.output import Destination

    if isinstance(to, Destination):
        return to.open(force=how.force)
    source = checkpoint.top.source
    return to.open(how._replace(source=source.fd if isinstance(source, Descriptor) else None))


def _warn(copied: AuthenticFile) -> None:
    """Of what the copy needs besides."""
    if copied.index.references:
        notice.warn(
            f"it refers to {notice.show_count(copied.index.references, 'stored chunk')}, which are not copied: "
            "`sealpoint flatten` makes a file that needs no chunk store"
        )
    if copied.origin.parent is not None:
        notice.warn(
            f"it is an increment: a restore needs its parent {copied.origin.parent.checkpoint_id.hex()}, too"
        )
    if copied.interrupted:
        notice.warn("a rekey was interrupted; finish it with: sealpoint rekey FILE --repair")

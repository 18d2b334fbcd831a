"""`sealpoint prune`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from sealpoint.cli import numbers, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.cli.sealing import SealOptions, seals_checkpoint

if TYPE_CHECKING:
    from sealpoint.checkpoint import OpenedCheckpoint, Sealing


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--keep-last", type=numbers.count(), default=0, metavar="N", help="Keep the newest N."
)
@click.option(
    "--keep-daily",
    type=numbers.count(),
    default=0,
    metavar="N",
    help="Keep the newest of each day (UTC), for N days on which there is one.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@reads_checkpoint()
@seals_checkpoint(new=False)
@options.json_option
def command(
    *,
    file: str,
    keep_last: int,
    keep_daily: int,
    dry_run: bool,
    reading: Reading,
    seal: SealOptions,
    as_json: bool,
) -> None:
    """Thin out the chain that ends with FILE: files that are not kept are merged into the next newer one and removed.

    FILE is always kept, and so is every file that a file outside the chain continues. A merged file is sealed and in
    place before anything is removed.

    \b
    Example:
      sealpoint prune 720.sealed --keep-last 24 --keep-daily 30 -i identity.key --trust signer.pub \\
        -r recipient.pub --sign signer.key
    """
    from sealpoint.checkpoint import retention

    opening = reading.opening()
    make = no_merging if dry_run else merging(seal.sealing())
    done = retention.prune(file, opening, make, last=keep_last, daily=keep_daily, dry_run=dry_run)
    if as_json:
        values = {"kept": done.kept, "replaced": done.replaced, "removed": done.removed}
        echo_json(values)
        return
    would = "would be " if dry_run else ""
    for path in done.kept:
        merged = f", {would}merged with older ones" if path in done.replaced else ""
        click.echo(f"kept {printable(path)}{merged}")
    for path in done.removed:
        click.echo(f"{would}removed {printable(path)}")


def no_merging(_checkpoint: OpenedCheckpoint, _first: int, _count: int) -> None:
    """For a dry run, which needs no keys to seal with."""


def merging(sealing: Sealing) -> Callable[[OpenedCheckpoint, int, int], None]:
    """What `retention.prune` merges with."""
    from sealpoint.checkpoint import merge
    from sealpoint.cli.bar import Bar
    from sealpoint.store.output import open_output

    def make(checkpoint: OpenedCheckpoint, first: int, count: int) -> None:
        files = checkpoint.whole()
        path = checkpoint.links[first].path
        with open_output(path, force=True) as out, Bar(f"merging into {path}") as bar:
            merge(files[first:], out, sealing, count=count, report=bar)

    return make

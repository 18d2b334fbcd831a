"""`sealpoint report`."""

from __future__ import annotations

import click

from sealpoint.cli import notice
from sealpoint.cli.printable import printable
from sealpoint.cli.reading import ANY_KIND, Reading, reads_checkpoint


@click.command()
@click.argument("file", metavar="FILE|DIR|-")
@click.option(
    "-o", "--output", required=True, metavar="FILE.html", help="The page, or - for standard output."
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@reads_checkpoint(*ANY_KIND)
def command(*, file: str, output: str, force: bool, reading: Reading) -> None:
    """Write a report as one HTML page: processes, memory maps, files, sockets, sizes, and who sealed it for whom.

    The page needs no network and no other file, and holds no memory contents; it does hold names, paths and addresses.
    With an identity that opens only metadata, the memory maps are missing.

    \b
    Example:
      sealpoint report app.sealed -o app.html -i keys/identity.key --trust keys/signer.pub
    """
    from sealpoint.inspect.report import collect
    from sealpoint.inspect.report_page import render
    from sealpoint.inspect.source import images, split_place
    from sealpoint.store.output import destination

    where = destination(output)
    path, directory = split_place(file)
    with reading.source(path) as opened:
        page = render(collect(images(opened, directory)))
    with where.open(force=force) as out:
        out.write(page.encode())
        out.commit()
    if not where.streams:
        click.echo(f"{printable(output)}: {notice.show_size(len(page.encode()))}")

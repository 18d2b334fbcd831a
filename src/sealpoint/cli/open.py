"""`sealpoint open`."""

from __future__ import annotations

import click

from sealpoint.cli import encrypted, notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint


@click.command()
@click.argument("file", metavar="FILE|-")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="DIR|FILE.tar",
    help="A new directory, or an archive by its ending (.tar, .tar.gz, .tar.zst); - is tar to standard output.",
)
@reads_checkpoint("expect", "stores", "max_size")
@click.option(
    "--only", multiple=True, metavar="GLOB", help="Only objects whose name matches. Repeatable."
)
@options.force_option
@options.json_option
def command(
    *,
    file: str,
    output: str,
    reading: Reading,
    only: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Open a sealed file: decrypt its objects into a directory or an archive, where they are in the clear.

    FILE may be a directory in which a CRIU with the CRIUsec patches made an encrypted dump.

    \b
    Example:
      sealpoint open checkpoint.sealed -o checkpoint.tar -i keys/identity.key --trust keys/signer.pub
      sealpoint open app.sealed -o images -i keys/identity.key --trust keys/signer.pub --only 'core-*'
    """
    if encrypted.is_dump(file):
        reading.refuse_expectation(file)
        encrypted.open_plain(file, output, only, reading, force=force, as_json=as_json)
        return
    from sealpoint.checkpoint import extract
    from sealpoint.cli.bar import Bar
    from sealpoint.store.output import destination

    piped = destination(output).streams
    with reading.open(file, alone=True) as checkpoint, Bar(f"opening {file}") as bar:
        opened = checkpoint.file()
        entries = extract.select(opened, only)
        if extract.is_archive_name(output):
            extract.extract_tar(opened, entries, output, bar, force=force)
        else:
            extract.extract_directory(opened, entries, output, bar, force=force, source=file)
    size = sum(e.size for e in entries)
    if not opened.has_memory:
        notice.warn("this identity opens metadata only: memory objects were left out")
    if checkpoint.origin.parent is not None:
        notice.warn("this is an increment: pages that its parents have are not in it (flatten)")
    if as_json:
        values = {"output": output, "objects": len(entries), "size": size}
        echo_json(values, err=piped)
    else:
        click.echo(
            f"{len(entries)} objects, {notice.show_size(size)}, in the clear in {printable(output)}",
            err=piped,
        )

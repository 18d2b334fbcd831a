"""`sealpoint open`."""

from __future__ import annotations

import click

from sealpoint import config as configuration
from sealpoint.cli import encrypted, options
from sealpoint.cli.printable import echo_json, printable


@click.command()
@click.argument("file", metavar="FILE|-")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="DIR|FILE.tar",
    help="A directory to be made, or an archive by its ending (.tar, .tar.gz, .tar.zst); - is tar to standard output.",
)
@options.identity_options
@options.trust_options
@options.expect_options
@click.option(
    "--only", multiple=True, metavar="GLOB", help="Only objects whose name matches. Repeatable."
)
@options.store_option
@options.max_size_option
@click.option("--force", is_flag=True, help="Replace an existing output.")
@options.json_option
def command(
    *,
    file: str,
    output: str,
    identities: tuple[str, ...],
    passphrase_file: str | None,
    trust: tuple[str, ...],
    allow_unsigned: bool,
    allow_expired: bool,
    workloads: tuple[str, ...],
    expect: tuple[str, ...],
    only: tuple[str, ...],
    stores: tuple[str, ...],
    max_size: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Open a sealed file: its objects, decrypted, in a directory or an archive. They are in the clear then.

    FILE may be a directory in which a CRIU with the CRIUsec patches made an encrypted dump.

    \b
    Example:
      sealpoint open checkpoint.sealed -o checkpoint.tar -i keys/identity.key --trust keys/signer.pub
      sealpoint open app.sealed -o images -i keys/identity.key --trust keys/signer.pub --only 'core-*'
    """
    if encrypted.is_dump(file):
        options.refuse_expectation(file, workloads, expect)
        access = {"trust": trust, "allow_unsigned": allow_unsigned, "allow_expired": allow_expired}
        access |= {"identities": identities, "passphrase_file": passphrase_file}
        encrypted.open_plain(file, output, only, force=force, as_json=as_json, **access)
        return
    options.check_standard_input(file, passphrase_file)
    config = configuration.load()
    options.protect()
    from sealpoint.checkpoint import extract
    from sealpoint.cli.bar import Bar

    opening = options.opening(
        config,
        identities=identities,
        passphrase_file=passphrase_file,
        trust=trust,
        allow_unsigned=allow_unsigned,
        allow_expired=allow_expired,
        workloads=workloads,
        expect=expect,
        stores=stores,
        limit=max_size,
        alone=True,
    )
    with opening.open(file) as checkpoint, Bar(f"opening {file}") as bar:
        opened = checkpoint.file()
        entries = extract.select(opened, only)
        if extract.is_archive_name(output):
            extract.extract_tar(opened, entries, output, bar, force=force)
        else:
            extract.extract_directory(opened, entries, output, bar, force=force, source=file)
    size = sum(e.size for e in entries)
    if not opened.has_memory:
        options.warn("this identity opens metadata only: memory objects were left out")
    if checkpoint.origin.parent is not None:
        options.warn("this is an increment: pages that its parents have are not in it (flatten)")
    if as_json:
        values = {"output": output, "objects": len(entries), "size": size}
        echo_json(values, err=output == "-")
    else:
        click.echo(
            f"{len(entries)} objects, {options.show_size(size)}, in the clear in {printable(output)}",
            err=output == "-",
        )

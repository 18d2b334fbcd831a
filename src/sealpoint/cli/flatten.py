"""`sealpoint flatten`."""

from __future__ import annotations

from typing import Any

import click

from sealpoint import config as configuration
from sealpoint.cli import options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import UsageError


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT|-",
    help="The sealed file, or - for standard output.",
)
@options.identity_option
@options.trust_options
@options.parents_option
@options.store_option
@options.seal_options
@options.json_option
def command(
    *,
    file: str,
    output: str,
    identities: tuple[str, ...],
    trust: tuple[str, ...],
    allow_unsigned: bool,
    allow_expired: bool,
    parents: tuple[str, ...],
    stores: tuple[str, ...],
    as_json: bool,
    **seal: Any,
) -> None:
    """Make one sealed file of an increment and all its parents: it restores by itself, and stands for the increment.

    A file that refers to a chunk store becomes one that does not.

    It is sealed anew, to the recipients that you name, and signed by you. FILE and its parents stay as they are.

    \b
    Example:
      sealpoint flatten 3.sealed -o whole.sealed -i identity.key --trust signer.pub \\
        -r recipient.pub --sign signer.key
    """
    config = configuration.load()
    options.protect()
    from sealpoint.checkpoint.merge import merge
    from sealpoint.cli.bar import Bar
    from sealpoint.store.output import open_output

    if file == "-":
        raise UsageError("an increment is read from a file: its parents lie beside it")
    opening = options.opening(
        config,
        identities=identities,
        passphrase_file=seal["passphrase_file"],
        trust=trust,
        allow_unsigned=allow_unsigned,
        allow_expired=allow_expired,
        parents=parents,
        stores=stores,
    )
    prepared = options.sealing(config, seal)
    with opening.open(file) as checkpoint:
        files = checkpoint.whole()
        with open_output(output, force=seal["force"]) as out, Bar(f"flattening {file}") as bar:
            result = merge(files, out, prepared, report=bar)
    piped = output == "-"
    if as_json:
        values = {
            "checkpoint": result.checkpoint_id.hex(),
            "origin": result.origin_digest.hex(),
            "files": len(files),
            "file_size": result.file_size,
        }
        echo_json(values, err=piped)
    else:
        click.echo(
            f"{options.show_count(len(files), 'file')} in {'standard output' if piped else printable(output)}: "
            f"{options.show_size(result.file_size)}\ncheckpoint {result.checkpoint_id.hex()}",
            err=piped,
        )

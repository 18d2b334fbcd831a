"""`sealpoint seal`."""

from __future__ import annotations

import os
from typing import Any

import click

from sealpoint import config as configuration
from sealpoint.cli import encrypted, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import UsageError


@click.command()
@click.argument("path", metavar="PATH|-")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE|-",
    help="The sealed file, or - for standard output.",
)
@options.seal_options
@options.json_option
def command(path: str, output: str, *, as_json: bool, **seal: Any) -> None:
    """Seal an existing image directory or engine archive (tar, tar.gz or tar.zst, recognised by content).

    With - an archive is read from standard input. PATH itself stays as it is: in the clear, until you remove it.

    \b
    Example:
      sealpoint seal app.tar.zst -o app.sealed -r keys/recipient.pub --sign keys/signer.key
    """
    options.check_standard_input(path, seal["passphrase_file"])
    options.check_standard_input(path, seal["sign_passphrase_file"])
    config = configuration.load()
    options.protect()
    from sealpoint.checkpoint.seal import seal as run
    from sealpoint.cli.bar import Bar
    from sealpoint.store.output import open_output

    if os.path.isdir(path) and _inside(output, path):
        raise UsageError(f"{output} would lie in the directory that is to be sealed")
    if encrypted.is_dump(path):
        options.warn(
            f"{path} is encrypted in the CRIUsec format, and is sealed as it is: only a CRIU that knows the format can "
            "restore what it opens to. sealpoint convert decrypts it first"
        )
    prepared = options.sealing(config, seal)
    with open_output(output, force=seal["force"]) as out, Bar(f"sealing {path}") as bar:
        result = run(path, out, prepared, report=bar)
    for key in result.ignored:
        options.warn(f"the archive's {key} headers were not kept")
    piped = output == "-"
    if as_json:
        values = {
            "checkpoint": result.checkpoint_id.hex(),
            "origin": result.origin_digest.hex(),
            "objects": result.objects,
            "plain_size": result.plain_size,
            "file_size": result.file_size,
        }
        echo_json(values, err=piped)
    else:
        where = "standard output" if piped else printable(output)
        click.echo(
            f"{printable(path)} sealed into {where}: {result.objects} objects, "
            f"{options.show_size(result.plain_size)} in {options.show_size(result.file_size)}\n"
            f"checkpoint {result.checkpoint_id.hex()}",
            err=piped,
        )


def _inside(output: str, directory: str) -> bool:
    if output == "-":
        return False
    top = os.path.realpath(directory)
    return os.path.commonpath([top, os.path.realpath(os.path.dirname(output) or ".")]) == top

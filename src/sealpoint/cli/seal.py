"""`sealpoint seal`."""

from __future__ import annotations

import json
from typing import Any

import click

from sealpoint import config as configuration
from sealpoint.cli import options


@click.command()
@click.argument("path", metavar="PATH")
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

    PATH itself stays as it is: in the clear, until you remove it.

    \b
    Example:
      sealpoint seal checkpoint.tar.zst -o checkpoint.sealed -r keys/recipient.pub --sign keys/signer.key
    """
    config = configuration.load()
    options.protect()
    from sealpoint.checkpoint.seal import seal as run
    from sealpoint.cli.bar import Bar
    from sealpoint.cli.dump import sealing
    from sealpoint.store.output import open_output

    prepared = sealing(config, seal)
    with open_output(output, force=seal["force"]) as out, Bar(f"sealing {path}") as bar:
        result = run(path, out, report=bar, **prepared)
    piped = output == "-"
    if as_json:
        values = {
            "checkpoint": result.checkpoint_id.hex(),
            "origin": result.origin_digest.hex(),
            "objects": result.objects,
            "plain_size": result.plain_size,
            "file_size": result.file_size,
        }
        click.echo(json.dumps(values, indent=2), err=piped)
    else:
        click.echo(
            f"{path} sealed into {'standard output' if piped else output}: {result.objects} objects, "
            f"{options.show_size(result.plain_size)} in {options.show_size(result.file_size)}\n"
            f"checkpoint {result.checkpoint_id.hex()}",
            err=piped,
        )

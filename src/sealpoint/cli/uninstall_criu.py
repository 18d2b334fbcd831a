"""`sealpoint uninstall-criu`."""

from __future__ import annotations

import json

import click

from sealpoint.cli import options
from sealpoint.cli.printable import printable


@click.command()
@options.json_option
def command(*, as_json: bool) -> None:
    """Undo what `install-criu` did: the executable goes, the former configuration comes back.

    Files that were changed since are left and named. From then on engines write plain checkpoints again, and sealed
    ones are restored with sealpoint restore.

    \b
    Example:
      sealpoint uninstall-criu --json
    """
    from sealpoint.dropin.install import uninstall

    done, left = uninstall()
    if as_json:
        click.echo(json.dumps({"done": done, "left": left}, indent=2))
        return
    for line in done:
        click.echo(printable(line))
    for line in left:
        click.echo(printable(f"left {line}"))

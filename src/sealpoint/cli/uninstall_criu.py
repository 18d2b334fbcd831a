"""`sealpoint uninstall-criu`."""

from __future__ import annotations

import click

from sealpoint.cli import options
from sealpoint.cli.printable import echo_json, printable


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
    from sealpoint.machine.install import uninstall

    done, left = uninstall()
    if as_json:
        echo_json({"done": done, "left": left})
        return
    for line in done:
        click.echo(printable(line))
    for line in left:
        click.echo(printable(f"left {line}"))

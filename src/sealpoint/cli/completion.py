"""`sealpoint completion SHELL`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Example:
      sealpoint completion bash > /etc/bash_completion.d/sealpoint
    """
    from sealpoint.cli.app import cli

    complete = get_completion_class(shell)
    if complete is not None:
        click.echo(complete(cli, {}, "sealpoint", "_SEALPOINT_COMPLETE").source())

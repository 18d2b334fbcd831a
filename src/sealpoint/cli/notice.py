"""What commands say on standard error, and how numbers look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from sealpoint.cli.printable import printable

if TYPE_CHECKING:
    from sealpoint.checkpoint import OpenedCheckpoint


def warn(message: str) -> None:
    """A warning on standard error."""
    click.echo(f"sealpoint: warning: {printable(message)}", err=True)


def going_on(message: str) -> None:
    """What has come to its end while the command goes on, for whoever finds it killed later."""
    click.echo(f"sealpoint: {printable(message)}", err=True)


def warn_permissions(paths: Sequence[str]) -> None:
    """Say so if a private key can be read by others."""
    from sealpoint import keys

    for path in paths:
        if warning := keys.permissions_warning(path):
            warn(warning)


def warn_ownership(names: Sequence[str]) -> None:
    """Say so, to root, if what the command line names is another user's; literals and key ids are nobody's."""
    from sealpoint import ownership

    for name in names:
        if not isinstance(name, ownership.Configured) and (found := ownership.concern(name)):
            warn(f"{found}: anyone who can change it decides what root does with it")


def protect() -> None:
    """Harden this process before it holds plaintext."""
    from sealpoint import process

    for warning in process.protect():
        warn(warning)
    if process.swap_in_use():
        from sealpoint.criu.private_dir import swap_warning

        if said := swap_warning():
            warn(said)


def announce(checkpoint: OpenedCheckpoint) -> None:
    """Say on standard error what is about to be restored, before it is."""
    from sealpoint.checkpoint import describe_admitted

    for line in describe_admitted(checkpoint):
        click.echo(f"sealpoint: restoring {line}", err=True)


def some(names: Sequence[str], most: int = 4) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def show_count(number: int, noun: str) -> str:
    """As in 1 file, 2 files."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def show_size(size: int) -> str:
    """For people: 1.03 GiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"

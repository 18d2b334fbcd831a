"""`sealpoint umount`."""

from __future__ import annotations

import click

from sealpoint.errors import SystemEnvironmentError, UsageError


@click.command()
@click.argument("directory", metavar="DIR")
@click.option(
    "--lazy", is_flag=True, help="Detach now even if files are open; readers finish undisturbed."
)
def command(directory: str, *, lazy: bool) -> None:
    """End what `sealpoint mount` began.

    \b
    Example:
      sealpoint umount /mnt
    """
    from sealpoint.criu import mounts

    if not mounts.is_ours(directory):
        raise UsageError(f"no sealed file is mounted on {directory}")
    try:
        mounts.unmount(directory, lazy=lazy)
    except OSError as error:
        raise SystemEnvironmentError(
            f"cannot unmount {directory}: {error.strerror}", hint="end what uses it, or add --lazy"
        ) from None

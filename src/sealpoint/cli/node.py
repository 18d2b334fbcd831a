"""`sealpoint node install`, `uninstall` and `status`: what a privileged container does to the host that it runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import SystemEnvironmentError

if TYPE_CHECKING:
    from sealpoint.node.install import NodeStatus


@click.group()
def command() -> None:
    """Install the drop-in on the host from a privileged container, such as the init container of a DaemonSet.

    The container needs the host's root directory at DIR, with everything that is mounted below it. The host needs
    neither Python nor CRIU. Settings and keys of the host lie in its /etc/sealpoint as elsewhere.

    \b
    Example:
      sealpoint node install --host /host
      sealpoint node status --host /host --json
      sealpoint node uninstall --host /host
    """


def _places(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--directory",
        default="/opt/sealpoint",
        show_default=True,
        metavar="DIR",
        help="Where it is installed, as the host names it; the one above must exist there.",
    )(function)
    return click.option(
        "--host",
        default="/host",
        show_default=True,
        metavar="DIR",
        help="Where the host's root directory is mounted.",
    )(function)


@contextmanager
def _refused_as_json(*, as_json: bool) -> Iterator[None]:
    """A host where the drop-in cannot work is an answer, too, for programs that ask."""
    from sealpoint.node.host import UnsupportedError

    try:
        yield
    except UnsupportedError as error:
        if as_json:
            echo_json({"supported": False, "reason": error.reason, "message": error.message})
        raise


@command.command("install")
@_places
@click.option(
    "--signer",
    "with_signer",
    is_flag=True,
    help="Make the host's signing key, /etc/sealpoint/signer.key, if it has none, and show its public half.",
)
@options.json_option
def install(host: str, directory: str, *, with_signer: bool, as_json: bool) -> None:
    """Install or update the bundle and the drop-in `criu` on the host.

    Versions lie side by side. A checkpoint that is being taken keeps the version with which it began. A service whose
    PATH does not lead to the drop-in gets a systemd drop-in that sets it. It counts after a restart, which is yours to
    do.

    \b
    Example:
      sealpoint node install --host /host --json
    """
    notice.protect()
    with _refused_as_json(as_json=as_json):
        from sealpoint.node.install import install as install_node

        _show(install_node(host, directory, with_signer=with_signer), as_json=as_json)


@command.command("status")
@_places
@options.json_option
def status(host: str, directory: str, *, as_json: bool) -> int:
    """Show what is installed and which `criu` the host's container runtimes find.

    Exit code 0 if it is installed and every runtime that runs finds the drop-in, else 6.

    \b
    Example:
      sealpoint node status --host /host --json
    """
    notice.protect()
    with _refused_as_json(as_json=as_json):
        from sealpoint.node.install import status as node_status

        found = node_status(host, directory)
    _show(found, as_json=as_json)
    return 0 if found.used else SystemEnvironmentError.exit_code


@command.command("uninstall")
@_places
@options.json_option
def uninstall(host: str, directory: str, *, as_json: bool) -> int:
    """Remove what `install` made on the host, and nothing else.

    Runtimes find another `criu` or none from then on, and their checkpoints are plain. Exit code 6 if something is
    left, such as a version with which a checkpoint is being taken: run it again.

    \b
    Example:
      sealpoint node uninstall --host /host
    """
    notice.protect()
    with _refused_as_json(as_json=as_json):
        from sealpoint.node.install import uninstall as uninstall_node

        done, left = uninstall_node(host, directory)
    if as_json:
        echo_json({"done": done, "left": left})
    else:
        for line in [*done, *(f"left {line}" for line in left)]:
            click.echo(printable(line))
    return SystemEnvironmentError.exit_code if left else 0


def _show(found: NodeStatus, *, as_json: bool) -> None:
    for warning in found.warnings:
        notice.warn(warning)
    if as_json:
        runtimes = [runtime._asdict() for runtime in found.runtimes]
        echo_json({"supported": True, **found._asdict(), "runtimes": runtimes})
        return
    click.echo(printable(f"installed: {found.version or 'nothing'}"))
    for identity in found.others:
        click.echo(printable(f"still there: {identity}"))
    for runtime in found.runtimes:
        finds = f"finds the drop-in {runtime.criu}"
        if not runtime.ours:
            finds = f"finds {runtime.criu or 'no criu'}, not the drop-in"
        click.echo(printable(f"{runtime.program} (process {runtime.pid}) {finds}"))
        if runtime.shims:
            click.echo(f"{runtime.shims} pods were started before: theirs do not find it either")
    if not found.runtimes:
        click.echo("no container runtime runs here that is known (containerd, CRI-O)")
    if found.signer:
        click.echo(f"signs as: {found.signer}")
    for name in found.restart:
        click.echo(printable(f"needed: systemctl daemon-reload; systemctl restart {name}"))

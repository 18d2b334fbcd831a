"""`sealpoint podman checkpoint` and `sealpoint podman restore`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from sealpoint import config as configuration
from sealpoint.cli import options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import UsageError


def _podman_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--podman", metavar="PATH", default="", help="The podman to run."),
        click.option(
            "--podman-option",
            "before",
            multiple=True,
            metavar="OPTION",
            help="A global option of podman, e.g. --podman-option=--runtime=runc. Repeatable.",
        ),
        click.option("--criu", metavar="PATH", help="The CRIU to run (default: the next in PATH)."),
        options.json_option,
        click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- PODMAN-OPTIONS]"),
    ):
        function = option(function)
    return function


@click.group()
def command() -> None:
    """Checkpoint and restore a podman container as one sealed file.

    \b
    Example:
      sealpoint podman checkpoint web -o web.sealed -r keys/recipient.pub --sign keys/signer.key
      sealpoint podman restore web.sealed -i keys/identity.key --trust keys/signer.pub
    """


@command.command("checkpoint")
@click.argument("container", metavar="CONTAINER")
@click.option("-o", "--output", required=True, metavar="FILE", help="The sealed file.")
@options.seal_options
@click.option("-R", "--leave-running", is_flag=True, help="Let the container run on afterwards.")
@click.option(
    "--memory",
    default="",
    metavar="SIZE",
    help="The most that podman may write to memory meanwhile, e.g. 2G (default: half of it).",
)
@click.option(
    "--workload",
    metavar="NAME",
    help="The name under which older checkpoints are refused later (default: an opaque one of the container).",
)
@options.state_option
@_podman_options
def checkpoint_command(
    container: str,
    *,
    output: str,
    leave_running: bool,
    memory: str,
    workload: str | None,
    state: str | None,
    podman: str,
    before: tuple[str, ...],
    criu: str | None,
    as_json: bool,
    more: tuple[str, ...],
    **seal: Any,
) -> None:
    """Checkpoint a running container: memory, changed files, volumes, settings, all in one sealed file.

    It stands still until the file is complete and durable, and then ends (with -R, goes on). If anything fails, it runs
    on and no file is left. Nothing of the checkpoint is written to a disk in the clear.

    \b
    Example:
      sealpoint podman checkpoint web -o web.sealed -r keys/recipient.pub --sign keys/signer.key
    """
    import re

    if output == "-":
        raise UsageError("the output has to be a file: it is durable before the container ends")
    if memory and not re.fullmatch(r"[0-9]{1,15}[kKmMgG%]?", memory):
        raise UsageError(f"--memory: {memory!r} is not a size", hint="for instance 512M, 2G or 50%")
    config = configuration.load()
    options.protect()
    from sealpoint.checkpoint.container_workload import workload_of
    from sealpoint.checkpoint.state import DEFAULT_DIRECTORY, StateStore
    from sealpoint.cli.bar import Bar
    from sealpoint.cli.dump import note_newest
    from sealpoint.dropin.real import find_real
    from sealpoint.podman.checkpoint import CheckpointRequest, checkpoint
    from sealpoint.podman.engine import Podman
    from sealpoint.store.output import OutputFile

    prepared = options.sealing(config, seal)
    states = state or config.state or DEFAULT_DIRECTORY

    def named(container: str) -> str:
        if workload is not None or not config.container_workloads:
            return workload or ""
        return workload_of(container, StateStore(states))

    request = CheckpointRequest(
        name=container,
        podman=Podman(podman, before),
        criu=find_real(criu or config.criu).path,
        leave_running=leave_running,
        memory=memory,
        options=more,
        workload=named,
        sealing=prepared,
    )
    with OutputFile(output, force=seal["force"]) as out, Bar(f"checkpointing {container}") as bar:
        result = checkpoint(request, out, bar)
    note_newest(states, result.workload, result)
    if as_json:
        values = {
            "checkpoint": result.checkpoint_id.hex(),
            "workload": result.workload,
            "origin": result.origin_digest.hex(),
            "container": result.container.id,
            "name": result.container.name,
            "file": os.path.abspath(output),
            "objects": result.objects,
            "plain_size": result.plain_size,
            "file_size": result.file_size,
            "stopped_seconds": round(result.stopped, 3),
            "left_running": leave_running,
        }
        echo_json(values)
        return
    sizes = f"{options.show_size(result.plain_size)} in {options.show_size(result.file_size)}"
    click.echo(
        f"container {printable(result.container.name)} sealed into {printable(output)}: "
        f"{result.objects} objects, {sizes}, {result.stopped:.2f} s{', still running' if leave_running else ''}\n"
        f"checkpoint {result.checkpoint_id.hex()}"
    )


@command.command("restore")
@click.argument("file", metavar="FILE")
@options.identity_options
@options.trust_options
@options.expect_options
@options.allow_older_option
@options.state_option
@click.option("-n", "--name", default="", metavar="NAME", help="A new name, and a new id.")
@_podman_options
def restore_command(
    file: str,
    *,
    identities: tuple[str, ...],
    passphrase_file: str | None,
    trust: tuple[str, ...],
    allow_unsigned: bool,
    allow_expired: bool,
    workloads: tuple[str, ...],
    expect: tuple[str, ...],
    allow_older: bool,
    state: str | None,
    name: str,
    podman: str,
    before: tuple[str, ...],
    criu: str | None,
    as_json: bool,
    more: tuple[str, ...],
) -> None:
    """Restore a container from a sealed file, if a trusted signer made it and every byte is authentic.

    Nothing of the container runs before everything has verified. Its image has to be on this machine or where podman
    finds it. Podman writes nothing of the checkpoint to a disk but the container's own files and settings.

    \b
    Example:
      sealpoint podman restore web.sealed -i keys/identity.key --trust keys/signer.pub
      sealpoint podman restore web.sealed --name web2 -- --publish 8081:80
    """
    config = configuration.load()
    options.protect()
    from sealpoint.checkpoint.admission import Admission
    from sealpoint.checkpoint.state import DEFAULT_DIRECTORY
    from sealpoint.dropin.real import find_real
    from sealpoint.podman.engine import Podman
    from sealpoint.podman.restore import RestoreRequest, restore

    if name.startswith("-"):
        raise UsageError(f"--name: {name!r} is not a name")
    opening = options.opening(
        config,
        identities=identities,
        passphrase_file=passphrase_file,
        trust=trust,
        allow_unsigned=allow_unsigned,
        allow_expired=allow_expired,
        workloads=workloads,
        expect=expect,
    )
    request = RestoreRequest(
        Podman(podman, before), find_real(criu or config.criu).path, name, more
    )
    with opening.open(file) as checkpoint:
        states = state or config.state or DEFAULT_DIRECTORY
        admission = Admission(checkpoint, states, options.warn, allow_older=allow_older)
        options.announce(checkpoint)
        restored = restore(request, checkpoint, admission)
        signers = [s.name for s in checkpoint.signers]
    if as_json:
        echo_json({"name": restored, "signers": signers})
    else:
        click.echo(f"container {printable(restored)} restored")

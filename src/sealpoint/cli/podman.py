"""`sealpoint podman checkpoint` and `sealpoint podman restore`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import keyring, notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.cli.running import note_newest, state_directory
from sealpoint.cli.sealing import SealOptions, seals_checkpoint
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.podman.checkpoint import CheckpointResult
    from sealpoint.podman.engine import Podman


@dataclass(frozen=True)
class _Told:
    """What the command line says about podman and CRIU; the fields are the options of their names."""

    podman: str
    before: tuple[str, ...]
    criu: str | None
    state: str | None
    more: tuple[str, ...]

    def engine(self) -> Podman:
        """How podman is run."""
        from sealpoint.podman.engine import Podman

        return Podman(self.podman, self.before)

    def real_criu(self) -> str:
        """The CRIU behind the drop-in.  Raises SystemEnvironmentError."""
        from sealpoint.machine.real import find_real

        return find_real(self.criu or keyring.configured().criu).path


def _runs_podman(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options of a command that runs podman, which it gets as `told`."""

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        told = _Told(**{field.name: given.pop(field.name) for field in fields(_Told)})
        return command(*args, told=told, **given)

    return options.stack(
        options.state_option,
        click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- PODMAN-OPTIONS]"),
        options.json_option,
        click.option("--criu", metavar="PATH", help="The CRIU to run (default: the next in PATH)."),
        click.option(
            "--podman-option",
            "before",
            multiple=True,
            metavar="OPTION",
            help="A global option of podman, e.g. --podman-option=--runtime=runc. Repeatable.",
        ),
        click.option("--podman", metavar="PATH", default="", help="The podman to run."),
    )(run)


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
@seals_checkpoint("The sealed file.", metavar="FILE")
@click.option("-R", "--leave-running", is_flag=True, help="Let the container run on afterwards.")
@click.option(
    "--memory",
    default="",
    metavar="SIZE",
    help="How much podman may write to memory, e.g. 2G (default: half of the memory).",
)
@click.option(
    "--workload",
    callback=options.named_workload,
    metavar="NAME",
    help="The name by which restore later refuses older checkpoints (default: derived from the container).",
)
@_runs_podman
def checkpoint_command(
    container: str,
    *,
    seal: SealOptions,
    leave_running: bool,
    memory: str,
    workload: str | None,
    told: _Told,
    as_json: bool,
) -> None:
    """Checkpoint a running container: memory, changed files, volumes, settings, all in one sealed file.

    The container is frozen until the file is complete and durable. Then it ends, or with -R it runs on. If anything
    fails, it runs on and no file is left. Nothing of the checkpoint is written to a disk in the clear.

    \b
    Example:
      sealpoint podman checkpoint web -o web.sealed -r keys/recipient.pub --sign keys/signer.key
    """
    import re

    if seal.piped:
        raise UsageError("the output has to be a file: it is durable before the container ends")
    if memory and not re.fullmatch(r"[0-9]{1,15}[kKmMgG%]?", memory):
        raise UsageError(f"--memory: {memory!r} is not a size", hint="for instance 512M, 2G or 50%")
    notice.protect()
    from sealpoint.cli.bar import Bar
    from sealpoint.podman.checkpoint import CheckpointRequest, checkpoint

    prepared = seal.sealing()
    states = state_directory(told.state)
    request = CheckpointRequest(
        name=container,
        podman=told.engine(),
        criu=told.real_criu(),
        leave_running=leave_running,
        memory=memory,
        options=told.more,
        workload=_named(workload, states),
        sealing=prepared,
    )
    with seal.open_output() as out, Bar(f"checkpointing {container}") as bar:
        result = checkpoint(request, out, bar)
    note_newest(states, result.workload, result)
    if as_json:
        values = _values(result)
        values |= {"file": os.path.abspath(seal.output), "left_running": leave_running}
        echo_json(values)
        return
    sizes = f"{notice.show_size(result.plain_size)} in {notice.show_size(result.file_size)}"
    click.echo(
        f"container {printable(result.container.name)} sealed into {seal.where}: "
        f"{result.objects} objects, {sizes}, {result.stopped:.2f} s{', still running' if leave_running else ''}\n"
        f"checkpoint {result.checkpoint_id.hex()}"
    )


def _named(workload: str | None, states: str) -> Callable[[str], str]:
    """From a container's id to the name of its workload."""

    def named(container: str) -> str:
        from sealpoint.state.chains import StateStore
        from sealpoint.state.container_workload import workload_of

        if workload is not None or not keyring.configured().container_workloads:
            return workload or ""
        return workload_of(container, StateStore(states))

    return named


def _values(result: CheckpointResult) -> dict[str, Any]:
    return {
        "checkpoint": result.checkpoint_id.hex(),
        "workload": result.workload,
        "origin": result.origin_digest.hex(),
        "container": result.container.id,
        "name": result.container.name,
        "objects": result.objects,
        "plain_size": result.plain_size,
        "file_size": result.file_size,
        "stopped_seconds": round(result.stopped, 3),
    }


@command.command("restore")
@click.argument("file", metavar="FILE")
@reads_checkpoint("expect")
@options.allow_older_option
@click.option("-n", "--name", default="", metavar="NAME", help="A new name, and a new id.")
@_runs_podman
def restore_command(
    file: str,
    *,
    reading: Reading,
    allow_older: bool,
    name: str,
    told: _Told,
    as_json: bool,
) -> None:
    """Restore a container from a sealed file, if a trusted signer made it and every byte is authentic.

    Nothing of the container runs before everything has verified. Its image has to be on this machine or where podman
    finds it. Podman writes nothing of the checkpoint to a disk but the container's own files and settings.

    \b
    Example:
      sealpoint podman restore web.sealed -i keys/identity.key --trust keys/signer.pub
      sealpoint podman restore web.sealed --name web2 -- --publish 8081:80
    """
    from sealpoint.checkpoint import Admission
    from sealpoint.podman.restore import ContainerRestore, restore

    if name.startswith("-"):
        raise UsageError(f"--name: {name!r} is not a name")
    opening = reading.opening()
    request = ContainerRestore(told.engine(), told.real_criu(), name, told.more)
    with opening.open(file) as checkpoint:
        states = state_directory(told.state)
        admission = Admission(checkpoint, states, notice.warn, allow_older=allow_older)
        notice.announce(checkpoint)
        restored = restore(request, checkpoint, admission)
        signers = [s.name for s in checkpoint.signers]
    if as_json:
        echo_json({"name": restored, "signers": signers})
    else:
        click.echo(f"container {printable(restored)} restored")

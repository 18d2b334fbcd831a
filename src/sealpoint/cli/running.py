"""The one decorator of commands that run CRIU, and what they need of this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import click

from sealpoint.cli import keyring, notice, options

if TYPE_CHECKING:
    from sealpoint.checkpoint import DumpResult
    from sealpoint.criu.binary import Search
    from sealpoint.podman.checkpoint import CheckpointResult


def _named(_context: click.Context, _option: click.Parameter, path: str | None) -> str | None:
    if path:
        notice.warn_ownership([path])
    return path


@dataclass(frozen=True)
class Running:
    """What the command line says about CRIU; the fields are the options of their names."""

    criu: str | None = None
    criu_log: str | None = None
    state: str | None = None
    criu_arguments: tuple[str, ...] = ()

    def search(self) -> Search:
        """Begin to look for CRIU: it starts while this command does something else."""
        from sealpoint.criu.binary import Search

        config = keyring.configured()
        return Search(self.criu or config.criu or None, fault=config.criu_fault)

    @property
    def states(self) -> str:
        """The directory of the state store."""
        return state_directory(self.state)


def state_directory(told: str | None) -> str:
    """The directory of the state store: the option, else the configuration, else the usual one."""
    from sealpoint.state.chains import DEFAULT_STATE

    return told or keyring.configured().state or DEFAULT_STATE


def note_newest(states: str, workload: str, result: DumpResult | CheckpointResult) -> None:
    """Older checkpoints of this workload are from now on restored on request only."""
    from sealpoint.errors import SystemEnvironmentError
    from sealpoint.state.newest import Mark, Newest

    mark = Mark(result.checkpoint_id, result.captured, 1)
    try:
        Newest(states).note(workload, mark)
    except SystemEnvironmentError as error:
        notice.warn(error.message)


def ack_line(checkpoint_id: bytes, origin_digest: bytes) -> bytes:
    """What the receiver prints when everything has verified: it names exactly this checkpoint."""
    return b"sealpoint-ack %s %s\n" % (checkpoint_id.hex().encode(), origin_digest.hex().encode())


_FIELDS: Final = tuple(field.name for field in fields(Running))


def runs_criu(*, state: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the options of a command that runs CRIU, which it gets as `running`.

    state: whether it looks at the state store.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*args: Any, **given: Any) -> Any:
            told = {name: given.pop(name) for name in _FIELDS if name in given}
            return command(*args, running=Running(**told), **given)

        return options.stack(
            *([options.state_option] if state else []),
            click.option(
                "--criu",
                metavar="PATH",
                callback=_named,
                help="The CRIU to run (default: from PATH).",
            ),
            click.option(
                "--criu-log",
                metavar="FILE",
                help="Keep CRIU's log: names and addresses, no memory.",
            ),
            options.json_option,
            click.argument(
                "criu_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- CRIU-OPTIONS]"
            ),
        )(run)

    return decorate

"""`sealpoint state allow-older`."""

from __future__ import annotations

import re
from typing import Final

import click

from sealpoint import config as configuration
from sealpoint.cli import options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import UsageError

_UNITS: Final = {"s": 1, "": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST: Final = 7 * 86400


@click.group()
def command() -> None:
    """Manage what this machine remembers about checkpoints that it sealed and restored.

    \b
    Example:
      sealpoint state allow-older billing --for 10m
    """


@command.command("allow-older")
@click.argument("workload", metavar="WORKLOAD")
@click.option(
    "--for",
    "duration",
    default="1h",
    show_default=True,
    metavar="TIME",
    help="How long to allow it, e.g. 30s, 10m, 1h, at most 7d.",
)
@options.state_option
@options.json_option
def allow_older(*, workload: str, duration: str, state: str | None, as_json: bool) -> None:
    """Allow one restore of an older checkpoint of WORKLOAD, by a command or an engine.

    For engines, which have no --allow-older. The first restore that needs it uses it up; else it ends after TIME. Both
    are written down in the state store (newest/log). The error that refuses an older checkpoint names its workload.

    \b
    Example:
      sealpoint state allow-older container-3f0c6de5a8b94f21a7c2f6d0e1b84a95 --for 10m
    """
    from sealpoint.checkpoint import show_capture_time
    from sealpoint.state.chains import DEFAULT_STATE
    from sealpoint.state.newest import Newest

    match = re.fullmatch(r"(\d{1,9})([smhd]?)", duration, re.ASCII)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST:
        raise UsageError(f"--for {duration} is not a time up to 7d", hint="write 30s, 10m, 1h")
    config = configuration.load()
    until = Newest(state or config.state or DEFAULT_STATE).allow(workload, seconds)
    if as_json:
        echo_json({"workload": workload, "until": until})
        return
    click.echo(
        f"one older checkpoint of {printable(workload)} may be restored until {show_capture_time(until)}"
    )

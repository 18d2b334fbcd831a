"""The group of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import Any, Final

import click

from sealpoint import __version__
from sealpoint.errors import SealpointError

# name -> one line of help; the command itself is `command` in sealpoint.cli.<name>
_COMMANDS: Final = {
    "keygen": "Make an identity and its recipient, or a signer.",
    "dump": "Dump a process tree into one sealed file.",
    "restore": "Restore a process tree from a sealed file.",
    "seal": "Seal an image directory or an engine's archive.",
    "open": "Open a sealed file into a directory or an archive.",
    "verify": "Check that a sealed file is intact and who signed it.",
    "info": "Show what a sealed file says of itself.",
    "rekey": "Change who can open a sealed file.",
    "completion": "Print a shell completion script.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"sealpoint.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Without importing every command only to ask for its help.
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 defect of sealpoint, 2 usage, 3 damaged or tampered file, 4 key does not fit, "
    "5 policy says no, 6 this machine cannot do it, 7 CRIU failed, 8 intact but no trusted signer given, "
    "130 interrupted.",
)
@click.version_option(__version__, prog_name="sealpoint", message="%(prog)s %(version)s")
def cli() -> None:
    """End-to-end encryption for CRIU checkpoints.

    \b
    Example:
      sealpoint keygen keys && sealpoint keygen keys --signer
      sealpoint dump -t PID -o app.sealed -r keys/recipient.pub --sign keys/signer.key
      sealpoint restore app.sealed -i keys/identity.key --trust keys/signer.pub --detach
    """


class _TerminatedError(BaseException):
    """SIGTERM or SIGHUP: unwind as for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _terminate(number: int, _: FrameType | None) -> None:
    raise _TerminatedError(number)


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGHUP, _terminate)
    try:
        result: Any = cli.main(args=arguments, prog_name="sealpoint", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SealpointError as error:
        _print_error(error.message, error.hint)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _print_error(
            error.format_message(), f"see: {context.command_path} --help" if context else None
        )
        return 2
    except (KeyboardInterrupt, click.Abort):
        _print_error("interrupted", None)
        return 130
    except _TerminatedError as error:
        _print_error("terminated", None)
        return 128 + error.number
    except BrokenPipeError:
        # Whoever read our standard output has left; not worth a message, but not a success.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if os.environ.get("SEALPOINT_DEBUG"):
            raise
        _print_error(
            f"internal error: {type(error).__name__} in {_where(error)}",
            "this is a defect of sealpoint; SEALPOINT_DEBUG=1 shows more",
        )
        return 1


def _where(error: BaseException) -> str:
    # The place, not the message: a message may quote data.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown place"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def _print_error(message: str, hint: str | None) -> None:
    click.echo(f"sealpoint: {message}", err=True)
    if hint:
        click.echo(f"  hint: {hint}", err=True)

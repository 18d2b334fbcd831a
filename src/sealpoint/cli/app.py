"""The group of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import click

from sealpoint.cli.printable import output_failed, printable, ready_streams, standard_output
from sealpoint.errors import OmissionWarning, SealpointError, SystemEnvironmentError
from sealpoint.version import __version__

# name -> one line of help; the command itself is `command` in sealpoint.cli.<name>, with _ for -
_COMMANDS: Final = {
    "keygen": "Make an identity and its recipient, or a signer.",
    "dump": "Dump a process tree into one sealed file.",
    "restore": "Restore a process tree from a sealed file.",
    "watch": "Take checkpoints of a process tree at regular intervals.",
    "migrate": "Move a process tree to another machine.",
    "receive": "Receive a process tree from another machine.",
    "seal": "Seal an image directory or an engine's archive.",
    "open": "Open a sealed file into a directory or an archive.",
    "convert": "Convert from and to the CRIUsec format.",
    "verify": "Check that a sealed file is intact and who signed it.",
    "info": "Show what a sealed file says about itself.",
    "policy": "Show whether a sealed file would be trusted, and why.",
    "chain": "Show an increment and all its parents.",
    "flatten": "Combine an increment and its parents into one file.",
    "prune": "Merge old increments into later ones.",
    "copy": "Copy a sealed file into a store, out of one, or from one to another.",
    "store": "Store memory that many checkpoints share only once.",
    "state": "Allow one restore of an older checkpoint of a workload.",
    "rekey": "Change who can open a sealed file.",
    "secrets": "Report which secrets a checkpoint exposes, masked.",
    "report": "Write a report about a checkpoint as one HTML page.",
    "coredump": "Write an ELF core of one process, for gdb.",
    "list": "List the checkpoints in a directory.",
    "show": "Show a checkpoint's container and size in one line.",
    "inspect": "Show processes, files, sockets, mounts and statistics of a checkpoint.",
    "memparse": "Show or search the memory of a checkpoint's processes.",
    "diff": "Show what changed between two checkpoints.",
    "crit": "Show and edit CRIU's images as JSON, sealed or plain.",
    "mount": "Show a sealed file as a directory of plain files.",
    "umount": "End a mount.",
    "agent": "Seal the archives that engines leave on this machine, and put them into a store.",
    "podman": "Checkpoint and restore a podman container as one sealed file.",
    "install-criu": "Let every container engine on this machine seal its checkpoints.",
    "uninstall-criu": "Undo install-criu.",
    "node": "Install the drop-in on a host, from a container.",
    "doctor": "Check what works on this machine, what leaks, and what is missing.",
    "completion": "Print a shell completion script.",
}


_READER_LEFT: Final = 128 + signal.SIGPIPE


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = importlib.import_module(f"sealpoint.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        # Without importing every command only to ask for its help.
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Exit codes:
    0  done
    1  a defect of sealpoint
    2  usage: a wrong option or argument, or a request that cannot work
    3  a file is damaged or tampered with
    4  a key or passphrase does not fit
    5  policy says no: signer not trusted, certificate expired
    6  this machine cannot do it: no CRIU, no permission, no space
    7  CRIU failed
    8  intact, but no trusted signer was given
  130  interrupted (128 and the signal's number)
""",
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
    """SIGINT, SIGTERM or SIGHUP: unwind, so that nothing half-done is left."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _handle_signals() -> None:
    """The first signal ends the command; what follows must not disturb the cleaning up."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def ignore(_: int, __: FrameType | None) -> None:
        pass

    def terminate(number: int, _: FrameType | None) -> None:
        for other in signals:
            if signal.getsignal(other) is terminate:
                # Not SIG_IGN, which programs that we run would inherit.
                signal.signal(other, ignore)
        raise _TerminatedError(number)

    # Where it is ignored, the kernel keeps no exit status: every program that we run would seem to have succeeded.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, terminate)


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    ready_streams()
    _handle_signals()
    try:
        with _omissions():
            result: Any = cli.main(args=arguments, prog_name="sealpoint", standalone_mode=False)
        _flush()
        return result if isinstance(result, int) else 0
    except SealpointError as error:
        _print_error(error.message, error.hint)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        _print_error(*_usage(error))
        return 2
    except (KeyboardInterrupt, click.Abort):  # at a prompt
        _print_error("interrupted", None)
        return 130
    except _TerminatedError as error:
        _print_error("interrupted" if error.number == signal.SIGINT else "terminated", None)
        return 128 + error.number
    except BrokenPipeError:
        # Whoever read our standard output has left; not worth a message, but not a success.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _READER_LEFT
    except SystemExit as error:  # click's own: the same, or completion is done
        left = error.code == 1 and "_SEALPOINT_COMPLETE" not in os.environ
        return _READER_LEFT if left else int(error.code or 0)
    except OSError as error:
        if os.environ.get("SEALPOINT_DEBUG"):
            raise
        _print_error(*_refused(error))
        return SystemEnvironmentError.exit_code
    except Exception as error:
        if os.environ.get("SEALPOINT_DEBUG"):
            raise
        _print_error(
            f"internal error: {type(error).__name__} in {_where(error)}",
            "this is a defect of sealpoint; SEALPOINT_DEBUG=1 shows more",
        )
        return 1


@contextlib.contextmanager
def _omissions() -> Iterator[None]:
    """What readers leave out is said once, on standard error, whatever Python was told about warnings."""
    said: set[str] = set()
    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.simplefilter("always", OmissionWarning)

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, OmissionWarning):
                usual(message, category, *place, **more)
            elif str(message) not in said:
                said.add(str(message))
                with contextlib.suppress(OSError):
                    click.echo(f"sealpoint: warning: {printable(str(message))}", err=True)

        warnings.showwarning = show
        yield


def _usage(error: click.ClickException) -> tuple[str, str | None]:
    """Message and hint.  Where a command hands options on to CRIU, one of CRIU's is told where it belongs."""
    context = getattr(error, "ctx", None)
    if context is None:
        return error.format_message(), None
    takes_more = any(p.name == "criu_arguments" for p in context.command.params)
    if takes_more and isinstance(error, click.NoSuchOption):
        from sealpoint.criu.run import misplaced

        ours = any(name.startswith(error.option_name) for name in error.possibilities or ())
        if not ours and (found := misplaced(error.option_name)):
            return found
    return error.format_message(), f"see: {context.command_path} --help"


def _refused(error: OSError) -> tuple[str, str | None]:
    """Message and hint for an error of the system that nothing below has put into words."""
    if _printing(error):
        failed = output_failed(error)
        return failed.message, failed.hint
    reason = error.strerror or type(error).__name__
    name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{name}{reason}", "SEALPOINT_DEBUG=1 shows where this happened"


def _printing(error: OSError) -> bool:
    """Whether click failed to write standard output.

    Its traceback tells.  A stream of ours in place of Python's could, too, but would have to write again what a signal
    interrupted, as Python's does.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is click.echo.__code__:
            return not trace.tb_frame.f_locals.get("err")
        trace = trace.tb_next
    return False


def _flush() -> None:
    with standard_output() as out:
        out.flush()


def _where(error: BaseException) -> str:
    # The place, not the message: a message may quote data.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown place"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def _print_error(message: str, hint: str | None) -> None:
    # Messages quote names, and those may come from a hostile file.
    with contextlib.suppress(OSError):  # on a full disk: the exit code says it, too
        click.echo(f"sealpoint: {printable(message)}", err=True)
        if hint:
            click.echo(f"  hint: {printable(hint)}", err=True)

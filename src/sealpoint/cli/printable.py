"""What a command says on its way to standard output: never more than printable characters, never a failure for them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import click

from sealpoint import names
from sealpoint.errors import SystemEnvironmentError
from sealpoint.names import printable

__all__ = ["echo_json", "output_failed", "printable", "ready_streams", "standard_output"]


def echo_json(value: Any, *, indent: int | None = 2, err: bool = False) -> None:
    """Print a result for programs: ASCII only, so that every locale holds it, and lossless (names.for_json)."""
    import json

    click.echo(json.dumps(names.for_json(value), indent=indent), err=err)


@contextlib.contextmanager
def standard_output() -> Iterator[TextIO]:
    """Standard output, for what click.echo cannot print.  Only write inside: every OSError is taken for one of writing.

    Raises SystemEnvironmentError; BrokenPipeError, which ends a command without a message, stays what it is.
    """
    try:
        yield sys.stdout
    except BrokenPipeError:
        raise
    except OSError as error:
        raise output_failed(error) from None


def output_failed(error: OSError) -> SystemEnvironmentError:
    """The error to report when standard output could not be written."""
    return SystemEnvironmentError(
        f"cannot write standard output: {error.strerror or type(error).__name__}"
    )


def ready_streams() -> None:
    """Make standard streams such that printing never fails for what is printed, and that none is missing.

    What the locale's encoding has no character for is written as the \\xNN of its bytes.  Where the caller closed a
    stream, its number would go to the next file that is opened, and what is printed would land there.
    """
    for fd, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDWR)):
        # Of 0 and 1 the wrong way round: reading or writing data there must stay an error.
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, mode)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            os.set_inheritable(fd, True)
    # Python has None for them; of standard input that stays so, and who reads it says that there is none.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - never closed, as the stream would be
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=names.ERROR_HANDLER)

"""What a command says on its way to standard output: never more than printable characters, never a failure for them."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Final

import click

from sealpoint import names
from sealpoint.names import printable

__all__ = ["STREAMS", "echo_json", "printable", "ready_streams"]

# How errors name the standard streams that a command writes.
STREAMS: Final = {"stdout": "standard output", "stderr": "standard error"}


class _NamedStream(io.FileIO):
    """A standard stream whose failed writes name it, as those of a file name the file: the kernel's error does not."""

    def __init__(self, fd: int, called: str) -> None:
        super().__init__(fd, "w", closefd=False)
        self._called = called

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = self._called
            raise


def echo_json(value: Any, *, indent: int | None = 2, err: bool = False) -> None:
    """Print a result for programs: ASCII only, so that every locale holds it, and lossless (names.for_json)."""
    import json

    click.echo(json.dumps(names.for_json(value), indent=indent), err=err)


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
    for name, called in STREAMS.items():
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=names.ERROR_HANDLER)
        if stream is not None and stream is getattr(
            sys, f"__{name}__"
        ):  # what Python was started with
            setattr(sys, name, _named(stream, called))


def _named(stream: io.TextIOWrapper, called: str) -> io.TextIOWrapper:
    """The same stream, whose failed writes name it."""
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if type(raw) is not io.FileIO:
        return stream
    stream.flush()
    named = _NamedStream(stream.fileno(), called)
    unbuffered = stream.buffer is raw  # PYTHONUNBUFFERED
    return io.TextIOWrapper(
        named if unbuffered else io.BufferedWriter(named),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )

"""`sealpoint mount`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import click

from sealpoint.cli import notice
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.errors import SystemEnvironmentError, UsageError


@click.command()
@click.argument("file", metavar="FILE")
@click.argument("directory", metavar="DIR")
@reads_checkpoint("expect", "parents", "stores")
@click.option(
    "-f", "--foreground", is_flag=True, help="Serve until unmounted instead of returning."
)
def command(file: str, directory: str, *, reading: Reading, foreground: bool) -> None:
    """Show a sealed file's objects as plain read-only files in DIR, for crit, gdb, checkpointctl or stock CRIU.

    Everything is verified before the directory appears, and again as it is read. Nothing is written to a disk; only
    root can look into DIR; symbolic links are shown but not followed. An increment is shown whole, put together with
    its parents, which are found beside it. End it with: sealpoint umount DIR

    \b
    Example:
      sealpoint mount app.sealed /mnt -i keys/identity.key --trust keys/signer.pub
    """
    from sealpoint.checkpoint import View
    from sealpoint.cli.bar import Bar
    from sealpoint.criu import mounts
    from sealpoint.criu.fuse import FuseServer

    if not os.path.isdir(directory):
        raise UsageError(f"{directory} is not a directory")
    directory = os.path.abspath(directory)
    with reading.open(file) as checkpoint:
        with Bar(f"verifying {file}") as bar:
            total = sum(f.authentic.origin.frames_size for f in checkpoint.files())
            checkpoint.verify(bar.counter(total))
            flat = checkpoint.flat
        if not flat.top.has_memory:
            notice.warn("this identity opens metadata only: memory objects are not shown")
        ready = _go_to_background() if not foreground else (lambda: None)
        server = FuseServer(View(flat), read_only=True)
        try:
            server.attach(directory)
        except OSError as error:
            server.close()
            raise SystemEnvironmentError(f"cannot mount on {directory}: {error.strerror}") from None
        try:
            ready()
            server.wait()
        except BaseException:  # a signal: no dead mount shall be left
            with contextlib.suppress(OSError):
                mounts.unmount(directory, lazy=True)
            raise
        finally:
            server.close()


def _go_to_background() -> Callable[[], None]:
    """Continue in a child of its own session; the parent returns to the shell when the child says that it is ready.

    Forked before any thread exists.  If the child fails, the parent ends with the child's exit code.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        if os.read(reader, 1):
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) or 1)
    os.close(reader)
    os.setsid()

    def ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        os.chdir("/")
        os.write(writer, b"1")
        os.close(writer)

    return ready

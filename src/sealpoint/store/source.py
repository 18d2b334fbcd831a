"""Opening a sealed file for reading: a path, a place in a store, or a pipe whose contents are held first.

What comes from a pipe is held as it came, encrypted: in memory (memfd), or in an unlinked file of a spool directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
from collections.abc import Callable, Iterator

from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.format.raw import ByteSource, Descriptor
from sealpoint.store import limits
from sealpoint.store.location import is_url, open_remote
from sealpoint.store.output import write_all

_STEP = 1024 * 1024
Admit = Callable[[memoryview], None]


def _anything(_: memoryview) -> None:
    """Whatever comes is held."""


def open_input(
    path: str,
    *,
    spool: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
    limit: int | None = None,
    admit: Admit = _anything,
) -> ByteSource:
    """A sealed file by its name: a path, the URL of one in a store, or "-", standard input.  The caller closes it.

    limit, admit: of what is held of a pipe; see `hold_from`.  What lies in a store is read when it is needed.

    Raises UsageError (no such file, a terminal), SystemEnvironmentError (cannot read, no space to hold it), FileError.
    """
    if is_url(path):
        return open_remote(path)
    return Descriptor(_open_local(path, spool, progress, limit, admit))


def _open_local(
    path: str,
    spool: str | None,
    progress: Callable[[int], None],
    limit: int | None,
    admit: Admit,
) -> int:
    if path == "-":
        return _from_stdin(spool, progress, limit, admit)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except OSError as error:
        raise SystemEnvironmentError(f"cannot open {path}: {error.strerror}") from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    try:
        if stat.S_ISFIFO(mode):
            # Never closed and opened again: a writer who has found this end would find none for a moment.
            _await_writer(fd)
            return hold(fd, spool, progress, limit, admit)
    finally:
        os.close(fd)
    raise UsageError(f"{path} is not a file", hint="name a sealed file, or - for standard input")


def _await_writer(fifo: int) -> None:
    """Until someone writes into a named pipe, or has come and gone; reading then waits for bytes or the end."""
    poll = select.poll()
    poll.register(fifo, select.POLLIN)
    poll.poll()
    os.set_blocking(fifo, True)


def _from_stdin(
    spool: str | None, progress: Callable[[int], None], limit: int | None, admit: Admit
) -> int:
    if os.isatty(0):
        raise UsageError("standard input is a terminal", hint="pipe a sealed checkpoint into it")
    if stat.S_ISREG(os.fstat(0).st_mode):
        return os.dup(0)
    return hold(0, spool, progress, limit, admit)


def hold(
    fd: int,
    spool: str | None,
    progress: Callable[[int], None] = lambda _: None,
    limit: int | None = None,
    admit: Admit = _anything,
) -> int:
    """Read `fd` to its end into memory or an unlinked file in `spool`; returns a descriptor of that."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _STEP)
        except OSError:
            pass  # only slower
    return hold_from(lambda buffer: _read(fd, buffer), spool, progress, limit, admit)


def hold_from(
    read: Callable[[memoryview], int],
    spool: str | None,
    progress: Callable[[int], None] = lambda _: None,
    limit: int | None = None,
    admit: Admit = _anything,
) -> int:
    """As `hold`; read: fills a buffer and returns how many bytes, 0 at the end.

    limit: bytes that are held at most, by default what `limits` says; admit: gets each piece before it is held, and
    raises if it is nothing to be held.  Raises SystemEnvironmentError.
    """
    where = "memory" if spool is None else spool
    allowance = limits.Allowance(limit, where, spool)
    try:
        held = memory() if spool is None else unlinked(spool)
    except OSError as error:
        raise SystemEnvironmentError(
            f"cannot hold the checkpoint in {where}: {error.strerror}"
        ) from None
    try:
        buffer = memoryview(bytearray(_STEP))
        while size := read(buffer):
            admit(buffer[:size])
            allowance.take(size)
            write_all(held, [buffer[:size]], where)
            progress(size)
        if spool is None:
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(held, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(held)
        raise
    return held


def pieces(fd: int) -> Iterator[memoryview]:
    """The bytes of a seekable descriptor; each piece is overwritten by the next.  Raises SystemEnvironmentError."""
    buffer, offset = memoryview(bytearray(_STEP)), 0
    try:
        while size := os.preadv(fd, [buffer], offset):
            yield buffer[:size]
            offset += size
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read the checkpoint: {error.strerror}") from None


def memory() -> int:
    """A file in memory."""
    return os.memfd_create("sealpoint-held", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def unlinked(directory: str) -> int:
    """A file without a name."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    path = f"{directory}/.sealpoint.{os.urandom(6).hex()}.partial"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.unlink(path)
    return fd


def _read(fd: int, buffer: memoryview) -> int:
    try:
        return os.readv(fd, [buffer])
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read the checkpoint: {error.strerror}") from None

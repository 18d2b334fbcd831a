"""Writing a sealed file to a path or into a pipe; `destination` decides which of them a name stands for.

A file appears under its name only when it is complete and durable; until then it has no name at all (O_TMPFILE) or, on
file systems without that, a temporary one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import stat
from collections import deque
from types import TracebackType
from typing import Protocol, Self

from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.store.location import is_url
from sealpoint.store.naming import Place

Buffer = bytes | bytearray | memoryview
_WRITE_BACK_STEP = 16 * 1024 * 1024  # bytes after which the kernel is asked to start writing
_WRITE_BACK_AHEAD = (
    8  # steps that may be on their way to the disk before a write waits for the oldest
)
_MESSAGES = 2  # standard error
_NULL = os.makedev(1, 3)  # /dev/null
_MAX_LINKS = 40  # as the kernel has it
_SYNC_FILE_RANGE_WAIT_BEFORE, _SYNC_FILE_RANGE_WRITE = 1, 2


def write_all(fd: int, buffers: list[Buffer], what: str, wake: int | None = None) -> None:
    """writev until everything is written.  Raises SystemEnvironmentError.

    wake: if this descriptor becomes readable while a non-blocking `fd` takes nothing more, give up.
    """
    views = [memoryview(b) for b in buffers]
    while views:
        try:
            done = os.writev(fd, views)
        except BlockingIOError:
            _wait_writable(fd, what, wake)
            continue
        except OSError as error:
            raise _write_error(error, what) from None
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if views and done:
            views[0] = views[0][done:]


def _wait_writable(fd: int, what: str, wake: int | None) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if wake is not None:
        poll.register(wake, select.POLLIN)
    if any(ready == wake for ready, _ in poll.poll()):
        raise SystemEnvironmentError(f"writing {what} was given up")


def _write_error(error: OSError, what: str) -> SystemEnvironmentError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SystemEnvironmentError(
            f"no space left for {what}", hint="free some space, or choose another target"
        )
    if error.errno == errno.EPIPE:
        return SystemEnvironmentError(
            f"the reader of {what} went away before the checkpoint was complete"
        )
    return SystemEnvironmentError(f"cannot write {what}: {error.strerror}")


class OutputFile:
    """A sealed file in the making.  Without `commit` nothing of it is left."""

    def __init__(self, path: str, *, force: bool = False) -> None:
        """Raises UsageError if `path` exists and not `force`, or its directory does not; SystemEnvironmentError."""
        self._place = Place(path)
        self.path, self._force = self._place.path, force
        self.committed = False
        try:
            if not self._place.is_replaceable():
                raise UsageError(f"{path} is not a regular file", hint="name another")
            if not force and self._place.exists():
                raise UsageError(f"{path} exists", hint="remove it or use --force")
            self.fd = self._place.create()
        except BaseException:
            self._place.close()
            raise
        self._size = self._written_back = 0
        self._under_way: deque[tuple[int, int]] = (
            deque()
        )  # (offset, size) of steps being written to the disk

    def write(self, *buffers: Buffer) -> None:
        """Append.  Write-back starts early, so that the final fsync, during which a dumped tree is frozen, is short.

        All has to be on the disk in the end.  So a slow one is waited for here rather than there: that takes no longer,
        and whoever writes learns how fast the disk is (`checkpoint.sealing.adapt`).
        """
        write_all(self.fd, list(buffers), self.path)
        self._size += sum(len(b) for b in buffers)
        if self._size - self._written_back >= _WRITE_BACK_STEP:
            try:
                self._write_back()
            except OSError as error:
                raise _write_error(error, self.path) from None

    def _write_back(self) -> None:
        step = (self._written_back, self._size - self._written_back)
        _sync_range(self.fd, *step, _SYNC_FILE_RANGE_WRITE)
        self._written_back = self._size
        self._under_way.append(step)
        if len(self._under_way) > _WRITE_BACK_AHEAD:
            _sync_range(self.fd, *self._under_way.popleft(), _SYNC_FILE_RANGE_WAIT_BEFORE)

    def sync(self) -> None:
        """Make durable what was written, so that `commit` has little to wait for.  Raises SystemEnvironmentError."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise _write_error(error, self.path) from None

    def commit(self) -> None:
        """Make it durable, then give it its name; durable again.

        Raises SystemEnvironmentError, UsageError: what had the name before has it still (`Place.commit`).
        """
        try:
            os.fsync(self.fd)
            self._place.commit(force=self._force)
        except FileExistsError:
            raise UsageError(f"{self.path} exists", hint="remove it or use --force") from None
        except OSError as error:
            raise _write_error(error, self.path) from None
        self.committed = True

    def cancel(self) -> None:
        """From another thread: end a `write` that waits.  Writing to a file waits for nobody."""

    def mark_failed(self) -> str | None:
        """After a commit that turned out wrong: rename to `.failed`, which no reader takes by mistake."""
        if not self.committed:
            return None
        return self._place.rename_aside(".failed")

    def close(self) -> None:
        """Without a commit this removes everything."""
        try:
            self._place.close()
        finally:
            os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class OutputPipe:
    """A sealed file sent through a pipe, a socket or a device; durability is the reader's affair."""

    def __init__(self, fd: int, name: str = "standard output", *, owned: bool = False) -> None:
        """Refuses a terminal.  owned: whether `close` closes `fd`."""
        if os.isatty(fd):
            raise UsageError(
                "the output is binary, and would go to a terminal",
                hint="redirect it, or use -o FILE",
            )
        self._standard = fd
        self._owned = owned
        self._name = name
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._fd = _own_description(fd)
        self.committed = False

    @property
    def fd(self) -> int:
        """Where it goes to."""
        return self._fd

    def write(self, *buffers: Buffer) -> None:
        """Send."""
        write_all(self._fd, list(buffers), self._name, self._wake)

    def sync(self) -> None:
        """There is no way to tell."""

    def commit(self) -> None:
        """Everything was handed over: the reader sees the end, although this process goes on."""
        self._let_go()
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, self._standard)
        os.close(null)
        self.committed = True

    def cancel(self) -> None:
        """From another thread: end a `write` that waits for a reader who does not read."""
        os.eventfd_write(self._wake, 1)
        if stat.S_ISSOCK(os.fstat(self._standard).st_mode):
            with socket.socket(fileno=os.dup(self._standard)) as connection:
                connection.shutdown(socket.SHUT_RDWR)

    def mark_failed(self) -> str | None:
        """What was sent cannot be called back."""
        return None

    def close(self) -> None:
        """The descriptor stays the caller's, unless it is owned."""
        self._let_go()
        os.close(self._wake)
        if self._owned:
            os.close(self._standard)

    def _let_go(self) -> None:
        if self._fd != self._standard:
            os.close(self._fd)
            self._fd = self._standard

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _own_description(fd: int) -> int:
    """A pipe opened anew, non-blocking: only a writer who does not block can be told to give up.

    The caller's own description may be shared with other processes, so it stays as it is.
    """
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):  # not permitted: then as good as it goes
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return fd


class Target(Protocol):
    """Where a dump goes: a file, a pipe, or a link to another machine."""

    committed: bool

    def write(self, *buffers: Buffer) -> None:
        """Append.  Raises SystemEnvironmentError."""

    def sync(self) -> None:
        """Make durable what was written, as far as that can be told."""

    def commit(self) -> None:
        """It is complete."""

    def cancel(self) -> None:
        """From another thread: end a `write` that waits."""

    def mark_failed(self) -> str | None:
        """After a commit that turned out wrong; returns where what was written went."""


class Destination:
    """Where the output of a command goes, by the name that its user gave.

    streams: what is written there is gone, and whoever wrote it does not learn what became of it: standard output, a
    descriptor, a pipe, a socket, a device.  Else it is a file, new or to be replaced, of which either all is there or
    nothing.  label: for messages.
    """

    def __init__(self, path: str, *, descriptor: int | None = None, kind: int = 0) -> None:
        """kind: the type of file that is there, as in st_mode, where that is written into."""
        self._path, self._descriptor, self._kind = path, descriptor, kind
        self.streams = descriptor is not None or kind != 0
        self.label = "standard output" if path == "-" else path

    @property
    def discards(self) -> bool:
        """Whether it is /dev/null, by whatever name: nothing is kept, and any place in it can be written to."""
        if not self.streams:
            return False
        try:
            status = os.stat(self._path if self._descriptor is None else self._descriptor)
        except OSError:
            return False
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL

    def open(self, *, force: bool = False) -> OutputFile | OutputPipe:
        """Waits for the reader of a named pipe.  Raises UsageError, SystemEnvironmentError."""
        if self._descriptor is not None:
            return OutputPipe(self._descriptor, self.label)
        if not self._kind:
            return OutputFile(self._path, force=force)
        try:
            fd = self._open()
        except OSError as error:
            raise SystemEnvironmentError(f"cannot open {self._path}: {error.strerror}") from None
        try:
            return OutputPipe(fd, self.label, owned=True)
        except BaseException:
            os.close(fd)
            raise

    def _open(self) -> int:
        place = os.open(self._path, os.O_PATH | os.O_CLOEXEC)
        try:
            if stat.S_IFMT(os.fstat(place).st_mode) != self._kind:
                raise UsageError(f"{self._path} has become another file meanwhile")
            where = f"/proc/self/fd/{place}"
            if self._kind != stat.S_IFSOCK:
                return os.open(where, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(where)
                return connection.detach()
        finally:
            os.close(place)


def destination(path: str) -> Destination:
    """What `-o PATH` stands for: the one place that decides.

    "-" and the descriptors of this process (/dev/fd/N, /dev/stdout) are written into, as are named pipes, sockets and
    character devices such as /dev/null.  A link leads to the file that is replaced.  Raises UsageError for what is
    neither written into nor replaced: a block device, a link to nothing, a descriptor that is not open.
    """
    if is_url(path):
        raise UsageError(
            f"{path} is in a store: only dump, seal and flatten write there",
            hint="write to a file (if a path looks like a URL, write ./ before it)",
        )
    number = 1 if path == "-" else _descriptor(path)
    if number is not None:
        _check_descriptor(path, number)
        return Destination(path, descriptor=number)
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError:
        if os.path.islink(path):
            raise UsageError(
                f"{path} is a link to nothing", hint="remove it, or name the file itself"
            ) from None
        return Destination(path)  # a new file, or whatever is wrong with that
    if kind == stat.S_IFBLK:
        raise UsageError(f"{path} is a block device, and is never overwritten", hint="name a file")
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        return Destination(os.path.realpath(path) if os.path.islink(path) else path)
    return Destination(path, kind=kind)


def _check_descriptor(path: str, number: int) -> None:
    """Raises UsageError where a descriptor is none to be written into."""
    if path == "-":
        return  # as it is: whoever started us chose it
    try:
        mode = os.fstat(number).st_mode
        access = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        raise UsageError(f"{path}: descriptor {number} is not open") from None
    if access == os.O_RDONLY:
        raise UsageError(f"{path}: descriptor {number} is open for reading only")
    if stat.S_ISBLK(mode):
        raise UsageError(f"{path} is a block device, and is never overwritten", hint="name a file")
    if number == _MESSAGES:
        raise UsageError(f"{path}: messages go to that descriptor", hint="name another descriptor")


def _descriptor(path: str) -> int | None:
    """The number of the descriptor of this process that a path names, by whatever links; None if it names none."""
    own = {os.path.realpath(f"/proc/{name}/fd") for name in ("self", "thread-self")}
    for _ in range(_MAX_LINKS):
        directory, name = os.path.split(path)
        directory = os.path.realpath(directory or ".")
        if directory in own:
            return int(name) if name.isascii() and name.isdigit() and len(name) < 10 else None
        path = os.path.join(directory, name)
        try:
            path = os.path.join(directory, os.readlink(path))
        except OSError:
            return None
    return None


def open_output(path: str, *, force: bool = False) -> OutputFile | OutputPipe:
    """See `destination`."""
    return destination(path).open(force=force)


def _sync_range(fd: int, offset: int, size: int, flags: int) -> None:
    """Raises OSError for what the disk said: the kernel tells an error once only, fsync would not tell it again."""
    libc = ctypes.CDLL(None, use_errno=True)
    flag = ctypes.c_uint(flags)
    if libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), flag) != 0:
        code = ctypes.get_errno()
        if code in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise OSError(code, os.strerror(code))

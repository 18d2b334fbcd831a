"""The kernel's FUSE protocol, as far as CRIU and readers of images use it (linux/fuse.h, version 7.31).

Spoken directly rather than through a library: no daemon of somebody else's holds plaintext, the mount can stay detached
(reachable by descriptor only, gone with its server, even after kill -9), and requests of a megabyte are handed on
without a copy.  docs/adr has the measurement.  Out of scope: what the files are (`Filesystem`).
"""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sealpoint.criu import mounts
from sealpoint.criu.callers import Callers
from sealpoint.errors import SystemEnvironmentError

ROOT: Final = 1  # node id of the root directory
MAX_IO: Final = 1024 * 1024  # bytes of one read or write

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_INIT_IN = struct.Struct("<IIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_OPEN_OUT = struct.Struct("<QIi")
_READ_IN = struct.Struct("<QQII")
_WRITE_IN = struct.Struct("<QQIIQII")
_WRITE_OUT = struct.Struct("<II")
_ATTR_OUT = struct.Struct("<QII")
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")
_DIRENT = struct.Struct("<QQII")
_HEAD = (
    _IN.size + _WRITE_IN.size
)  # of a write: what follows is data and can go straight to where it belongs
_REST = MAX_IO + 4096

_VERSION = (7, 31)
_MAX_PAGES_FLAG, _BIG_WRITES, _PARALLEL_DIROPS = 1 << 22, 1 << 5, 1 << 18
_DIRECT_IO = 1  # FOPEN_DIRECT_IO: no second copy of plaintext in the page cache, and large requests
_SECOND = 1_000_000_000
_NOWHERE: Final = memoryview(bytearray())
_PATIENCE: Final = 5.0  # seconds for a detached mount to be let go of, before its users get errors
_MAX_ERRNO: Final = 511  # the kernel refuses larger ones, and the reader would wait for ever


@dataclass(frozen=True, slots=True)
class Attributes:
    """One file.  node: its id, 1 is the root; mode with the type bits; size in bytes; mtime in nanoseconds."""

    node: int
    mode: int
    size: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0

    def encode(self) -> bytes:
        """struct fuse_attr."""
        seconds, nano = divmod(self.mtime, _SECOND)
        links = 2 if stat.S_ISDIR(self.mode) else 1
        blocks = -(-self.size // 512)
        times = (seconds, seconds, seconds, nano, nano, nano)
        return _ATTR.pack(
            self.node, self.size, blocks, *times, self.mode, links, self.uid, self.gid, 0, 4096, 0
        )


class Filesystem:
    """What a file system does; every method raises OSError, and this base refuses everything.

    Called from several threads.  `handle` is what `open` or `create` returned.
    """

    def lookup(self, parent: int, name: str) -> Attributes:
        """The entry `name` of a directory."""
        raise OSError(errno.ENOENT, "no such file")

    def getattr(self, node: int) -> Attributes:
        """Attributes of a node."""
        raise OSError(errno.ENOENT, "no such file")

    def readdir(self, node: int) -> Sequence[tuple[str, Attributes]]:
        """All entries but . and .. ."""
        raise OSError(errno.ENOTDIR, "not a directory")

    def readlink(self, node: int) -> bytes:
        """Target of a symbolic link."""
        raise OSError(errno.EINVAL, "not a link")

    def open(self, node: int, flags: int) -> int:
        """A handle."""
        raise OSError(errno.EACCES, "not to be opened")

    def create(self, parent: int, name: str, flags: int) -> tuple[Attributes, int]:
        """A new file and its handle."""
        raise OSError(errno.EROFS, "read-only")

    def read(self, node: int, handle: int, offset: int, size: int) -> Sequence[memoryview | bytes]:
        """Up to `size` bytes, in pieces; fewer only at the end of the file."""
        raise OSError(errno.EIO, "not readable")

    def space(self) -> memoryview:
        """Where the data of the next write should land; may be empty.  Anything may be scribbled there.

        Only for file systems served by one thread.
        """
        return _NOWHERE

    def write(self, node: int, handle: int, offset: int, data: Sequence[memoryview]) -> None:
        """Take all of `data`, whose first piece lies in `space()`; valid during the call only."""
        raise OSError(errno.EROFS, "read-only")

    def release(self, node: int, handle: int) -> None:
        """The last descriptor of an open file was closed."""

    def unlink(self, parent: int, name: str) -> None:
        """Remove a file."""
        raise OSError(errno.EROFS, "read-only")

    def symlink(self, parent: int, name: str, target: str) -> Attributes:
        """Make a symbolic link."""
        raise OSError(errno.EROFS, "read-only")

    def close(self) -> None:
        """The server has ended: no more calls."""


class FuseServer:
    """Serves one file system until the mount is gone or `close`.

    fd: descriptor of the mount's root directory; opened_by: called with the pid of whoever is about to open a file.
    """

    def __init__(
        self,
        filesystem: Filesystem,
        *,
        read_only: bool,
        threads: int = 2,
        callers: Callers | None = None,
    ) -> None:
        """Mounts detached.  callers: who may use it; None for root, by the kernel's own check.

        Raises SystemEnvironmentError.
        """
        self._filesystem = filesystem
        self.callers = callers
        try:
            self._device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot open /dev/fuse: {error.strerror}",
                hint="load the kernel module fuse, and run as root",
            ) from None
        options = {
            "source": "sealpoint",
            "subtype": "sealpoint",
            "fd": str(self._device),
            "rootmode": "40000",
            "user_id": "0",
            "group_id": "0",
        }
        try:
            # A link in a sealed file is shown, but leads nobody out of the mount.
            self.fd = mounts.detached(
                "fuse",
                options,
                optional_flags=() if callers is None else ("allow_other",),
                read_only=read_only,
                follow_links=False,
            )
        except OSError as error:
            os.close(self._device)
            raise SystemEnvironmentError(
                f"cannot mount a FUSE file system: {error.strerror}",
                hint="run as root (CAP_SYS_ADMIN)",
            ) from None
        self.opened_by: Callable[[int], None] = lambda _: None
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"fuse-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def path(self) -> str:
        """The directory, for this process alone; a child gets in by `cwd=path`, or inherits `fd`."""
        return f"/proc/self/fd/{self.fd}"

    @property
    def device(self) -> int:
        """Descriptor of the connection to the kernel; the mount answers errors when the last copy is closed."""
        return self._device

    def attach(self, directory: str) -> None:
        """Make the mount visible at `directory`; it then lives until it is unmounted there.  Raises OSError."""
        mounts.attach(self.fd, directory)
        os.close(self.fd)  # which would keep it busy
        self.fd = -1

    def wait(self) -> None:
        """Until the mount is gone."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """End a detached mount, or let go of one that was unmounted.  Who still uses it soon gets errors."""
        if self._closed:
            return
        self._closed = True
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        os.eventfd_write(self._stop, 1)
        self.wait()
        self._filesystem.close()
        os.close(self._device)  # the kernel answers what is still asked
        os.close(self._stop)

    def _serve(self) -> None:
        head, rest = memoryview(bytearray(_HEAD)), memoryview(bytearray(_REST))
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            space = self._filesystem.space()
            try:
                size = os.readv(self._device, [head, space, rest])
            except BlockingIOError:
                if any(fd == self._stop for fd, _ in poll.poll()):
                    return
                continue
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                return  # ENODEV: unmounted
            _, opcode, unique, node, uid, gid, pid, *_ = _IN.unpack_from(head)
            if not self._may(opcode, uid, gid, pid):
                self._answer(unique, -errno.EACCES, [])
                continue
            if opcode == _OPEN:
                self.opened_by(pid)
            data = [space[: max(0, size - _HEAD)], rest[: max(0, size - _HEAD - len(space))]]
            try:
                reply = dispatch(self._filesystem, opcode, node, head[_IN.size : size], data)
            except OSError as error:
                known = error.errno is not None and 0 < error.errno <= _MAX_ERRNO
                self._answer(unique, -(error.errno if known and error.errno else errno.EIO), [])
            else:
                if reply is not None:
                    self._answer(unique, 0, reply)

    def _may(self, opcode: int, uid: int, gid: int, pid: int) -> bool:
        return self.callers is None or opcode in _NOBODYS or self.callers.admits(uid, gid, pid)

    def _answer(self, unique: int, code: int, parts: Sequence[memoryview | bytes]) -> None:
        size = _OUT.size + sum(len(p) for p in parts)
        try:
            os.writev(self._device, [_OUT.pack(size, code, unique), *parts])
        except OSError:
            pass  # the request was interrupted, or the mount is gone


def dispatch(
    filesystem: Filesystem, opcode: int, node: int, head: memoryview, data: Sequence[memoryview]
) -> Sequence[memoryview | bytes] | None:
    """One request: `head` is the beginning of its body, `data` the rest, which is large in a write only.

    The parts of the answer; None if the kernel wants none.  Raises OSError, and nothing else whatever the request.
    """
    try:
        if opcode == _WRITE:
            return _write(filesystem, node, head, data)
        handler = _HANDLERS.get(opcode)
        if handler is not None:
            return handler(filesystem, node, memoryview(b"".join((head, *data))))
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}") from error
    if opcode in _SILENT:
        return None
    raise OSError(errno.ENOSYS, "not implemented")


def _name(body: memoryview) -> str:
    return os.fsdecode(bytes(body).split(b"\0", 1)[0])


def _entry(attributes: Attributes) -> bytes:
    # No caching in the kernel: sizes change while CRIU writes.
    return _ENTRY.pack(attributes.node, 0, 0, 0, 0, 0) + attributes.encode()


def _init(_: Filesystem, __: int, body: memoryview) -> list[bytes]:
    major, minor, readahead, flags = _INIT_IN.unpack_from(body)
    if major != _VERSION[0] or minor < _VERSION[1]:
        raise OSError(errno.EPROTO, "kernel too old")
    wanted = flags & (_MAX_PAGES_FLAG | _BIG_WRITES | _PARALLEL_DIROPS)
    limits = (16, 12, MAX_IO, 1, MAX_IO // 4096, 0, 0)
    return [_INIT_OUT.pack(*_VERSION, readahead, wanted, *limits)]


def _lookup(fs: Filesystem, node: int, body: memoryview) -> list[bytes]:
    return [_entry(fs.lookup(node, _name(body)))]


def _getattr(fs: Filesystem, node: int, _: memoryview) -> list[bytes]:
    return [_ATTR_OUT.pack(0, 0, 0), fs.getattr(node).encode()]


def _readlink(fs: Filesystem, node: int, _: memoryview) -> list[bytes]:
    return [fs.readlink(node)]


def _symlink(fs: Filesystem, node: int, body: memoryview) -> list[bytes]:
    name, target, *_ = bytes(body).split(b"\0")
    return [_entry(fs.symlink(node, os.fsdecode(name), os.fsdecode(target)))]


def _unlink(fs: Filesystem, node: int, body: memoryview) -> list[bytes]:
    fs.unlink(node, _name(body))
    return []


def _open(fs: Filesystem, node: int, body: memoryview) -> list[bytes]:
    (flags,) = struct.unpack_from("<I", body)
    return [_OPEN_OUT.pack(fs.open(node, flags), _DIRECT_IO, 0)]


def _create(fs: Filesystem, node: int, body: memoryview) -> list[bytes]:
    (flags,) = struct.unpack_from("<I", body)
    attributes, handle = fs.create(node, _name(body[16:]), flags)
    return [_entry(attributes), _OPEN_OUT.pack(handle, _DIRECT_IO, 0)]


def _read(fs: Filesystem, node: int, body: memoryview) -> Sequence[memoryview | bytes]:
    handle, offset, size, _ = _READ_IN.unpack_from(body)
    return fs.read(node, handle, offset, min(size, MAX_IO))


def _write(fs: Filesystem, node: int, head: memoryview, data: Sequence[memoryview]) -> list[bytes]:
    handle, offset, size, *_ = _WRITE_IN.unpack_from(head)
    if sum(len(d) for d in data) != size:
        raise OSError(errno.EIO, "short write request")
    fs.write(node, handle, offset, data)
    return [_WRITE_OUT.pack(size, 0)]


def _release(fs: Filesystem, node: int, body: memoryview) -> list[bytes]:
    (handle,) = struct.unpack_from("<Q", body)
    fs.release(node, handle)
    return []


def _opendir(fs: Filesystem, node: int, _: memoryview) -> list[bytes]:
    fs.readdir(node)
    return [_OPEN_OUT.pack(0, 0, 0)]


def _readdir(fs: Filesystem, node: int, body: memoryview) -> list[bytes]:
    _, offset, size, _ = _READ_IN.unpack_from(body)
    parts: list[bytes] = []
    own = fs.getattr(node)
    entries = fs.readdir(node)
    for position in range(offset, len(entries) + 2):
        name, attributes = (
            (".", own) if position == 0 else ("..", own) if position == 1 else entries[position - 2]
        )
        raw = os.fsencode(name)
        record = _DIRENT.pack(attributes.node, position + 1, len(raw), attributes.mode >> 12) + raw
        record += bytes(-len(record) % 8)
        size -= len(record)
        if size < 0:
            break
        parts.append(record)
    return parts


def _statfs(_: Filesystem, __: int, ___: memoryview) -> list[bytes]:
    return [_STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)]


def _nothing(_: Filesystem, __: int, ___: memoryview) -> list[bytes]:
    return []


_Handler = Callable[[Filesystem, int, memoryview], "Sequence[memoryview | bytes]"]
_OPEN: Final = 14
_WRITE: Final = 16
_SILENT: Final = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET have no answer
# What the kernel asks by itself, and what tells nothing: INIT, RELEASE, FLUSH, RELEASEDIR
_NOBODYS: Final = (*_SILENT, 18, 25, 26, 29)
_HANDLERS: Final[dict[int, _Handler]] = {
    1: _lookup,
    3: _getattr,
    5: _readlink,
    6: _symlink,
    10: _unlink,
    _OPEN: _open,
    15: _read,
    17: _statfs,
    18: _release,
    20: _nothing,  # FSYNC: durable is the sealed file, not its parts
    25: _nothing,  # FLUSH
    26: _init,
    27: _opendir,
    28: _readdir,
    29: _nothing,  # RELEASEDIR
    30: _nothing,  # FSYNCDIR
    34: _nothing,  # ACCESS: who may ask at all may
    35: _create,
}

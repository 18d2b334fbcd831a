"""A chunk store: a directory of stored chunks, `chunks/ab/<id>`, beside the sealed files that refer to them.

A chunk appears under its name only when it is complete, and is never changed.  What a writer adds or refers to is
durable after `sync`, before which nothing may refer to it.  Writers hold a lock together, who removes chunks holds it
alone.

Every level is opened from the one above it, and no link is followed: neither to read, nor to write, nor to remove.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import time
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from sealpoint.errors import FileError, IdentityError, SystemEnvironmentError, UsageError
from sealpoint.format import strictjson
from sealpoint.format.constants import HASH_SIZE, ID_SIZE, MAX_STORED_FILE
from sealpoint.format.index import Reference
from sealpoint.format.strictjson import Fields
from sealpoint.store.naming import PARTIAL, link_file, make_directories, sync_directory
from sealpoint.store.output import write_all

CHUNKS: Final = "chunks"
VERSION: Final = 2  # of a store that can be added to; 1 can be read and counted
_ABOUT: Final = "store.json"
_LOCK: Final = "lock"
_MAX_ABOUT: Final = 4096
_HEX: Final = frozenset("0123456789abcdef")
_PATIENCE: Final = 5.0  # seconds for which a lock is waited for
_NO_UNNAMED: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW


class ChunkDirectory:
    """A store that is open for writing: a context manager that holds its lock."""

    def __init__(self, path: str, *, exclusive: bool = False) -> None:
        """path: the directory that holds `chunks`.  Raises UsageError, FileError, SystemEnvironmentError."""
        self.path = os.path.abspath(path)
        self.chunks = os.path.join(self.path, CHUNKS)
        self._shards: set[str] = set()  # directories of chunks that are known to be there
        # Open from now on: what the disk says of any write from here on is told to this descriptor (syncfs).
        directory = _open_chunks(self.path)
        if directory is None:
            raise UsageError(
                f"{path} is not a chunk store", hint="make one with: sealpoint store init DIR"
            )
        self._directory = directory
        try:
            self.version, self.tenant = _read_about(directory, path, self.chunks)
            self._device = os.fstat(directory).st_dev
            self._lock = _open_lock(directory, self.chunks)
        except BaseException:
            os.close(directory)
            raise
        try:
            self._take_lock(exclusive=exclusive)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def make(path: str, tenant: bytes) -> None:
        """A new, empty store, durable; `path` may exist.  Raises UsageError, SystemEnvironmentError."""
        chunks = os.path.join(path, CHUNKS)
        if os.path.lexists(chunks):
            raise UsageError(f"{chunks} exists", hint="one directory holds one store")
        about = strictjson.encode({"version": str(VERSION), "tenant": tenant.hex()})
        new = os.path.join(path, f".{CHUNKS}.{os.urandom(6).hex()}{PARTIAL}")
        try:
            make_directories(path)
            os.mkdir(new, 0o700)
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with open(os.open(f"{new}/{_ABOUT}", flags, 0o600), "wb") as file:
                    file.write(about)
                    file.flush()
                    os.fsync(file.fileno())
                sync_directory(new)
                os.rename(new, chunks)  # onto nothing, or onto an empty directory
                sync_directory(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(f"{new}/{_ABOUT}")
                with contextlib.suppress(OSError):
                    os.rmdir(new)
                raise
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot make a store in {path}: {error.strerror}"
            ) from None

    def check_tenant(self, tenant: bytes) -> None:
        """Raises IdentityError where the store is another tenant's, UsageError where it is of an old version."""
        if self.version != VERSION:
            raise UsageError(
                f"the store {self.path} is of an old version: anyone who dumps into it can open all of it",
                hint="make a new one from it with: sealpoint store convert OLD NEW",
            )
        if tenant != self.tenant:
            raise IdentityError(
                f"the tenant key is not that of the store {self.path}",
                hint="use the key file that store init made for it",
            )

    def _take_lock(self, *, exclusive: bool) -> None:
        operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._lock, operation)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise SystemEnvironmentError(
                        f"the store {self.path} is in use",
                        hint="wait for the dump, add or gc that uses it",
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                # Without locks a gc could remove what an add is about to refer to.
                raise SystemEnvironmentError(
                    f"the store {self.path} cannot be locked: {error.strerror}"
                ) from None
            else:
                return

    def read(self, identifier: bytes) -> memoryview | None:
        """The file of a chunk, None if there is none.  Raises FileError, SystemEnvironmentError."""
        fd = _open_chunk(self._directory, self.chunks, identifier, device=self._device)
        if fd is None:
            return None
        try:
            size = os.fstat(fd).st_size
            if size > MAX_STORED_FILE:
                raise FileError("it is too large to be a chunk")
            buffer = memoryview(bytearray(size))
            return buffer[: _read_into(fd, buffer)]
        finally:
            os.close(fd)

    def put(self, identifier: bytes, data: bytes | bytearray) -> bool:
        """Add a chunk; False if somebody has added one of that id.  Raises FileError, SystemEnvironmentError."""
        name = identifier.hex()
        try:
            if name[:2] not in self._shards:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name[:2], 0o700, dir_fd=self._directory)
                self._shards.add(name[:2])
            shard = _open_shard(self._directory, self.chunks, name[:2], device=self._device)
            try:
                return _write_new(shard, self.chunks, name, data)
            finally:
                os.close(shard)
        except OSError as error:
            raise _error(error, self.path) from None

    def sync(self) -> None:
        """Make durable all that is there, whoever added it.  Raises SystemEnvironmentError."""
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(self._directory) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        except OSError as error:
            raise _error(error, self.path) from None

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """(id, bytes) of every chunk.  Raises FileError, SystemEnvironmentError."""
        for _, entry in self._files():
            if len(entry.name) == 2 * HASH_SIZE and not set(entry.name) - _HEX:
                yield bytes.fromhex(entry.name), entry.stat(follow_symlinks=False).st_size

    def remove(self, identifier: bytes) -> None:
        """Only for who holds the lock alone.  Raises FileError, SystemEnvironmentError."""
        name = identifier.hex()
        try:
            shard = _open_shard(self._directory, self.chunks, name[:2], device=self._device)
            try:
                _unlink(shard, name)
            finally:
                os.close(shard)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _cannot_remove(f"{self.chunks}/{name[:2]}/{name}", error) from None

    def remove_leftovers(self) -> None:
        """What a writer that was killed has left.  Only for who holds the lock alone.

        Raises FileError, SystemEnvironmentError.
        """
        for shard, entry in self._files():
            if entry.name.startswith(".") and entry.name.endswith(PARTIAL):
                try:
                    _unlink(shard, entry.name)
                except OSError as error:
                    raise _cannot_remove(f"{self.chunks}/??/{entry.name}", error) from None

    def _files(self) -> Iterator[tuple[int, os.DirEntry[str]]]:
        """(descriptor of its directory, what lies there), directory by directory."""
        try:
            for name in sorted(os.listdir(self._directory)):
                if len(name) != 2 or set(name) - _HEX:
                    continue
                shard = _open_shard(self._directory, self.chunks, name, device=self._device)
                try:
                    with os.scandir(shard) as found:
                        yield from ((shard, e) for e in sorted(found, key=lambda e: e.name))
                finally:
                    os.close(shard)
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot read the store {self.path}: {error.strerror}"
            ) from None

    def close(self) -> None:
        """Gives the lock back."""
        os.close(self._lock)
        os.close(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ChunkFinder:
    """Where a reader looks for the chunks of one sealed file.  Needs no lock: what is referred to stays."""

    def __init__(self, file: str | None, stores: Sequence[str] = ()) -> None:
        """file: path of the sealed file, None if it came from elsewhere; stores: where else to look.

        Raises UsageError for a store that is none, FileError for one that is a link, SystemEnvironmentError.
        """
        beside = [] if file is None else [os.path.dirname(os.path.abspath(file))]
        self._open_stores: dict[str, int] = {}  # descriptor of `chunks`
        weakref.finalize(self, _close_all, self._open_stores)
        for store in dict.fromkeys([*map(os.path.abspath, stores), *beside]):
            directory = _open_chunks(store)
            if directory is not None:
                self._open_stores[store] = directory
            elif store not in beside:
                raise UsageError(f"{store} is not a chunk store", hint="it has no directory chunks")
        self.stores = list(self._open_stores)

    def read_into(self, reference: Reference, buffer: memoryview) -> memoryview:
        """The file of a chunk, as long as the reference says.  Raises FileError, SystemEnvironmentError."""
        fd = self._open(reference)
        try:
            have = _read_into(fd, buffer[: reference.length])
            return buffer[:have]
        finally:
            os.close(fd)

    def require(self, reference: Reference) -> None:
        """See that a chunk is there, and as long as it should be.  Raises FileError, SystemEnvironmentError."""
        os.close(self._open(reference))

    def _open(self, reference: Reference) -> int:
        name = reference.identifier.hex()
        if not self.stores:
            raise FileError(
                "its memory is in a chunk store, and there is none beside it",
                hint="name the store with --store DIR",
            )
        for store, directory in self._open_stores.items():
            fd = _open_chunk(directory, os.path.join(store, CHUNKS), reference.identifier)
            if fd is None:
                continue
            if os.fstat(fd).st_size == reference.length:
                return fd
            os.close(fd)
            raise FileError(f"chunk {name} in {store} has the wrong length")
        raise FileError(f"chunk {name} is missing in {', '.join(self.stores)}")


def _close_all(descriptors: dict[str, int]) -> None:
    for fd in descriptors.values():
        os.close(fd)


def _open_chunks(store: str) -> int | None:
    """The directory of chunks, None if there is none.  Raises FileError, SystemEnvironmentError."""
    path = os.path.join(store, CHUNKS)
    try:
        return os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return None
    except OSError as error:
        if os.path.islink(path):
            # Who follows it counts the sealed files here and removes the chunks of others there.
            raise FileError(
                f"{path} is a link, which is not followed", hint="name the store that it leads to"
            ) from None
        if error.errno == errno.ENOTDIR:
            return None
        raise SystemEnvironmentError(f"cannot open {path}: {error.strerror}") from None


def _open_shard(directory: int, path: str, name: str, *, device: int | None = None) -> int:
    """A directory of chunks.  device: on which it must lie.  Raises FileError, OSError."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise FileError(
                f"{path}/{name} is not a directory of this store, but a link or a file",
                hint="someone put it there: move it away",
            ) from None
        raise
    if device is not None and os.fstat(fd).st_dev != device:
        os.close(fd)
        # It would not be made durable with the rest.
        raise FileError(f"{path}/{name} lies on another file system than the store")
    return fd


def _open_lock(directory: int, path: str) -> int:
    """Raises FileError, SystemEnvironmentError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(_LOCK, flags, 0o600, dir_fd=directory)
    except OSError as error:
        raise SystemEnvironmentError(f"cannot open {path}/{_LOCK}: {error.strerror}") from None
    status = os.fstat(fd)
    # Whoever can read it could lock it, and so keep writers out.
    readers = status.st_mode & 0o044 & ~(status.st_mode << 1)
    if stat.S_ISREG(status.st_mode) and readers:
        with contextlib.suppress(OSError):
            os.fchmod(fd, stat.S_IMODE(status.st_mode) & ~readers)
            readers = 0
    if not stat.S_ISREG(status.st_mode) or readers:
        os.close(fd)
        raise FileError(
            f"{path}/{_LOCK} is not a file, or others can read and so lock it", hint="chmod 600"
        )
    return fd


def _read_about(directory: int, path: str, chunks: str) -> tuple[int, bytes]:
    """The store's version and tenant id.  Raises UsageError, FileError, SystemEnvironmentError."""
    what = f"{chunks}/{_ABOUT}"
    try:
        with open(os.open(_ABOUT, _FILE, dir_fd=directory), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileError(f"{what} is not a file")
            data = file.read(_MAX_ABOUT)
    except FileNotFoundError:
        raise UsageError(
            f"{path} is not a chunk store", hint="make one with: sealpoint store init DIR"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileError(f"{what} is a link, which is not followed") from None
        raise SystemEnvironmentError(f"cannot read {what}: {error.strerror}") from None
    fields = Fields(strictjson.decode(data, what), what)
    version = fields.u64("version")
    if not 1 <= version <= VERSION:
        raise FileError(f"{what}: of an unknown version")
    tenant = fields.hex("tenant", ID_SIZE)
    fields.done()
    return version, tenant


def _open_chunk(
    directory: int, path: str, identifier: bytes, *, device: int | None = None
) -> int | None:
    """Raises FileError, SystemEnvironmentError."""
    name = identifier.hex()
    what = f"{path}/{name[:2]}/{name}"
    try:
        shard = _open_shard(directory, path, name[:2], device=device)
        try:
            fd = os.open(name, _FILE, dir_fd=shard)
        finally:
            os.close(shard)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise FileError(f"{what} is not a chunk") from None
        raise SystemEnvironmentError(f"cannot read {what}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileError(f"{what} is not a chunk")
    return fd


def _read_into(fd: int, buffer: memoryview) -> int:
    have = 0
    try:
        while have < len(buffer) and (got := os.preadv(fd, [buffer[have:]], have)):
            have += got
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read a chunk: {error.strerror}") from None
    return have


def _write_new(shard: int, path: str, name: str, data: bytes | bytearray) -> bool:
    """Raises OSError, SystemEnvironmentError."""
    temporary = None
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=shard)
        source = f"/proc/self/fd/{fd}"
    except OSError as error:
        if error.errno not in _NO_UNNAMED:
            raise
        source = temporary = f".{os.urandom(8).hex()}{PARTIAL}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=shard)
    try:
        write_all(fd, [data], path)
        link_file(source, name, shard)
    except FileExistsError:
        return False
    finally:
        os.close(fd)
        if temporary is not None:
            os.unlink(temporary, dir_fd=shard)
    return True


def _unlink(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _cannot_remove(path: str, error: OSError) -> SystemEnvironmentError:
    return SystemEnvironmentError(f"cannot remove {path}: {error.strerror}")


def _error(error: OSError, path: str) -> SystemEnvironmentError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SystemEnvironmentError(
            f"no space left for chunks in {path}",
            hint="free some space; sealpoint store gc may help",
        )
    return SystemEnvironmentError(f"cannot write to the store {path}: {error.strerror}")

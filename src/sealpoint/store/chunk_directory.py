"""A chunk store: a directory of stored chunks, `chunks/ab/<id>`, beside the sealed files that refer to them.

A chunk appears under its name only when it is complete, and is never changed.  What a writer adds is durable after
`sync`, before which nothing may refer to it.  Writers hold a lock together, who removes chunks holds it alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from sealpoint.errors import FileError, IdentityError, SystemEnvironmentError, UsageError
from sealpoint.format import strictjson
from sealpoint.format.constants import HASH_SIZE, ID_SIZE, MAX_STORED_FILE
from sealpoint.format.index import Reference
from sealpoint.format.strictjson import Fields
from sealpoint.store.output import link_file, write_all

CHUNKS: Final = "chunks"
_ABOUT: Final = "store.json"
_LOCK: Final = "lock"
_MAX_ABOUT: Final = 4096
_HEX: Final = frozenset("0123456789abcdef")
_PATIENCE: Final = 5.0  # seconds for which a lock is waited for


class ChunkDirectory:
    """A store that is open for writing: a context manager that holds its lock."""

    def __init__(self, path: str, *, exclusive: bool = False) -> None:
        """path: the directory that holds `chunks`.  Raises UsageError, FileError, SystemEnvironmentError."""
        self.path = os.path.abspath(path)
        self.chunks = os.path.join(self.path, CHUNKS)
        self.tenant = _read_about(self.chunks, path)
        self._shards: set[str] = set()  # directories of chunks that are known to be there
        try:
            self._lock = os.open(
                f"{self.chunks}/{_LOCK}",
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot open the store {path}: {error.strerror}"
            ) from None
        try:
            self._take_lock(exclusive=exclusive)
        except BaseException:
            os.close(self._lock)
            raise

    @staticmethod
    def make(path: str, tenant: bytes) -> None:
        """A new, empty store; `path` may exist.  Raises UsageError, SystemEnvironmentError."""
        chunks = os.path.join(path, CHUNKS)
        if os.path.lexists(chunks):
            raise UsageError(f"{chunks} exists", hint="one directory holds one store")
        about = strictjson.encode({"version": "1", "tenant": tenant.hex()})
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            os.mkdir(chunks, 0o700)
            fd = os.open(
                f"{chunks}/{_ABOUT}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            try:
                write_all(fd, [about], chunks)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot make a store in {path}: {error.strerror}"
            ) from None

    def check_tenant(self, tenant: bytes) -> None:
        """Raises IdentityError where the store is another tenant's."""
        if tenant != self.tenant:
            raise IdentityError(
                f"the tenant key is not that of the store {self.path}",
                hint="the key file that store init made for it is needed",
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
        fd = _open_chunk(self.chunks, identifier)
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
        """Add a chunk; False if somebody has added one of that id.  Raises SystemEnvironmentError."""
        path = chunk_path(self.chunks, identifier)
        directory = os.path.dirname(path)
        try:
            if directory not in self._shards:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o700)
                self._shards.add(directory)
            return _write_new(directory, path, data)
        except OSError as error:
            raise _error(error, self.path) from None

    def sync(self) -> None:
        """Make durable what was added.  Raises SystemEnvironmentError."""
        try:
            fd = os.open(self.chunks, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            finally:
                os.close(fd)
        except OSError as error:
            raise _error(error, self.path) from None

    def entries(self) -> Iterator[tuple[bytes, int, str]]:
        """(id, bytes, path) of every chunk.  Raises SystemEnvironmentError."""
        for entry in self._files():
            if len(entry.name) == 2 * HASH_SIZE and not set(entry.name) - _HEX:
                yield (
                    bytes.fromhex(entry.name),
                    entry.stat(follow_symlinks=False).st_size,
                    entry.path,
                )

    def leftovers(self) -> Iterator[str]:
        """Paths of what a writer that was killed has left.  Only for who holds the lock alone."""
        for entry in self._files():
            if entry.name.startswith(".") and entry.name.endswith(".partial"):
                yield entry.path

    def _files(self) -> Iterator[os.DirEntry[str]]:
        try:
            for shard in sorted(os.listdir(self.chunks)):
                if len(shard) == 2 and not set(shard) - _HEX:
                    with os.scandir(f"{self.chunks}/{shard}") as found:
                        yield from sorted(found, key=lambda e: e.name)
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot read the store {self.path}: {error.strerror}"
            ) from None

    def close(self) -> None:
        """Gives the lock back."""
        os.close(self._lock)

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

        Raises UsageError for a store that is none.
        """
        beside = [] if file is None else [os.path.dirname(os.path.abspath(file))]
        for store in stores:
            if not os.path.isdir(os.path.join(store, CHUNKS)):
                raise UsageError(f"{store} is no chunk store", hint="it has no directory chunks")
        places = [*map(os.path.abspath, stores), *beside]
        self.stores = [p for p in dict.fromkeys(places) if os.path.isdir(os.path.join(p, CHUNKS))]

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
        for store in self.stores:
            fd = _open_chunk(os.path.join(store, CHUNKS), reference.identifier)
            if fd is None:
                continue
            if os.fstat(fd).st_size == reference.length:
                return fd
            os.close(fd)
            raise FileError(f"chunk {name} in {store} has another length than it had")
        raise FileError(f"chunk {name} is missing in {', '.join(self.stores)}")


def chunk_path(chunks: str, identifier: bytes) -> str:
    """Where a chunk lies."""
    name = identifier.hex()
    return f"{chunks}/{name[:2]}/{name}"


def _read_about(chunks: str, path: str) -> bytes:
    """The store's tenant id.  Raises UsageError, FileError, SystemEnvironmentError."""
    what = f"{chunks}/{_ABOUT}"
    try:
        with open(what, "rb") as file:
            data = file.read(_MAX_ABOUT)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{path} is no chunk store", hint="make one with: sealpoint store init DIR"
        ) from None
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read {what}: {error.strerror}") from None
    fields = Fields(strictjson.decode(data, what), what)
    if fields.u64("version") != 1:
        raise FileError(f"{what}: of an unknown version")
    tenant = fields.hex("tenant", ID_SIZE)
    fields.done()
    return tenant


def _open_chunk(chunks: str, identifier: bytes) -> int | None:
    path = chunk_path(chunks, identifier)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise FileError(f"{path} is no chunk") from None
        raise SystemEnvironmentError(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileError(f"{path} is no chunk")
    return fd


def _read_into(fd: int, buffer: memoryview) -> int:
    have = 0
    try:
        while have < len(buffer) and (got := os.preadv(fd, [buffer[have:]], have)):
            have += got
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read a chunk: {error.strerror}") from None
    return have


def _write_new(directory: str, path: str, data: bytes | bytearray) -> bool:
    """Raises OSError, SystemEnvironmentError."""
    temporary = None
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        source = f"/proc/self/fd/{fd}"
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        source = temporary = f"{directory}/.{os.urandom(8).hex()}.partial"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, [data], directory)
        link_file(source, path)
    except FileExistsError:
        return False
    finally:
        os.close(fd)
        if temporary is not None:
            os.unlink(temporary)
    return True


def _error(error: OSError, path: str) -> SystemEnvironmentError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SystemEnvironmentError(
            f"no space left for chunks in {path}",
            hint="free some space; sealpoint store gc may help",
        )
    return SystemEnvironmentError(f"cannot write to the store {path}: {error.strerror}")

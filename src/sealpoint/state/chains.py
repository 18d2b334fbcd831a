"""The state store: what a machine that dumps remembers of its own checkpoints, because it cannot read them back.

A dump that continues another must know what that one holds, and the dump side has no key that opens it.  A state is a
cache: whatever is wrong with one costs a full dump, never an error.  It is encrypted under the machine's own key, and
bound to checkpoint id and origin digest: it opens for that very file only.  docs/guide/increments.md says how long each
is kept.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Final

from sealpoint import ownership
from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.format import strictjson
from sealpoint.format.constants import ID_SIZE
from sealpoint.format.statement import ParentRef
from sealpoint.format.strictjson import Fields
from sealpoint.store import naming

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_WHAT: Final = "the state directory"
DEFAULT_STATE: Final = "/var/lib/sealpoint/state"
MAX_STATES: Final = 1024
MAX_BYTES: Final = 2 << 30
MAX_AGE: Final = 30 * 24 * 3600  # seconds since a state was last used
_MAX_STATE: Final = 1 << 30
_KEY_NAME: Final = "machine.key"
_KEY_SIZE: Final = 32
_MAGIC: Final = b"SEALSTA\x01"
_HEAD: Final = struct.Struct("<8s32s")  # magic, salt
_LENGTH: Final = struct.Struct("<Q")
_ABANDONED: Final = 3600  # seconds after which a file in the making belongs to nobody


@dataclass(slots=True)
class ImageLayout:
    """Where the pages of one image lie: its stream's number and chunk size, and its size in bytes."""

    stream: int
    chunk: int
    size: int


@dataclass(slots=True)
class State:
    """What is remembered of one checkpoint.

    reference: the file; parent: what it continues; chain: id of the chain's first file and place in the chain;
    workload: as in the origin; layout: of each pages image; sections: named byte strings, for instance CRIU's inventory
    and pagemaps.
    """

    reference: ParentRef
    chain: tuple[bytes, int]
    parent: ParentRef | None = None
    workload: str = ""
    layout: dict[str, ImageLayout] = field(default_factory=dict)
    sections: dict[str, bytes] = field(default_factory=dict)


class NoStateError(Exception):
    """There is no usable state; the message says why, for the user."""


class StateStore:
    """One directory of states, 0700 and ours alone.  Several processes may use it at once."""

    def __init__(self, directory: str = DEFAULT_STATE) -> None:
        self.directory = directory

    def load(self, reference: ParentRef) -> State:
        """Raises NoStateError: none is there, it is another file's, damaged, or others can write there."""
        try:
            with open_private(self.directory, reference.checkpoint_id.hex()) as file:
                data = file.read(_MAX_STATE + 1)
                state = _open(self._key(make=False), reference, data)
                with contextlib.suppress(OSError):
                    os.utime(file.fileno())  # used: it is kept for longer
                return state
        except SystemEnvironmentError as error:
            raise NoStateError(error.message) from None
        except FileNotFoundError:
            raise NoStateError("this machine has no state of it") from None
        except OSError as error:
            raise NoStateError(f"its state cannot be read: {error.strerror}") from None

    def save(self, state: State) -> None:
        """Replaces what there was of that checkpoint, then removes what is too much.  Raises SystemEnvironmentError."""
        try:
            with state_directory(self.directory) as directory:
                data = _seal(self._key(make=True), state)
                naming.write_file(directory, state.reference.checkpoint_id.hex(), data)
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot keep the state in {self.directory}: {error.strerror}"
            ) from None
        self.collect(keep=state.reference.checkpoint_id)

    def remove(self, checkpoint_id: bytes) -> None:
        """Forget a checkpoint; nothing happens if it is not known."""
        with (
            contextlib.suppress(OSError, SystemEnvironmentError),
            state_directory(self.directory, make=False) as directory,
        ):
            os.unlink(checkpoint_id.hex(), dir_fd=directory)

    def collect(self, keep: bytes = b"") -> None:
        """Remove states beyond the bounds, the longest unused first, and what was never finished."""
        with (
            contextlib.suppress(OSError, SystemEnvironmentError),
            state_directory(self.directory, make=False) as directory,
        ):
            _collect(directory, keep.hex())

    def machine_key(self) -> bytes:
        """A secret of this machine, made at its first use.  Raises SystemEnvironmentError."""
        try:
            with state_directory(self.directory):
                return self._key(make=True)
        except OSError as error:
            raise SystemEnvironmentError(
                f"the machine's key in {self.directory} cannot be used: {error.strerror}"
            ) from None

    def _key(self, *, make: bool) -> bytes:
        """The machine's key, made at its first use.  Raises OSError."""
        for _ in range(2):
            try:
                with open_private(self.directory, _KEY_NAME) as file:
                    key = file.read(_KEY_SIZE + 1)
                if len(key) == _KEY_SIZE:
                    return key
                with state_directory(self.directory) as directory:
                    os.unlink(_KEY_NAME, dir_fd=directory)  # damaged: no state opens any more
            except FileNotFoundError:
                if not make:
                    raise
            with (
                contextlib.suppress(FileExistsError),  # the first one wins
                state_directory(self.directory) as directory,
            ):
                naming.write_file(directory, _KEY_NAME, os.urandom(_KEY_SIZE), replace=False)
        raise OSError(5, "the machine's key is damaged")


def _collect(directory: int, keep: str) -> None:
    """Raises OSError: somebody else removes, too."""
    now = time.time()
    found = []
    for name in os.listdir(directory):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if name.startswith(".") and now - status.st_mtime > _ABANDONED:
            os.unlink(name, dir_fd=directory)
        elif _is_state(name) and name != keep:
            found.append((status.st_mtime, status.st_size, name))
    count, size = 1, 0
    for mtime, length, name in sorted(found, reverse=True):
        count, size = count + 1, size + length
        if count > MAX_STATES or size > MAX_BYTES or now - mtime > MAX_AGE:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)


@contextlib.contextmanager
def state_directory(path: str, *, make: bool = True) -> Iterator[int]:
    """A descriptor of it; every level is ours alone.  make: whatever is missing.

    Raises OSError, SystemEnvironmentError (others can write there).
    """
    directory = ownership.private_directory(path, _WHAT, make=make)
    try:
        yield directory
    finally:
        os.close(directory)


def open_private(directory: str, name: str) -> BinaryIO:
    """A file of a state directory, which nobody else could have put there.

    Raises OSError, SystemEnvironmentError (others can write there, or did).
    """
    fd = ownership.private_directory(directory, _WHAT, make=False)
    try:
        file = open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd), "rb")  # noqa: SIM115
    finally:
        os.close(fd)
    owner = os.fstat(file.fileno()).st_uid
    if owner not in (0, os.geteuid()):
        file.close()
        raise SystemEnvironmentError(
            f"{directory}/{name} belongs to user {owner}",
            hint=f"others could write to {directory} once: remove what is in it",
        )
    return file


def _is_state(name: str) -> bool:
    return len(name) == 2 * ID_SIZE and not set(name) - set("0123456789abcdef")


def _cipher(key: bytes, salt: bytes, reference: ParentRef) -> tuple[AESGCM, bytes]:
    """A cipher for one state, and what it is bound to."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    bound = b"sealpoint/v1 state" + reference.checkpoint_id + reference.origin_digest
    return AESGCM(HKDF(hashes.SHA256(), _KEY_SIZE, salt, bound).derive(key)), bound


def _seal(key: bytes, state: State) -> bytes:
    salt = os.urandom(32)
    cipher, bound = _cipher(key, salt, state.reference)
    # The key is fresh with its salt, so the nonce need not differ.
    return _HEAD.pack(_MAGIC, salt) + cipher.encrypt(bytes(12), _encode(state), bound)


def _open(key: bytes, reference: ParentRef, data: bytes) -> State:
    from cryptography.exceptions import InvalidTag

    if not _HEAD.size < len(data) <= _MAX_STATE or data[: len(_MAGIC)] != _MAGIC:
        raise NoStateError("its state is damaged")
    _, salt = _HEAD.unpack_from(data)
    cipher, bound = _cipher(key, salt, reference)
    try:
        plain = cipher.decrypt(bytes(12), data[_HEAD.size :], bound)
        return _decode(plain, reference)
    except InvalidTag:
        raise NoStateError("its state is damaged, of another machine, or of another file") from None
    except FileError as error:
        raise NoStateError(f"its state is of another version ({error.message})") from None


def _encode(state: State) -> bytes:
    head = strictjson.encode(
        {
            "parent": None
            if state.parent is None
            else [state.parent.checkpoint_id.hex(), state.parent.origin_digest.hex()],
            "chain": [state.chain[0].hex(), str(state.chain[1])],
            "workload": state.workload,
            "layout": {
                name: [str(x.stream), str(x.chunk), str(x.size)] for name, x in state.layout.items()
            },
            "sections": {name: str(len(data)) for name, data in state.sections.items()},
        }
    )
    return b"".join((_LENGTH.pack(len(head)), head, *state.sections.values()))


def _decode(data: bytes, reference: ParentRef) -> State:
    (size,) = _LENGTH.unpack_from(data)
    what = "state"
    at = _LENGTH.size + size
    f = Fields(strictjson.decode(data[_LENGTH.size : at], what), what)
    parent = None
    if not f.null("parent"):
        names = f.array("parent", limit=2)
        parent = ParentRef(
            strictjson.parse_hex(names[0], ID_SIZE, what), strictjson.parse_hex(names[1], 32, what)
        )
    root, sequence = f.array("chain", limit=2)
    workload = f.text("workload")
    layout = {
        name: ImageLayout(*(strictjson.parse_u64(x, what) for x in values))
        for name, values in f.mapping("layout").items()
    }
    sizes: Mapping[str, object] = f.mapping("sections")
    f.done()
    sections = {}
    for name, value in sizes.items():
        length = strictjson.parse_u64(value, what)
        sections[name] = data[at : at + length]
        at += length
    chain = (strictjson.parse_hex(root, ID_SIZE, what), strictjson.parse_u64(sequence, what))
    return State(reference, chain, parent, workload, layout, sections)

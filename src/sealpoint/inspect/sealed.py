"""A sealed file as a source: authenticated before anything is read, decrypted chunk by chunk in memory.

The parents of an increment are looked for beside it: behind the link `parent` of its directory, as CRIU has it, and
among the sealed files of its directory.  One is taken only if it is the very file that the increment names, id and
origin digest.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sealpoint.checkpoint.access import Checkpoint, describe_stanza, require_trust
from sealpoint.checkpoint.chain import Chain
from sealpoint.checkpoint.delta import DELTA_NAME
from sealpoint.checkpoint.flat import Flat, Runs
from sealpoint.criu.roles import SUMMARY_NAME, role_of
from sealpoint.errors import FileError, IdentityError, UsageError
from sealpoint.format.constants import MAGIC, PREAMBLE_SIZE, Role, Roots
from sealpoint.format.opened import Scratch
from sealpoint.inspect.source import PARENT_ELSEWHERE, READ_LIMIT, inside

if TYPE_CHECKING:
    from sealpoint.format.manifest import Entry, Stream
    from sealpoint.format.opened import OpenFile
    from sealpoint.inspect.source import Access, Source

_CACHE: Final = 32 * 1024 * 1024  # bytes of decrypted chunks that are kept for small reads
_PIECE: Final = 1024 * 1024  # bytes of an increment's pages that are put together at a time
_MAX_BESIDE: Final = 4096  # files of a directory that are looked at for a parent
_ID: Final = slice(16, 32)  # of the preamble: docs/spec.md, Preamble


class SealedSource:
    """See Source.  `opened` is the file itself, `checkpoint` what is public of it and who signed it."""

    def __init__(self, fd: int, path: str, access: Access) -> None:
        """Takes over `fd` if it succeeds.  Raises FileError, PolicyError, IdentityError, UsageError."""
        self.label = "standard input" if path == "-" else path
        self._path = path
        self._access = access
        self._parent: SealedSource | None = None
        self._chunks: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self._scratch = Scratch()
        policy = access.policy()
        require_trust(policy)
        self.checkpoint = Checkpoint.of(
            fd, policy, path=None if path == "-" else path, stores=access.stores
        )
        self.opened: OpenFile = self.checkpoint.unlock(access.identities())
        self._entries: dict[str, Entry] = {}
        self._links: dict[str, str] = {}
        hard: dict[str, str] = {}
        for name, entry in self.opened.entries.items():
            attributes = entry.attributes or {}
            kind = attributes.get("type", "file")
            if kind == "file":
                self._entries[name] = entry
            elif kind == "symlink":
                self._links[name] = attributes["link"]
            elif kind == "hardlink":
                hard[name] = attributes["link"]
        for name, target in hard.items():
            if target in self._entries:
                self._entries[name] = self._entries[target]
        self._chain: Chain | None = None
        self._whole: dict[str, Runs] = {}
        if self._entries.pop(DELTA_NAME, None) is not None:
            self._open_parents()

    def _open_parents(self) -> None:
        """Pages of an increment are put together from all files of its chain."""
        self._chain = Chain.open(self._path, self._access.policy(), stores=self._access.stores)
        try:
            flat = Flat(self._chain.unlock(self._access.identities()))
        except BaseException:
            self._chain.close()
            raise
        self._reader = flat.chunk_reader()
        self._whole = {n: i.runs for n, i in flat.images.items() if i.runs is not None}

    def names(self) -> list[str]:
        """See Source; in the order in which they were sealed, without the sealer's summary."""
        found = sorted(self._entries.items(), key=lambda item: item[1].number)
        return [name for name, _ in found if name != SUMMARY_NAME]

    def summary(self) -> bytes | None:
        """The sealer's summary object, which metadata identities read in place of memory images."""
        entry = self._entries.get(SUMMARY_NAME)
        return None if entry is None else self.opened.read_bytes(entry)

    def exists(self, name: str) -> bool:
        """See Source."""
        return name in self._entries

    def withheld(self, name: str) -> bool:
        """See Source."""
        return not self.opened.has_memory and role_of(name) is Role.MEMORY

    def withheld_objects(self) -> tuple[int, int]:
        """How many objects are withheld from this identity, and how many bytes they have."""
        if self.opened.has_memory:
            return 0, 0
        sizes = self.opened.manifests[Role.METADATA].memory.values()
        return len(sizes), sum(sizes)

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is not None:
            return entry
        if self.withheld(name):
            raise IdentityError(
                f"{self.label}:{name} is of the memory role, and the identity given opens metadata only",
                hint=f"it takes the identity of: {', '.join(self.memory_recipients())}",
            )
        raise FileError(f"{self.label} has no {name}")

    def memory_recipients(self) -> list[str]:
        """Who could open the memory, as messages name them."""
        stanzas = self.checkpoint.authentic.slot.stanzas
        return [describe_stanza(s) for s in stanzas if s.roots is Roots.BOTH]

    def size(self, name: str) -> int:
        """See Source."""
        entry = self._entry(name)
        return self._whole[name].size if name in self._whole else entry.size

    def role(self, name: str) -> Role:
        """See Source."""
        return self._entry(name).role

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """See Source."""
        if self.size(name) > limit:
            raise FileError(f"{self.label}:{name} is larger than {limit} bytes")
        return self.pread(name, 0, self.size(name))

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """See Source."""
        if name in self._whole:
            return b"".join(map(bytes, self.chunks(name, offset, size)))
        entry = self._entry(name)
        stream = entry.stream
        begin = entry.offset + min(offset, entry.size)
        end = min(begin + size, entry.offset + entry.size)
        out = bytearray()
        while begin < end:
            counter, skip = divmod(begin, stream.chunk_size)
            piece = self._chunk(stream, counter)[skip : skip + end - begin]
            out += piece
            begin += len(piece)
        return bytes(out)

    def _chunk(self, stream: Stream, counter: int) -> memoryview:
        key = (stream.number, counter)
        chunk = self._chunks.get(key)
        if chunk is not None:
            self._chunks.move_to_end(key)
            return chunk
        while self._chunks and sum(map(len, self._chunks.values())) > _CACHE - stream.chunk_size:
            self._chunks.popitem(last=False)
        chunk = memoryview(bytearray(stream.plain_size(counter)))
        self.opened.read_chunk_into(stream, counter, chunk, self._scratch)
        self._chunks[key] = chunk
        return chunk

    def chunks(self, name: str, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """See Source.  Decrypted into a buffer of this call's own, without another copy."""
        if name in self._whole:
            return self._assembled(self._whole[name], offset, size)
        return self.opened.read(self._entry(name), Scratch(), start=offset, size=size)

    def _assembled(self, runs: Runs, offset: int, size: int | None) -> Iterator[memoryview]:
        end = runs.size if size is None else min(runs.size, offset + size)
        buffer = memoryview(bytearray(max(0, min(_PIECE, end - offset))))
        while offset < end:
            have = runs.fill(buffer[: end - offset], offset, self._reader)
            yield buffer[:have]
            offset += have

    def parent(self, prefix: str) -> tuple[Source, str] | None:
        """See Source: a link in a sealed archive, or the sealed file that an increment names."""
        name = prefix + "parent"
        if name in self._links:
            target = inside(prefix, self._links[name])
            if target is None or not any(n.startswith(target) for n in self._entries):
                raise FileError(
                    f"{self.label}:{name} leads to no images of this file", hint=PARENT_ELSEWHERE
                )
            return self, target
        wanted = self.checkpoint.authentic.origin.parent
        if wanted is None or self._chain is not None:
            return None
        if self._parent is None:
            path = self._find(wanted.checkpoint_id)
            found = _open_sealed(path, self._access)
            if found.checkpoint.authentic.reference != wanted:
                found.close()
                raise FileError(
                    f"{path} has the id of {self.label}'s parent, but is another file than it was made on"
                )
            self._parent = found
        return self._parent, prefix

    def _find(self, checkpoint_id: bytes) -> str:
        here = os.path.dirname(self._path) or "."
        if self._path != "-":
            for directory in (f"{here}/parent", here):
                for path in _sealed_files(directory):
                    if sealed_id(path) == checkpoint_id:
                        return path
        raise FileError(
            f"{self.label} is an increment of the checkpoint {checkpoint_id.hex()}, which is not beside it",
            hint="put the sealed file of that checkpoint into the same directory",
        )

    def close(self) -> None:
        """See Source."""
        if self._chain is not None:
            self._chain.close()
        if self._parent is not None:
            self._parent.close()
            self._parent = None
        self.checkpoint.close()


def _open_sealed(path: str, access: Access) -> SealedSource:
    from sealpoint.store.source import open_source

    fd = open_source(path)
    try:
        return SealedSource(fd, path, access)
    except BaseException:
        os.close(fd)
        raise


def sealed_id(path: str) -> bytes | None:
    """The checkpoint id that a file claims, None if it is no sealed file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        head = os.pread(fd, PREAMBLE_SIZE, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
    return head[_ID] if len(head) == PREAMBLE_SIZE and head.startswith(MAGIC) else None


def _sealed_files(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as found:
            paths = sorted(e.path for e in found if e.is_file())
    except OSError:
        return []
    return [p for p in paths[:_MAX_BESIDE] if sealed_id(p) is not None]


def newest_in(directory: str) -> str | None:
    """The sealed file that a directory stands for, None if there is none.

    That is `inventory.img`, where an engine has it; the only one; or of increments the last of their chain.  Which one
    that is follows from statements that are not verified yet: opening the file verifies it.
    Raises FileError, UsageError if several are no parent of another.
    """
    if sealed_id(f"{directory}/inventory.img") is not None:
        return f"{directory}/inventory.img"
    files = _sealed_files(directory)
    if len(files) < 2:
        return files[0] if files else None
    parents: set[bytes] = set()
    for path in files:
        parents |= _claimed_parents(path)
    last = [path for path in files if sealed_id(path) not in parents]
    if len(last) == 1:
        return last[0]
    raise UsageError(
        f"{directory} holds several sealed files that are no increments of one another",
        hint=f"name one of them, for instance {(last or files)[0]}",
    )


def _claimed_parents(path: str) -> set[bytes]:
    from sealpoint.format.reader import SealedFile
    from sealpoint.format.statement import Origin

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        origin = Origin.decode(SealedFile(fd).origin_envelope.payload)
    except FileError:
        return set()  # whoever opens it will be told
    finally:
        os.close(fd)
    return set() if origin.parent is None else {origin.parent.checkpoint_id}

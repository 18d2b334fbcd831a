"""A read-only directory of a sealed file's objects, decrypted as they are read.

For readers (`sealpoint mount`) and for CRIU's restore through the drop-in.  Every chunk is compared with its hash and
authenticated before its first byte is handed out; `verified` collects them, so that a gate can see what is missing.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sealpoint.criu.fuse import ROOT, Attributes, Filesystem
from sealpoint.criu.roles import SUMMARY_NAME
from sealpoint.format.manifest import Entry, Stream
from sealpoint.format.reader import OpenFile, Scratch

_CACHE: Final = 8  # decrypted chunks kept: CRIU compares pages of forked children one by one
_CACHE_BYTES: Final = 32 * 1024 * 1024  # fewer than that of files with large chunks
_TYPES: Final = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
}


@dataclass(slots=True)
class _Node:
    attributes: Attributes
    entry: Entry | None = None
    link: str = ""
    children: dict[str, int] = field(default_factory=dict)
    listing: list[tuple[str, Attributes]] | None = None


class View(Filesystem):
    """The tree of one open sealed file."""

    def __init__(self, checkpoint: OpenFile) -> None:
        self._checkpoint = checkpoint
        self._nodes = {ROOT: _Node(Attributes(ROOT, stat.S_IFDIR | 0o500))}
        self._cache = _ChunkCache(checkpoint)
        self.error: BaseException | None = None
        self.on_error: Callable[[BaseException], None] = lambda _: None
        hard_links: list[tuple[Entry, str]] = []
        for entry in checkpoint.entries.values():
            attributes = entry.attributes or {}
            if attributes.get("type") == "hardlink":
                hard_links.append((entry, attributes.get("link", "")))
            elif entry.name != SUMMARY_NAME:  # which is the sealer's, not CRIU's
                self._add(entry)
        self._link(hard_links)

    @property
    def verified(self) -> set[tuple[int, int]]:
        """(stream number, chunk) of every chunk that was authenticated."""
        return self._cache.verified

    def _add(self, entry: Entry) -> None:
        parent, name = self._place(entry.name)
        attributes = entry.attributes or {}
        kind = _TYPES.get(attributes.get("type", "file"))
        if kind is None:
            return  # devices and pipes are not shown
        if kind == stat.S_IFDIR:
            if name not in self._nodes[parent].children:
                self._new(parent, name, kind | 0o500)
            return
        mode = int(attributes.get("mode", "384")) & 0o700
        node = self._new(
            parent, name, kind | (mode & 0o500), entry, int(attributes.get("mtime", "0"))
        )
        self._nodes[node].link = attributes.get("link", "")

    def _place(self, path: str) -> tuple[int, str]:
        """Node of the directory that a name belongs into, made where it is missing, and the last part."""
        *directories, name = path.split("/")
        parent = ROOT
        for part in directories:
            parent = self._nodes[parent].children.get(part) or self._new(
                parent, part, stat.S_IFDIR | 0o500
            )
        return parent, name

    def _link(self, links: list[tuple[Entry, str]]) -> None:
        """Give files their further names; one may lead to another, and a name that leads nowhere is not shown."""
        while links:
            rest: list[tuple[Entry, str]] = []
            for entry, target in links:
                node = self._find(target)
                if node is None or not stat.S_ISREG(self._nodes[node].attributes.mode):
                    rest.append((entry, target))
                else:
                    parent, name = self._place(entry.name)
                    self._nodes[parent].children[name] = node
            if len(rest) == len(links):
                return
            links = rest

    def _find(self, path: str) -> int | None:
        node: int | None = ROOT
        for part in posixpath.normpath(path).split("/"):
            node = self._nodes[node].children.get(part) if node is not None else None
        return node

    def _new(
        self, parent: int, name: str, mode: int, entry: Entry | None = None, mtime: int = 0
    ) -> int:
        node = ROOT + len(self._nodes)
        size = entry.size if entry is not None else 0
        self._nodes[node] = _Node(Attributes(node, mode, size, mtime=mtime), entry)
        self._nodes[parent].children[name] = node
        return node

    def _node(self, node: int) -> _Node:
        try:
            return self._nodes[node]
        except KeyError:
            raise OSError(errno.ENOENT, "no such file") from None

    def lookup(self, parent: int, name: str) -> Attributes:
        node = self._node(parent).children.get(name)
        if node is None:
            raise OSError(errno.ENOENT, "no such file")
        return self._nodes[node].attributes

    def getattr(self, node: int) -> Attributes:
        return self._node(node).attributes

    def readdir(self, node: int) -> Sequence[tuple[str, Attributes]]:
        directory = self._node(node)
        if not stat.S_ISDIR(directory.attributes.mode):
            raise OSError(errno.ENOTDIR, "not a directory")
        if directory.listing is None:  # asked for again with every page of a long listing
            directory.listing = [
                (n, self._nodes[c].attributes) for n, c in directory.children.items()
            ]
        return directory.listing

    def readlink(self, node: int) -> bytes:
        found = self._node(node)
        if not stat.S_ISLNK(found.attributes.mode):
            raise OSError(errno.EINVAL, "not a link")
        return os.fsencode(found.link)

    def open(self, node: int, flags: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        if not stat.S_ISREG(self._node(node).attributes.mode):
            raise OSError(errno.EISDIR, "not a file")
        return node

    def read(self, node: int, handle: int, offset: int, size: int) -> Sequence[memoryview | bytes]:
        entry = self._node(node).entry
        if entry is None:
            raise OSError(errno.EISDIR, "a directory")
        begin = entry.offset + min(offset, entry.size)
        end = min(begin + size, entry.offset + entry.size)
        pieces: list[memoryview] = []
        try:
            self._cache.start()
            while begin < end:
                counter, skip = divmod(begin, entry.stream.chunk_size)
                chunk = self._cache.chunk(entry.stream, counter)
                piece = chunk[skip : skip + end - begin]
                pieces.append(piece)
                begin += len(piece)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader has not got what was sealed
            first = self.error is None
            self.error = self.error or error
            if first:
                self.on_error(error)  # before the reader can go on without those bytes
            raise OSError(errno.EIO, "not authentic") from None
        return pieces

    def verify_rest(self) -> None:
        """Authenticate every chunk that nobody has read.  Raises SealpointError."""
        scratch = Scratch()
        for stream in self._checkpoint.streams():
            out = scratch.plain(stream)
            for counter in range(stream.chunks):
                if (stream.number, counter) not in self.verified:
                    self._checkpoint.read_chunk_into(stream, counter, out, scratch)
                    self.verified.add((stream.number, counter))


class _Chunk:
    __slots__ = ("data", "pins", "ready", "size")

    def __init__(self, capacity: int) -> None:
        self.data = memoryview(bytearray(capacity))
        self.size = 0
        self.pins = 0
        self.ready = False


class _ChunkCache:
    """Recently decrypted chunks.  A chunk stays as it is until the thread that got it asks for the next ones."""

    def __init__(self, checkpoint: OpenFile) -> None:
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[int, int], _Chunk] = OrderedDict()
        self._local = threading.local()
        self.verified: set[tuple[int, int]] = set()

    def start(self) -> None:
        """The calling thread is done with what it got before."""
        with self._lock:
            for chunk in getattr(self._local, "held", ()):
                chunk.pins -= 1
            self._local.held = []

    def chunk(self, stream: Stream, counter: int) -> memoryview:
        """Plaintext of a chunk.  Raises FileError."""
        key = (stream.number, counter)
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is None:
                chunk = self._take(stream.chunk_size)
                scratch = self._scratch()
                chunk.size = self._checkpoint.read_chunk_into(stream, counter, chunk.data, scratch)
                self._chunks[key] = chunk
                self.verified.add(key)
            self._chunks.move_to_end(key)
            chunk.pins += 1
            self._local.held.append(chunk)
        return chunk.data[: chunk.size]

    def _take(self, capacity: int) -> _Chunk:
        if len(self._chunks) >= max(2, min(_CACHE, _CACHE_BYTES // capacity)):
            for key, chunk in self._chunks.items():
                if not chunk.pins and len(chunk.data) >= capacity:
                    del self._chunks[key]
                    return chunk
            for key, chunk in self._chunks.items():
                if not chunk.pins:
                    del self._chunks[key]
                    break
        return _Chunk(capacity)

    def _scratch(self) -> Scratch:
        if not hasattr(self._local, "scratch"):
            self._local.scratch = Scratch()
        scratch: Scratch = self._local.scratch
        return scratch

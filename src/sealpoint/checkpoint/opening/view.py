"""A read-only directory of the objects of a sealed file, or of a chain of them, decrypted as they are read.

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

from sealpoint.checkpoint.opening.flat import Flat, FlatImage
from sealpoint.criu.fuse import MAX_IO, ROOT, Attributes, Filesystem
from sealpoint.criu.roles import SUMMARY_NAME
from sealpoint.format.manifest import Entry, Stream
from sealpoint.format.opened import Scratch

_CACHE: Final = 8  # decrypted chunks kept: CRIU compares pages of forked children one by one
_CACHE_BYTES: Final = 64 * 1024 * 1024  # fewer than that of files with large chunks
_PINS: Final = 12  # chunks in use at once where an image is put together
_TYPES: Final = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
}


@dataclass(slots=True)
class _Node:
    attributes: Attributes
    image: FlatImage | None = None
    link: str = ""
    children: dict[str, int] = field(default_factory=dict)
    listing: list[tuple[str, Attributes]] | None = None


class View(Filesystem):
    """The tree of the images of one open sealed file, or of a chain as one.

    opened: names of the images that somebody has opened here.
    """

    def __init__(self, flat: Flat) -> None:
        self._flat = flat
        self._nodes = {ROOT: _Node(Attributes(ROOT, stat.S_IFDIR | 0o500))}
        self._cache = _ChunkCache(flat)
        self._local = threading.local()
        self.opened: set[str] = set()
        self.error: BaseException | None = None
        self.on_error: Callable[[BaseException], None] = lambda _: None
        hard_links: list[tuple[Entry, str]] = []
        for image in flat.images.values():
            attributes = (image.entry.attributes if image.entry else None) or {}
            if image.entry is not None and attributes.get("type") == "hardlink":
                hard_links.append((image.entry, attributes.get("link", "")))
            elif image.name != SUMMARY_NAME:  # which is the sealer's, not CRIU's
                self._add(image)
        self._link(hard_links)

    @property
    def verified(self) -> set[tuple[int, int, int]]:
        """(number of the file in the chain, stream number, chunk) of every chunk that was authenticated."""
        return self._cache.verified

    def _add(self, image: FlatImage) -> None:
        parent, name = self._place(image.name)
        attributes = (image.entry.attributes if image.entry else None) or {}
        kind = _TYPES.get(attributes.get("type", "file"))
        if kind is None:
            return  # devices and pipes are not shown
        if kind == stat.S_IFDIR:
            if name not in self._nodes[parent].children:
                self._new(parent, name, kind | 0o500)
            return
        mode = int(attributes.get("mode", "384")) & 0o700
        node = self._new(
            parent, name, kind | (mode & 0o500), image, int(attributes.get("mtime", "0"))
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
        self, parent: int, name: str, mode: int, image: FlatImage | None = None, mtime: int = 0
    ) -> int:
        node = ROOT + len(self._nodes)
        size = image.size if image is not None else 0
        self._nodes[node] = _Node(Attributes(node, mode, size, mtime=mtime), image)
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
        found = self._node(node)
        if not stat.S_ISREG(found.attributes.mode):
            raise OSError(errno.EISDIR, "not a file")
        if found.image is not None:
            self.opened.add(found.image.name)
        return node

    def read(self, node: int, handle: int, offset: int, size: int) -> Sequence[memoryview | bytes]:
        image = self._node(node).image
        if image is None:
            raise OSError(errno.EISDIR, "a directory")
        end = min(offset + size, image.size)
        if offset >= end:
            return []
        try:
            self._cache.start()
            if image.data is not None:
                return [memoryview(image.data)[offset:end]]
            if image.runs is not None:
                return [self._assemble(image, offset, end - offset)]
            assert image.entry is not None
            return self._pieces(image.entry, offset, end)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader has not got what was sealed
            first = self.error is None
            self.error = self.error or error
            if first:
                self.on_error(error)  # before the reader can go on without those bytes
            raise OSError(errno.EIO, "not authentic") from None

    def _pieces(self, entry: Entry, begin: int, end: int) -> list[memoryview]:
        """Straight out of the cache: pages, nearly all of a checkpoint, are not copied."""
        begin, end = entry.offset + begin, entry.offset + end
        pieces: list[memoryview] = []
        while begin < end:
            counter, skip = divmod(begin, entry.stream.chunk_size)
            chunk = self._cache.chunk(0, entry.stream, counter)
            piece = chunk[skip : skip + end - begin]
            pieces.append(piece)
            begin += len(piece)
        return pieces

    def _assemble(self, image: FlatImage, begin: int, size: int) -> memoryview:
        """Into one buffer: pages from very many chunks would keep all of those in memory."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = memoryview(bytearray(MAX_IO))
        out: memoryview = self._local.buffer[:size]
        assert image.runs is not None
        return out[: image.runs.fill(out, begin, _Pinned(self._cache))]

    def close(self) -> None:
        """Nobody reads any more."""
        self._cache.close()

    def verify_rest(self) -> None:
        """Authenticate every chunk of the images that nobody has read.  Raises SealpointError."""
        scratch = Scratch()
        for number, stream, counter in self._flat.chunks():
            key = (number, stream.number, counter)
            if key not in self.verified:
                out = scratch.plain(stream)
                self._flat.files[number].read_chunk_into(stream, counter, out, scratch)
                self.verified.add(key)


class _Pinned:
    """Chunks for putting an image together: a few at a time stay as they are."""

    def __init__(self, cache: _ChunkCache) -> None:
        self._cache = cache
        self._count = 0
        self.loads = 0

    def chunk(self, file: int, stream: Stream, counter: int) -> memoryview:
        """See Reader."""
        if self._count == _PINS:
            self._cache.start()
            self._count = 0
            self.loads += 1
        self._count += 1
        return self._cache.chunk(file, stream, counter)

    def into(self, out: memoryview, file: int, stream: Stream, counter: int) -> bool:
        """See Reader: other readers have chunks from the same cache."""
        return False


class _Chunk:
    __slots__ = ("data", "pins", "ready", "size")

    def __init__(self, capacity: int) -> None:
        self.data = memoryview(bytearray(capacity))
        self.size = 0
        self.pins = 0
        self.ready = False


class _ChunkCache:
    """Recently decrypted chunks.  A chunk stays as it is until the thread that got it asks for the next ones.

    Who reads front to back gets the next chunk decrypted meanwhile: CRIU asks for a megabyte at a time, and is busy
    with it for about as long as decrypting takes.
    """

    def __init__(self, flat: Flat) -> None:
        self._flat = flat
        self._changed = threading.Condition()
        self._chunks: OrderedDict[tuple[int, int, int], _Chunk] = OrderedDict()
        self._local = threading.local()
        self._limit = _CACHE * len(flat.files)  # pages of a chain lie in as many places
        self._latest: dict[
            tuple[int, int], int
        ] = {}  # chunk that was asked for last, by file and stream
        self._wanted: list[tuple[int, Stream, int]] = []
        self._ahead: threading.Thread | None = None
        self._closed = False
        self.verified: set[tuple[int, int, int]] = set()

    def close(self) -> None:
        """No more reading ahead."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._ahead is not None:
            self._ahead.join()

    def start(self) -> None:
        """The calling thread is done with what it got before."""
        with self._changed:
            for chunk in getattr(self._local, "held", ()):
                chunk.pins -= 1
            self._local.held = []

    def chunk(self, file: int, stream: Stream, counter: int) -> memoryview:
        """Plaintext of a chunk.  Raises FileError."""
        chunk = self._load(file, stream, counter)
        self._local.held.append(chunk)
        self._look_ahead(file, stream, counter)
        return chunk.data[: chunk.size]

    def _load(self, file: int, stream: Stream, counter: int) -> _Chunk:
        """The chunk, pinned."""
        key = (file, stream.number, counter)
        with self._changed:
            while True:
                chunk = self._chunks.get(key)
                if chunk is None or chunk.ready:
                    break
                self._changed.wait()  # another thread is at it
            if chunk is not None:
                self._chunks.move_to_end(key)
                chunk.pins += 1
                return chunk
            chunk = self._chunks[key] = self._take(stream.chunk_size)
            chunk.pins, chunk.ready = 1, False
        try:
            opened = self._flat.files[file]
            chunk.size = opened.read_chunk_into(stream, counter, chunk.data, self._scratch())
        except BaseException:
            with self._changed:
                del self._chunks[key]
                self._changed.notify_all()
            raise
        with self._changed:
            chunk.ready = True
            self.verified.add(key)
            self._changed.notify_all()
        return chunk

    def _look_ahead(self, file: int, stream: Stream, counter: int) -> None:
        with self._changed:
            before = self._latest.get((file, stream.number))
            self._latest[file, stream.number] = counter
            following = counter + 1
            known = (file, stream.number, following) in self._chunks
            if before != counter - 1 or following >= stream.chunks or known or self._closed:
                return
            if self._ahead is None:
                self._ahead = threading.Thread(target=self._run, name="read-ahead", daemon=True)
                self._ahead.start()
            self._wanted.append((file, stream, following))
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                file, stream, counter = self._wanted.pop()
                self._wanted.clear()  # what was wanted before that is too late
            try:
                chunk = self._load(file, stream, counter)
            except Exception:  # noqa: BLE001, S112 - who really reads it gets the error
                continue
            with self._changed:
                chunk.pins -= 1

    def _take(self, capacity: int) -> _Chunk:
        if len(self._chunks) >= max(2, min(self._limit, _CACHE_BYTES // capacity)):
            for key, chunk in self._chunks.items():  # those that are being loaded are pinned
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

"""The images directory that CRIU sees during a dump through the drop-in: what it writes goes into the sealer.

Files are append-only and written once; anything else fails with EIO and fails the dump, because a sealed object
cannot be changed afterwards.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sealpoint.checkpoint.opening import separate_pages
from sealpoint.checkpoint.sealing.builder import PACK_LIMIT, CheckpointBuilder, LargeObject
from sealpoint.checkpoint.tables import evidence
from sealpoint.checkpoint.tables.evidence import Kind
from sealpoint.checkpoint.tables.seen import Passing, Seen
from sealpoint.criu.fuse import ROOT, Attributes, Filesystem
from sealpoint.criu.pagemap import is_pagemap
from sealpoint.criu.roles import is_pages, role_of
from sealpoint.errors import CriuError

OnError = Callable[[BaseException], None]
PARENT_LINK = "parent"  # CRIU's name for the directory of the images that an increment continues
_NOWHERE = memoryview(bytearray())
_PARENT_NODE = 1 << 32  # of that directory; its images follow
_KEPT = 1 << 28  # bytes of inventory and pagemaps that are kept
_CLOSE_PATIENCE = 10.0  # seconds for the kernel to hand on closes that have happened already


@dataclass(slots=True)
class _CapturedImage:
    node: int
    name: str
    passing: Passing
    size: int = 0
    data: bytearray = field(default_factory=bytearray)
    large: LargeObject | None = None
    closed: bool = False


class CaptureFilesystem(Filesystem):
    """A flat directory of images in the making.  Served by one thread, which is as fast as two and needs no locks.

    parent: images that CRIU may read in the directory `parent`, to find out what has changed since.  kept: inventory
    and pagemaps as they were written, where `keep`; incomplete, and then None, if there is too much of them.
    """

    def __init__(
        self,
        builder: CheckpointBuilder,
        pages: CheckpointBuilder | None = None,
        *,
        parent: Mapping[str, bytes] | None = None,
        keep: bool = False,
    ) -> None:
        """pages: for memory pages and their maps, where these go to another file than the rest."""
        self._builder = builder
        self._pages = pages
        self._parent = None if parent is None else list(parent.items())
        self._keep = keep
        self._kept: dict[str, bytearray] = {}
        self._changed = threading.Condition()
        self._images: dict[int, _CapturedImage] = {}
        self._names: dict[str, _CapturedImage] = {}
        self._seen = Seen()
        self._open = 0
        self._filling: _CapturedImage | None = None
        self._space = _NOWHERE
        self.kind: Kind | None = None  # once the images are complete
        self.error: BaseException | None = None
        self.on_error: OnError = lambda _: None

    def wait_complete(
        self, kinds: Collection[Kind] = evidence.WHOLE, *, root: int | None = None
    ) -> None:
        """Until every image that CRIU created was closed, and they are a complete set of one of these kinds.

        root: of the tree, as it knows its own pid.  Raises what went wrong, NoEvidenceError if they are not.
        """
        self.wait_closed()
        parent = {name for name, _ in self._parent or ()}
        self.kind = evidence.require(self._seen, kinds, parent=parent, root=root)

    def wait_closed(self) -> None:
        """Until every image that CRIU created was closed.  Raises what went wrong."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._open == 0 or self.error is not None, _CLOSE_PATIENCE
            )
        if self.error is not None:
            raise self.error
        if not done:
            raise CriuError("CRIU asked for completion with images still open")

    def fail(self, error: BaseException) -> None:
        """From now on every write fails."""
        with self._changed:
            first = self.error is None
            self.error = self.error or error
            self._changed.notify_all()
        if first:
            self.on_error(error)

    @property
    def kept(self) -> dict[str, bytes] | None:
        """What a later increment needs to know of this one; None if that is more than is kept."""
        return {n: bytes(d) for n, d in self._kept.items()} if self._keep else None

    def lookup(self, parent: int, name: str) -> Attributes:
        if self._parent is not None and parent == ROOT and name == PARENT_LINK:
            return Attributes(_PARENT_NODE, stat.S_IFDIR | 0o500)
        if self._parent is not None and parent == _PARENT_NODE:
            for number, (known, data) in enumerate(self._parent):
                if known == name:
                    return Attributes(_PARENT_NODE + 1 + number, stat.S_IFREG | 0o400, len(data))
        image = self._names.get(name)
        if parent != ROOT or image is None:
            raise OSError(errno.ENOENT, "no such image")
        return _attributes(image)

    def getattr(self, node: int) -> Attributes:
        if node == ROOT:
            return Attributes(ROOT, stat.S_IFDIR | 0o700)
        if node == _PARENT_NODE and self._parent is not None:
            return Attributes(node, stat.S_IFDIR | 0o500)
        if node > _PARENT_NODE:
            return Attributes(node, stat.S_IFREG | 0o400, len(self._of_parent(node)))
        return _attributes(self._images[node])

    def _of_parent(self, node: int) -> bytes:
        number = node - _PARENT_NODE - 1
        if self._parent is None or not 0 <= number < len(self._parent):
            raise OSError(errno.ENOENT, "no such image")
        return self._parent[number][1]

    def readdir(self, node: int) -> Sequence[tuple[str, Attributes]]:
        if node == _PARENT_NODE and self._parent is not None:
            return [(name, self.lookup(node, name)) for name, _ in self._parent]
        return [(i.name, _attributes(i)) for i in list(self._images.values())]

    def open(self, node: int, flags: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EACCES, "images of the parent are not changed")
        self._of_parent(node)
        return node

    def read(self, node: int, handle: int, offset: int, size: int) -> Sequence[memoryview | bytes]:
        return [memoryview(self._of_parent(node))[offset : offset + size]]

    def create(self, parent: int, name: str, flags: int) -> tuple[Attributes, int]:
        with self._changed:
            if name in self._names or flags & os.O_ACCMODE == os.O_RDWR:
                raise self._refuse(f"image {name!r} is opened twice or to be changed")
            node = ROOT + 1 + len(self._images)
            image = self._images[node] = self._names[name] = _CapturedImage(
                node, name, self._seen.image(name)
            )
            self._open += 1
        return _attributes(image), node

    def space(self) -> memoryview:
        """The free rest of the chunk that is being filled: pages, nearly all of a dump, are then never copied."""
        image = self._filling
        if image is None or image.large is None or image.closed or self.error is not None:
            self._space = _NOWHERE
        else:
            try:
                self._space = image.large.space()
            except BaseException as error:  # noqa: BLE001 - the next write tells CRIU
                self.fail(error)
                self._space = _NOWHERE
        return self._space

    def write(self, node: int, handle: int, offset: int, data: Sequence[memoryview]) -> None:
        image = self._images[node]
        if self.error is not None:
            raise OSError(errno.EIO, "the dump was given up")
        if image.closed or offset != image.size:
            raise self._refuse(f"image {image.name!r} is written out of order")
        try:
            for piece in data:
                self._append(image, piece)
        except BaseException as error:  # noqa: BLE001 - CRIU gets EIO, the commit tells why
            self.fail(error)
            raise OSError(errno.EIO, "sealing failed") from None

    def _append(self, image: _CapturedImage, data: memoryview) -> None:
        image.size += len(data)
        if is_pages(image.name):
            image.passing.count(len(data))
        else:
            image.passing.add(data)
        if self._keep and (image.name == "inventory.img" or is_pagemap(image.name)):
            self._kept.setdefault(image.name, bytearray()).extend(data)
            self._keep = sum(map(len, self._kept.values())) <= _KEPT
        if image.large is None and not is_pages(image.name):
            image.data += data
            if len(image.data) <= PACK_LIMIT[role_of(image.name)]:
                return
            self._builder_of(image).summary.observe(image.name, bytes(image.data))
            data = memoryview(bytes(image.data))
            image.data.clear()
        if image.large is None:
            image.large = self._builder_of(image).large(image.name)
        if image is self._filling and data.obj is self._space.obj:
            image.large.wrote(len(data))  # it lies where it belongs
        else:
            image.large.write(data)
        self._filling = image

    def release(self, node: int, handle: int) -> None:
        if node > _PARENT_NODE:
            return
        image = self._images[node]
        if image.closed:
            return
        image.closed = True
        try:
            if self.error is None:
                self._finish(image)
            elif image.large is not None:
                image.large.abandon()
        except BaseException as error:  # noqa: BLE001 - nobody waits for a release; the commit will tell
            self.fail(error)
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def _finish(self, image: _CapturedImage) -> None:
        if image.large is not None:
            image.large.finish()
        else:
            self._builder_of(image).add(image.name, bytes(image.data))
            image.data.clear()
        image.passing.end()

    def _builder_of(self, image: _CapturedImage) -> CheckpointBuilder:
        if self._pages is not None and separate_pages.belongs(image.name):
            return self._pages
        return self._builder

    def _refuse(self, reason: str) -> OSError:
        self.fail(CriuError(reason))
        return OSError(errno.EIO, reason)


def _attributes(image: _CapturedImage) -> Attributes:
    return Attributes(image.node, stat.S_IFREG | 0o600, image.size)

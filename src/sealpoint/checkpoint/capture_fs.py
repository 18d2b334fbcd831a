"""The images directory that CRIU sees during a dump through the drop-in: what it writes goes into the sealer.

Files are append-only and written once; anything else fails with EIO and fails the dump, because a sealed object
cannot be changed afterwards.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sealpoint.checkpoint import pages_file
from sealpoint.checkpoint.builder import PACK_LIMIT, CheckpointBuilder, LargeObject
from sealpoint.criu.fuse import ROOT, Attributes, Filesystem
from sealpoint.criu.roles import is_pages, role_of
from sealpoint.errors import CriuError

OnError = Callable[[BaseException], None]
_NOWHERE = memoryview(bytearray())
_CLOSE_PATIENCE = 10.0  # seconds for the kernel to hand on closes that have happened already


@dataclass(slots=True)
class _Image:
    node: int
    name: str
    size: int = 0
    data: bytearray = field(default_factory=bytearray)
    large: LargeObject | None = None
    closed: bool = False


class CaptureFilesystem(Filesystem):
    """A flat directory of images in the making.  Served by one thread, which is as fast as two and needs no locks."""

    def __init__(self, builder: CheckpointBuilder, pages: CheckpointBuilder | None = None) -> None:
        """pages: for memory pages and their maps, where these go to another file than the rest."""
        self._builder = builder
        self._pages = pages
        self._changed = threading.Condition()
        self._images: dict[int, _Image] = {}
        self._names: dict[str, _Image] = {}
        self._open = 0
        self._filling: _Image | None = None
        self._space = _NOWHERE
        self.error: BaseException | None = None
        self.on_error: OnError = lambda _: None

    def wait_complete(self) -> None:
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

    def lookup(self, parent: int, name: str) -> Attributes:
        image = self._names.get(name)
        if parent != ROOT or image is None:
            raise OSError(errno.ENOENT, "no such image")
        return _attributes(image)

    def getattr(self, node: int) -> Attributes:
        if node == ROOT:
            return Attributes(ROOT, stat.S_IFDIR | 0o700)
        return _attributes(self._images[node])

    def readdir(self, node: int) -> Sequence[tuple[str, Attributes]]:
        return [(i.name, _attributes(i)) for i in list(self._images.values())]

    def create(self, parent: int, name: str, flags: int) -> tuple[Attributes, int]:
        with self._changed:
            if name in self._names or flags & os.O_ACCMODE == os.O_RDWR:
                raise self._refuse(f"image {name!r} is opened twice or to be changed")
            node = ROOT + 1 + len(self._images)
            image = self._images[node] = self._names[name] = _Image(node, name)
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

    def _append(self, image: _Image, data: memoryview) -> None:
        image.size += len(data)
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

    def _finish(self, image: _Image) -> None:
        if image.large is not None:
            image.large.finish()
        else:
            self._builder_of(image).add(image.name, bytes(image.data))
            image.data.clear()

    def _builder_of(self, image: _Image) -> CheckpointBuilder:
        if self._pages is not None and pages_file.belongs(image.name):
            return self._pages
        return self._builder

    def _refuse(self, reason: str) -> OSError:
        self.fail(CriuError(reason))
        return OSError(errno.EIO, reason)


def _attributes(image: _Image) -> Attributes:
    return Attributes(image.node, stat.S_IFREG | 0o600, image.size)

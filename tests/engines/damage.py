"""Damage in sealed files: where an object lies, a flipped bit, and a disk that cannot be read for once."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.criu.fuse import ROOT, Attributes, Filesystem
from sealpoint.keys import load_identity, load_trust
from tests.engines import rpc
from tests.real import sealed


def frames_of(keys: sealed.Keys, file: Path, name: str) -> list[tuple[int, int]]:
    """(offset, size) of every frame of the stream that an object lies in."""
    with CheckedFile.open(str(file), load_trust([keys.path("signer.pub")])) as checkpoint:
        opened = checkpoint.unlock([load_identity(keys.path("identity.key"))])
        if name == "shared memory":
            image = next(n for n in opened.entries if "pagemap-shmem-" in n)
            head = opened.read_bytes(opened.entry(image))
            size = int.from_bytes(head[8:12], "little")
            directory = image[: image.rindex("pagemap-")]
            name = f"{directory}pages-{rpc.decode(head[12 : 12 + size])[1]}.img"
        index = opened.authentic.index
        return [index.entry(p)[1:3] for p in index.frames_of(opened.entry(name).stream.number)]


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as sealed_file:
        sealed_file.seek(at)
        byte = sealed_file.read(1)[0]
        sealed_file.seek(at)
        sealed_file.write(bytes([byte ^ 1]))


class OnceUnreadable(Filesystem):
    """A directory with one file, of which some bytes cannot be read the first time: a disk with a loose cable."""

    def __init__(self, file: Path, place: tuple[int, int]) -> None:
        self._fd = os.open(file, os.O_RDONLY)
        self._name, self._place = file.name, place
        size = os.fstat(self._fd).st_size
        self._attributes = Attributes(ROOT + 1, stat.S_IFREG | 0o600, size)
        self.failed = 0

    def lookup(self, parent, name):
        if name != self._name:
            raise OSError(errno.ENOENT, "no such file")
        return self._attributes

    def getattr(self, node):
        return Attributes(ROOT, stat.S_IFDIR | 0o700) if node == ROOT else self._attributes

    def readdir(self, node):
        return [(self._name, self._attributes)]

    def open(self, node, flags):
        return node

    def read(self, node, handle, offset, size):
        start, length = self._place
        if not self.failed and offset < start + length and start < offset + size:
            self.failed += 1
            raise OSError(errno.EIO, "input/output error")
        return [os.pread(self._fd, size, offset)]

    def close(self):
        os.close(self._fd)

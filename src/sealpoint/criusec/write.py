"""Writing a dump in the CRIUsec format, from plain images, for a CRIU with the patch series.

cipher.img comes last, because the digest over the pages is in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from sealpoint.criusec import grammar
from sealpoint.criusec.digest import DigestSums, PageImage, page_images
from sealpoint.criusec.dump import READ_LIMIT, DumpFiles
from sealpoint.criusec.encode import Encoder
from sealpoint.criusec.envelope import DumpKeys
from sealpoint.criusec.grammar import CIPHER_NAME, FieldLayout
from sealpoint.errors import FileError, UsageError

if TYPE_CHECKING:
    from sealpoint.keys.rsa import RsaRecipient

_UNLINKED: Final = "ghost-file-"
_IN_PART: Final = (_UNLINKED, "ipcns-shm-")
_IMAGE: Final = re.compile(r".+\.img|stats-(?:dump|restore)|irmap-cache", re.DOTALL)


@dataclass(frozen=True, slots=True)
class EncryptedFile:
    """One file to be written.  size: of the plain image; pieces: called once, in the order of the files."""

    name: str
    size: int
    pieces: Callable[[], Iterator[bytes] | Iterator[memoryview]]


class DumpWriter:
    """Encrypts the images below a prefix of `files` for one recipient.

    left_out: files there that are no images of CRIU; clear: images that the format leaves in the clear, in part or
    wholly.  Both are known before anything is written.
    """

    def __init__(self, files: DumpFiles, prefix: str, recipient: RsaRecipient) -> None:
        """Raises FileError where pagemaps and pages contradict each other, UsageError."""
        self._files = files
        self._prefix = prefix
        self._recipient = recipient
        self._keys = DumpKeys.new()
        self._messages = self._keys.messages()
        self._sums = DigestSums(self._keys.token)
        start = len(prefix)
        below = [n[start:] for n in files.names() if n.startswith(prefix)]
        self._names = [n for n in below if "/" not in n and _IMAGE.fullmatch(n)]
        self.left_out = [n for n in below if n not in set(self._names)]
        if CIPHER_NAME in self._names:
            raise UsageError(f"{self.where(CIPHER_NAME)} is there: the dump is encrypted already")
        self._pages = {image.name: image for image in page_images(self, self._size)}
        self.clear = [n for n in self._names if self._stays_clear(n)]

    def names(self) -> list[str]:
        """Base names of what will be written, without cipher.img."""
        return self._names

    def where(self, name: str) -> str:
        """For messages."""
        return f"{self._files.label}:{self._prefix}{name}"

    def _size(self, name: str) -> int:
        return self._files.size(self._prefix + name)

    def read(self, name: str) -> bytes:
        """A whole plain image.  Raises FileError."""
        size = self._size(name)
        if size > READ_LIMIT:
            raise FileError(f"{self.where(name)} is larger than {READ_LIMIT} bytes")
        return self._files.pread(self._prefix + name, 0, size)

    def files(self) -> list[EncryptedFile]:
        """What is to be written, in this order."""
        found = [EncryptedFile(n, self._size(n), self._encrypter(n)) for n in self._names]
        return [*found, EncryptedFile(CIPHER_NAME, 0, self._envelope)]

    def _layout(self, name: str) -> FieldLayout:
        return grammar.layout_of(name, self._files.pread(self._prefix + name, 0, 4))

    def _encoder(self, name: str) -> Encoder:
        full = self._prefix + name
        return Encoder(
            lambda at, length: self._files.pread(full, at, length),
            self._size(name),
            self._messages,
            self.where(name),
        )

    def _stays_clear(self, name: str) -> bool:
        layout = self._layout(name)
        if layout is FieldLayout.RECORDS and name.startswith(_IN_PART):
            encoder = self._encoder(name)
            # Of an unlinked file magic numbers, itself, its first piece and what is in that: the others are like it.
            for _ in islice(encoder.records(), 4 if name.startswith(_UNLINKED) else None):
                pass
            return encoder.left_clear
        return layout is FieldLayout.CLEAR and self._size(name) > 0

    def _encrypter(self, name: str) -> Callable[[], Iterator[bytes] | Iterator[memoryview]]:
        return lambda: self._encrypt(name)

    def _encrypt(self, name: str) -> Iterator[bytes] | Iterator[memoryview]:
        layout, encoder = self._layout(name), self._encoder(name)
        if layout is FieldLayout.PAGES:
            pieces = encoder.pages(self._keys.pages())
            image = self._pages.get(name, PageImage(name, (), segment=False))
            return self._sums.watch(image, pieces)
        if layout is FieldLayout.CLEAR:
            return encoder.clear()
        if layout is FieldLayout.OUTPUT:
            return encoder.output()
        if layout is FieldLayout.NETLINK:
            return encoder.netlink()
        return encoder.records()

    def _envelope(self) -> Iterator[bytes]:
        # Shared memory of IPC namespaces counts: a restore by the reference counts it, although its dump does not.
        yield self._keys.wrap(self._recipient, self._sums.all).encode()

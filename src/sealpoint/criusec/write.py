"""Writing a dump in the CRIUsec format, from plain images, for a CRIU with the patch series.

cipher.img comes last, because the digest over the pages is in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sealpoint.criusec import grammar
from sealpoint.criusec.digest import DigestSums, PageImage, page_images
from sealpoint.criusec.dump import READ_LIMIT, Files
from sealpoint.criusec.encode import Encoder
from sealpoint.criusec.envelope import DumpKeys
from sealpoint.criusec.grammar import CIPHER_NAME, Layout
from sealpoint.errors import FileError, UsageError

if TYPE_CHECKING:
    from sealpoint.keys.rsa import RsaRecipient

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
    wholly, complete when all has been written.
    """

    def __init__(self, files: Files, prefix: str, recipient: RsaRecipient) -> None:
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
        self.clear: list[str] = []
        if CIPHER_NAME in self._names:
            raise UsageError(f"{self.where(CIPHER_NAME)} is there: the dump is encrypted already")
        self._pages = {image.name: image for image in page_images(self, self._size)}

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

    def _encrypter(self, name: str) -> Callable[[], Iterator[bytes] | Iterator[memoryview]]:
        return lambda: self._encrypt(name)

    def _encrypt(self, name: str) -> Iterator[bytes] | Iterator[memoryview]:
        full, size = self._prefix + name, self._size(name)
        layout = grammar.layout_of(name, self._files.pread(full, 0, 4))
        encoder = Encoder(
            lambda at, length: self._files.pread(full, at, length),
            size,
            self._messages,
            self.where(name),
        )
        if layout is Layout.PAGES:
            pieces = encoder.pages(self._keys.pages())
            image = self._pages.get(name, PageImage(name, (), segment=False))
            return self._sums.watch(image, pieces)
        if layout is Layout.CLEAR:
            if size:
                self.clear.append(name)
            return encoder.clear()
        if layout is Layout.OUTPUT:
            return encoder.output()
        if layout is Layout.NETLINK:
            return encoder.netlink()
        return self._records(encoder, name)

    def _records(self, encoder: Encoder, name: str) -> Iterator[bytes]:
        yield from encoder.records()
        if encoder.left_clear:
            self.clear.append(name)

    def _envelope(self) -> Iterator[bytes]:
        # Shared memory of IPC namespaces counts: a restore by the reference counts it, although its dump does not.
        yield self._keys.wrap(self._recipient, self._sums.all).encode()

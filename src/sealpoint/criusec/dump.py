"""An encrypted dump: its files as plain images, decrypted where they are read.

Files are found through `DumpFiles`, so that a dump may lie in a directory or in an archive.  Opening an image
authenticates every message of it; pages have no tag of their own, `check_pages` compares their sum.
"""

from __future__ import annotations

import functools
import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from sealpoint.criu import schema
from sealpoint.criusec import grammar
from sealpoint.criusec.cipher import TAG, TRAILER, DecryptionError, Messages, Pages
from sealpoint.criusec.decode import ClearFile, DecodedPages, Plain, scan
from sealpoint.criusec.digest import DigestSums, PageImage, page_images
from sealpoint.criusec.envelope import MAX_SIZE, DumpKeys, KeyEnvelope, candidates
from sealpoint.criusec.grammar import CIPHER_NAME, FieldLayout
from sealpoint.errors import FileError, IdentityError

if TYPE_CHECKING:
    from sealpoint.keys import Identity

READ_LIMIT: Final = 256 * 1024 * 1024  # bytes of an image that is read in one piece
_KEPT: Final = 64  # indexes of images
_STEP: Final = 1024 * 1024
_PROBED: Final = 1024 * 1024  # bytes of a record by which a key is tried


class DumpFiles(Protocol):
    """Files as they are stored, by name.  Names, sizes and contents are a stranger's word."""

    label: str

    def names(self) -> Sequence[str]:
        """All of them."""

    def exists(self, name: str) -> bool:
        """Whether there is one."""

    def size(self, name: str) -> int:
        """Bytes.  Raises FileError."""

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only where the file ends.  Raises FileError."""


class PageCheck(Enum):
    """What came of comparing the digest over pages."""

    MATCHES = "matches"
    MATCHES_WITHOUT_IPC = (
        "matches without the shared memory of IPC namespaces, which it does not cover"
    )


class EncryptedDump:
    """The files below `prefix` ("" or "checkpoint/").  envelope: what cipher.img says."""

    def __init__(
        self, files: DumpFiles, prefix: str, identities: Callable[[], Sequence[Identity]]
    ) -> None:
        """identities: called when the first encrypted file is opened.  Raises FileError."""
        self._files = files
        self._prefix = prefix
        self._identities = identities
        self._opened: OrderedDict[str, Plain] = OrderedDict()
        name = prefix + CIPHER_NAME
        if files.size(name) > MAX_SIZE:
            raise FileError(f"{self.where(CIPHER_NAME)}: too large to be the keys of a dump")
        self.envelope_bytes = files.pread(name, 0, MAX_SIZE)
        self.envelope = KeyEnvelope.decode(self.envelope_bytes, self.where(CIPHER_NAME))

    def where(self, name: str) -> str:
        """A file as a user would name it."""
        return f"{self._files.label}:{self._prefix}{name}"

    @functools.cached_property
    def _names(self) -> list[str]:
        start = len(self._prefix)
        return [
            name[start:]
            for name in self._files.names()
            if name.startswith(self._prefix)
            and "/" not in name[start:]
            and name[start:] != CIPHER_NAME
        ]

    def names(self) -> list[str]:
        """Base names of all files, without cipher.img."""
        return self._names

    def layout(self, name: str) -> FieldLayout:
        """How a file is encrypted, as far as its name and its beginning tell."""
        return grammar.layout_of(name, self._files.pread(self._prefix + name, 0, 4))

    def file_size(self, name: str) -> int:
        """Bytes of the file as it is."""
        return self._files.size(self._prefix + name)

    def clear_names(self) -> list[str]:
        """The files that the format does not encrypt and that have something in them."""
        names = self.names()
        return [n for n in names if self.layout(n) is FieldLayout.CLEAR and self.file_size(n)]

    def _pread(self, name: str) -> Callable[[int, int], bytes]:
        full = self._prefix + name
        return lambda offset, size: self._files.pread(full, offset, size)

    @functools.cached_property
    def keys(self) -> DumpKeys:
        """Unwrapped, and tried on the first message there is.  Raises IdentityError, the same for whatever reason."""
        possible = candidates(self.envelope, self._identities())
        for name in sorted(self.names(), key=lambda n: n != "inventory.img"):
            message = self._first_message(name)
            if message is None:
                continue
            for keys in possible:
                try:
                    keys.messages().open(*message)
                except DecryptionError:
                    continue
                return keys
            raise IdentityError(
                f"the key does not open the dump in {self._files.label}, or it is damaged"
            )
        return possible[0]  # nothing but pages: nothing to try it on

    def _first_message(self, name: str) -> tuple[bytes, bytes, bytes] | None:
        if self.layout(name) is not FieldLayout.RECORDS:
            return None
        pread = self._pread(name)
        head = pread(0, 12)
        start = 4 if name == "inventory.img" else 8
        size = int.from_bytes(head[start : start + 4], "little")
        if len(head) < start + 4 or not 0 < size <= _PROBED:
            return None
        data = pread(start + 4, size + TRAILER)
        if len(data) < size + TRAILER:
            return None  # whoever opens the image will be told
        return data[:size], data[size : size + TAG], data[size + TAG :]

    @functools.cached_property
    def _messages(self) -> Messages:
        return self.keys.messages()

    @functools.cached_property
    def _pages(self) -> Pages:
        return self.keys.pages()

    def open(self, name: str) -> Plain:
        """A file as the plain image; all but pages is authenticated first.  Raises FileError, IdentityError."""
        plain = self._opened.get(name)
        if plain is None:
            if len(self._opened) >= _KEPT:
                self._opened.popitem(last=False)
            plain = self._opened[name] = self._open(name)
        self._opened.move_to_end(name)
        return plain

    def _open(self, name: str) -> Plain:
        size, layout, where = self.file_size(name), self.layout(name), self.where(name)
        pread = self._pread(name)
        if layout is FieldLayout.CLEAR:
            return ClearFile(pread, size, where)
        if layout is FieldLayout.KEYS:
            raise FileError(f"{where}: holds the keys of the dump, and is not an image")
        if layout is FieldLayout.PAGES:
            return DecodedPages(pread, size, self._pages, where)
        return scan(pread, size, layout, self._messages, where, self._capacities)

    def read(self, name: str) -> bytes:
        """A whole plain image.  Raises FileError also if it is larger than READ_LIMIT."""
        plain = self.open(name)
        if plain.size > READ_LIMIT:
            raise FileError(f"{plain.where} is larger than {READ_LIMIT} bytes")
        return plain.pread(0, plain.size)

    def _capacities(self) -> Mapping[int, tuple[int, int]]:
        """Of BPF maps: bytes of keys and of values that fit."""
        found: dict[int, tuple[int, int]] = {}
        if self._files.exists(self._prefix + "files.img"):
            for entry in schema.records(
                self.read("files.img"), "file_entry", self.where("files.img")
            ):
                if entry.HasField("bpf"):
                    bpf = entry.bpf
                    sizes = (bpf.key_size * bpf.max_entries, bpf.value_size * bpf.max_entries)
                    found[bpf.map_id] = sizes
        return found

    def page_images(self) -> list[PageImage]:
        """Raises FileError where pagemaps and pages contradict each other."""
        return page_images(self, self.file_size)

    def check_pages(self, progress: Callable[[int], None] = lambda _: None) -> PageCheck:
        """Compare the digest; reads all pages.  Raises FileError if it does not fit.

        progress: called with the bytes that were read since.
        """
        sums = DigestSums(self.keys.token)
        for image in self.page_images():
            for piece in sums.watch(image, self._ciphertext(image)):
                progress(len(piece))
        if hmac.compare_digest(sums.all, self.envelope.digest):
            return PageCheck.MATCHES
        if hmac.compare_digest(sums.without_segments, self.envelope.digest):
            return PageCheck.MATCHES_WITHOUT_IPC
        raise FileError(
            f"{self.where(CIPHER_NAME)}: its digest over the pages does not fit: memory was changed or damaged"
        )

    def _ciphertext(self, image: PageImage) -> Iterator[memoryview]:
        pread, size = self._pread(image.name), image.size
        for at in range(0, size, _STEP):
            wanted = min(_STEP, size - at)
            piece = pread(at, wanted)
            if len(piece) != wanted:
                raise FileError(f"{self.where(image.name)} has become shorter while it was read")
            yield memoryview(piece)


def dumps_in(files: DumpFiles) -> list[str]:
    """The prefixes below which there are encrypted dumps: of a dump by itself, and of an engine's archive."""
    return [p for p in ("", "checkpoint/", "pre-checkpoint/") if files.exists(p + CIPHER_NAME)]

"""A source whose dumps are encrypted in the CRIUsec format, as one of plain images.

It lies over the directory or archive in which the files are.  A key is asked for when the first encrypted image is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sealpoint.criusec.dump import EncryptedDump, dumps_in
from sealpoint.criusec.grammar import CIPHER_NAME
from sealpoint.errors import FileError
from sealpoint.inspect.source import READ_LIMIT

if TYPE_CHECKING:
    from sealpoint.criusec.decode import Plain
    from sealpoint.format.constants import Role
    from sealpoint.inspect.source import Access, Source


class EncryptedSource:
    """See Source.  dumps: by prefix."""

    def __init__(self, files: Source, access: Access) -> None:
        """Takes over `files` if it succeeds.  Raises FileError."""
        self.label = files.label
        self._files = files
        self.dumps = {
            prefix: EncryptedDump(files, prefix, access.identities) for prefix in dumps_in(files)
        }

    def _plain(self, name: str) -> Plain | None:
        directory, slash, base = name.rpartition("/")
        dump = self.dumps.get(directory + slash)
        if dump is None:
            return None
        if not self._files.exists(name):
            raise FileError(f"{self.label} has no {name}")
        return dump.open(base)

    def names(self) -> list[str]:
        """See Source; without cipher.img, which is no part of the plain dump."""
        return [n for n in self._files.names() if n.rpartition("/")[2] != CIPHER_NAME]

    def exists(self, name: str) -> bool:
        """See Source."""
        return self._files.exists(name) and name.rpartition("/")[2] != CIPHER_NAME

    def withheld(self, name: str) -> bool:
        """See Source."""
        return self._files.withheld(name)

    def size(self, name: str) -> int:
        """See Source."""
        plain = self._plain(name)
        return self._files.size(name) if plain is None else plain.size

    def role(self, name: str) -> Role:
        """See Source."""
        return self._files.role(name)

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """See Source."""
        plain = self._plain(name)
        if plain is None:
            return self._files.read(name, limit)
        if plain.size > limit:
            raise FileError(f"{plain.where} is larger than {limit} bytes")
        return plain.pread(0, plain.size)

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """See Source."""
        plain = self._plain(name)
        return self._files.pread(name, offset, size) if plain is None else plain.pread(offset, size)

    def chunks(self, name: str, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """See Source."""
        plain = self._plain(name)
        if plain is None:
            return self._files.chunks(name, offset, size)
        return plain.chunks(offset, size)

    def parent(self, prefix: str) -> tuple[Source, str] | None:
        """See Source."""
        found = self._files.parent(prefix)
        # Within an archive the parent is in the same files, so it is seen through the same keys.
        return (self, found[1]) if found is not None and found[0] is self._files else found

    def close(self) -> None:
        """See Source."""
        self._files.close()


def decrypted(files: Source, access: Access) -> Source:
    """`files` itself, or what it looks like decrypted.  Closes it if it fails.  Raises FileError."""
    try:
        return EncryptedSource(files, access) if dumps_in(files) else files
    except BaseException:
        files.close()
        raise

"""Keys derived from the two roots (docs/spec.md, Keys).  HKDF-SHA-256 throughout, one label per purpose."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealpoint.errors import IdentityError
from sealpoint.format.constants import KEY_SIZE, LABEL, Role, Roots

if TYPE_CHECKING:
    from sealpoint.format.preamble import Preamble


@dataclass(frozen=True, slots=True, repr=False)
class RootKeys:
    """The roots that a holder has: 32 random bytes each; `memory` is None for a metadata recipient."""

    metadata: bytes
    memory: bytes | None

    @classmethod
    def generate(cls) -> RootKeys:
        """Fresh independent roots for one new sealed file."""
        return cls(os.urandom(KEY_SIZE), os.urandom(KEY_SIZE))

    @classmethod
    def from_wrapped(cls, data: bytes, roots: Roots) -> RootKeys:
        """What an unwrap returned: metadata root, then the memory root if the stanza wraps both."""
        if len(data) != (KEY_SIZE if roots is Roots.METADATA else 2 * KEY_SIZE):
            raise IdentityError("the key does not open this checkpoint")
        return cls(data[:KEY_SIZE], data[KEY_SIZE:] or None)

    def wrappable(self, roots: Roots) -> bytes:
        """The bytes that a stanza for `roots` wraps."""
        if roots is Roots.METADATA:
            return self.metadata
        return self.metadata + self.root(Role.MEMORY)

    def root(self, role: Role) -> bytes:
        """The root of a role.  Raises IdentityError where the holder has only the metadata root."""
        if role is Role.METADATA:
            return self.metadata
        if self.memory is None:
            raise IdentityError(
                "this identity opens only the metadata of the checkpoint, not its memory",
                hint="use an identity that the checkpoint was sealed to with -r",
            )
        return self.memory


def derive(root: bytes, preamble: Preamble, purpose: str, *fields: bytes) -> bytes:
    """32 bytes for one purpose.

    salt: the creation salt; info: length-prefixed (u16 LE) label, purpose, suite, checkpoint id and `fields`.
    """
    parts = (
        LABEL,
        purpose.encode(),
        bytes([preamble.suite]),
        preamble.checkpoint_id,
        *fields,
    )
    info = b"".join(len(p).to_bytes(2, "little") + p for p in parts)
    return HKDF(hashes.SHA256(), KEY_SIZE, preamble.salt, info).derive(root)


def commitment(root: bytes, preamble: Preamble, role: Role) -> bytes:
    """Public 32-byte commitment to a root: AEADs alone do not commit to their key."""
    return derive(root, preamble, "commitment", bytes([role.code]))


def header_mac(metadata_root: bytes, preamble: Preamble, data: bytes) -> bytes:
    """HMAC-SHA-256 over a header slot under a key from the metadata root."""
    return hmac.digest(derive(metadata_root, preamble, "header-mac"), data, "sha256")


def object_key(root: bytes, preamble: Preamble, number: int, role: Role) -> bytes:
    """AEAD key of one object."""
    return derive(root, preamble, "object", number.to_bytes(8, "little"), bytes([role.code]))

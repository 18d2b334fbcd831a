"""Stored chunks: runs of pages in files of their own, to which sealed files refer (docs/spec.md, Stored chunks).

A chunk's id follows from a keyed digest of its plaintext, so that its holders find equal ones; its ciphertext is
made with a random key and tells nothing of equality.  That key is in the file, wrapped under a key that follows from
the same digest: only who has the pages in plain can unwrap it (randomized convergent encryption; docs/adr/0050).
Readers have it from the encrypted part of the sealed file.

Out of scope: where the files lie (`sealpoint.chunks.directory`), which pages make a chunk.
"""

from __future__ import annotations

import hmac
import os
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealpoint.errors import FileError
from sealpoint.format.chunks import Buffer, aead
from sealpoint.format.codec import Coder, decode_into
from sealpoint.format.constants import (
    HASH_SIZE,
    ID_SIZE,
    KEY_SIZE,
    LABEL,
    MAX_STORED,
    PAGE_SIZE,
    STORED_HEAD_SIZE,
    STORED_MAGIC,
    STORED_VERSION,
    STORED_VERSIONS,
    TAG_SIZE,
    Codec,
    Suite,
)
from sealpoint.format.index import Reference

# magic, version, suite, codec, plaintext length, tenant id, chunk id; then salt, and the wrapped chunk key
_FIXED: Final = struct.Struct("<8sHBBI16s32s")
_SALT: Final = 32
_WRAPPED: Final = KEY_SIZE + TAG_SIZE
_NONCE: Final = bytes(12)  # every key here is fresh, and encrypts once
_CHANGED: Final = "was changed since it was sealed (damaged or tampered with)"


class Tenant:
    """What a tenant key gives: who holds it can find and add chunks of its store, and read those whose pages it has."""

    def __init__(self, key: bytes) -> None:
        """key: 32 random bytes."""
        self.identifier = _derive(key, "store-tenant")[:ID_SIZE]
        self._digest_key = _derive(key, "store-digest")
        self._name_key = _derive(key, "store-name")
        self.cut_key = _derive(key, "store-cut")  # of the digests that decide where a chunk ends

    def digest(self, plain: Buffer) -> bytes:
        """32 bytes: keyed BLAKE3 of the plaintext, as secret as that."""
        return blake3.blake3(plain, key=self._digest_key).digest()

    def chunk_id(self, digest: bytes) -> bytes:
        """32 bytes, public: of the chunk whose plaintext has that digest."""
        return blake3.blake3(digest, key=self._name_key).digest()

    def wrap_key(self, salt: bytes, suite: Suite, digest: bytes) -> bytes:
        """Under which the key of one chunk is wrapped.  Not from the tenant key, but from the pages."""
        fields = (bytes([suite]), self.identifier, self.chunk_id(digest))
        return _derive(digest, "store-lock", salt, *fields)


def _derive(key: bytes, purpose: str, salt: bytes | None = None, *fields: bytes) -> bytes:
    parts = (LABEL, purpose.encode(), *fields)
    info = b"".join(len(p).to_bytes(2, "little") + p for p in parts)
    return HKDF(hashes.SHA256(), KEY_SIZE, salt, info).derive(key)


@dataclass(frozen=True, slots=True, repr=False)
class StoredChunk:
    """A chunk as a sealed file refers to it.  key: of its ciphertext; size: bytes of plaintext."""

    reference: Reference
    key: bytes
    size: int


class Head(NamedTuple):
    """The head of a chunk's file."""

    suite: Suite
    codec: Codec
    size: int
    tenant: bytes
    identifier: bytes
    salt: bytes
    wrapped: bytes
    version: int = STORED_VERSION

    def fixed(self) -> bytes:
        """What both ciphertexts are bound to."""
        return _FIXED.pack(
            STORED_MAGIC,
            self.version,
            self.suite,
            self.codec,
            self.size,
            self.tenant,
            self.identifier,
        )

    @classmethod
    def decode(cls, data: Buffer) -> Head:
        """data: the whole file.  Raises FileError."""
        if len(data) < STORED_HEAD_SIZE + TAG_SIZE:
            raise FileError("it is cut short")
        magic, version, suite, codec, size, tenant, identifier = _FIXED.unpack_from(data)
        try:
            head = cls(
                Suite(suite),
                Codec(codec),
                size,
                tenant,
                identifier,
                bytes(data[_FIXED.size : _FIXED.size + _SALT]),
                bytes(data[_FIXED.size + _SALT : STORED_HEAD_SIZE]),
                version,
            )
        except ValueError:
            raise FileError("it has an unknown suite or codec") from None
        coded = len(data) - STORED_HEAD_SIZE - TAG_SIZE
        if (
            magic != STORED_MAGIC
            or version not in STORED_VERSIONS
            or not 0 < size <= MAX_STORED
            or size % PAGE_SIZE
            or (coded != size if codec == Codec.RAW else coded >= size)
            or (codec == Codec.ZERO and coded)
        ):
            raise FileError("its head contradicts it")
        return head


def seal(
    tenant: Tenant, digest: bytes, plain: memoryview, coder: Coder, suite: Suite
) -> tuple[bytearray, StoredChunk]:
    """The file of a new chunk, and how to refer to it.  digest: of `plain`, whole pages (`Tenant.digest`)."""
    identifier = tenant.chunk_id(digest)
    key, salt = os.urandom(KEY_SIZE), os.urandom(_SALT)
    codec, coded = coder.encode(plain)
    fixed = Head(suite, codec, len(plain), tenant.identifier, identifier, b"", b"").fixed()
    wrapped = aead(suite, tenant.wrap_key(salt, suite, digest)).encrypt(_NONCE, key, fixed + salt)
    data = bytearray(STORED_HEAD_SIZE + len(coded) + TAG_SIZE)
    data[:STORED_HEAD_SIZE] = fixed + salt + wrapped
    aead(suite, key).encrypt_into(_NONCE, coded, fixed, memoryview(data)[STORED_HEAD_SIZE:])
    reference = Reference(identifier, blake3.blake3(data).digest(), len(data))
    return data, StoredChunk(reference, key, len(plain))


def unwrap(tenant: Tenant, digest: bytes, data: Buffer, plain: memoryview) -> StoredChunk:
    """How to refer to a chunk that is there already, after seeing that it holds `plain`, which has that digest.

    Raises FileError.
    """
    head, identifier = Head.decode(data), tenant.chunk_id(digest)
    if head.version != STORED_VERSION:
        raise FileError("it is of an older version")
    if head.tenant != tenant.identifier or head.identifier != identifier:
        raise FileError("it is another chunk's or another tenant's")
    try:
        key = aead(head.suite, tenant.wrap_key(head.salt, head.suite, digest)).decrypt(
            _NONCE, head.wrapped, head.fixed() + head.salt
        )
    except InvalidTag:
        raise FileError(_CHANGED) from None
    out = bytearray(
        head.size
    )  # compares with any buffer by memcmp, which two memoryviews would not
    _open(head, key, memoryview(data), memoryview(out))
    if out != plain:
        raise FileError("it does not hold what its id says")
    return StoredChunk(
        Reference(identifier, blake3.blake3(data).digest(), len(data)), key, head.size
    )


def check(reference: Reference, data: Buffer) -> None:
    """Whether a file is the one that a signed index refers to.  Raises FileError."""
    if len(data) != reference.length or not hmac.compare_digest(
        blake3.blake3(data).digest(), reference.digest
    ):
        raise FileError(_CHANGED)


def open_into(chunk: StoredChunk, tenant: bytes, data: memoryview, out: memoryview) -> None:
    """Plaintext of a chunk that a sealed file refers to; `out` is as long as that.  Raises FileError."""
    check(chunk.reference, data)
    head = Head.decode(data)
    if (
        head.tenant != tenant
        or head.identifier != chunk.reference.identifier
        or head.size != chunk.size
    ):
        raise FileError("it is another one than the checkpoint refers to")
    _open(head, chunk.key, data, out)


def _open(head: Head, key: bytes, data: memoryview, out: memoryview) -> None:
    sealed = data[STORED_HEAD_SIZE:]
    raw = head.codec is Codec.RAW
    target = out if raw else memoryview(bytearray(len(sealed) - TAG_SIZE))
    try:
        aead(head.suite, key).decrypt_into(_NONCE, sealed, head.fixed(), target)
    except InvalidTag:
        raise FileError(_CHANGED) from None
    if not raw:
        decode_into(out, head.codec, target)


assert _FIXED.size + _SALT + _WRAPPED == STORED_HEAD_SIZE and HASH_SIZE == KEY_SIZE  # noqa: PT018

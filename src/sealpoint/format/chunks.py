"""Chunk streams: one object as a sequence of authenticated chunks.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizar 2015) as age uses it: nonce = 11-byte big-endian
counter || last-chunk byte, under a key used for this object alone.  Where we differ: the AAD binds codec and plaintext
length of the chunk, and every chunk but the last holds exactly `chunk_size` plaintext bytes while the last holds
strictly fewer (possibly none), so a writer never has to look ahead and each object has one encoding.

Out of scope: compression (`codec`), frames in the file (`writer`, `reader`).
"""

from __future__ import annotations

import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from sealpoint.errors import FileError, SealpointError
from sealpoint.format.constants import MAX_CHUNKS_PER_KEY, TAG_SIZE, Codec, Suite

Buffer = bytes | bytearray | memoryview
_AAD = struct.Struct("<BQ")


def aead(suite: Suite, key: bytes) -> AESGCM | ChaCha20Poly1305:
    """The cipher of a suite, keyed."""
    return AESGCM(key) if suite is Suite.AES_256_GCM else ChaCha20Poly1305(key)


def nonce(counter: int, last: bool) -> bytes:
    """12 bytes: 11-byte big-endian counter, then 1 for the last chunk of an object, else 0."""
    return counter.to_bytes(11, "big") + bytes([last])


def aad(codec: Codec, plain_size: int) -> bytes:
    """9 bytes: {u8 codec, u64 LE plaintext length}."""
    return _AAD.pack(codec, plain_size)


class ChunkSealer:
    """Encrypts the chunks of one object in order.  Not shareable: a fork or an error in between poisons it."""

    def __init__(self, suite: Suite, key: bytes) -> None:
        self._aead = aead(suite, key)
        self._counter = 0
        self._finished = False
        self._pid = os.getpid()

    @property
    def counter(self) -> int:
        """Of the next chunk."""
        return self._counter

    @property
    def finished(self) -> bool:
        """Whether the last chunk was begun."""
        return self._finished

    def next_nonce(self, *, last: bool) -> bytes:
        """Consume the next counter.  It is gone even if the encryption then fails: a nonce is never used twice."""
        if self._finished or self._counter >= MAX_CHUNKS_PER_KEY:
            raise SealpointError("chunk stream: no further chunk can be sealed under this key")
        if os.getpid() != self._pid:
            raise SealpointError("chunk stream: continued in a forked process")
        value = nonce(self._counter, last)
        self._counter += 1
        self._finished = last
        return value

    def seal_into(
        self, out: memoryview, nonce_: bytes, data: Buffer, codec: Codec, plain_size: int
    ) -> int:
        """Encrypt `data` (already coded) under a nonce from `next_nonce`; returns the ciphertext length.

        May run in another thread than `next_nonce`, out of order: the nonce decides the position.
        """
        size = len(data) + TAG_SIZE
        self._aead.encrypt_into(nonce_, data, aad(codec, plain_size), out[:size])
        return size


class ChunkOpener:
    """Decrypts chunks of one object, at random."""

    def __init__(self, suite: Suite, key: bytes) -> None:
        self._aead = aead(suite, key)

    def open_into(
        self,
        out: memoryview,
        counter: int,
        ciphertext: Buffer,
        codec: Codec,
        plain_size: int,
        *,
        last: bool,
    ) -> int:
        """Decrypt chunk `counter` into `out`; returns the length of the coded data.  Raises FileError."""
        size = len(ciphertext) - TAG_SIZE
        try:
            self._aead.decrypt_into(
                nonce(counter, last), ciphertext, aad(codec, plain_size), out[:size]
            )
        except InvalidTag:
            raise FileError(f"chunk {counter} is not authentic") from None
        return size

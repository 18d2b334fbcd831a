"""The primitives as the CRIUsec format uses them: one message, one page, and the digest over all pages.

Messages are ChaCha20-Poly1305 (RFC 8439) without associated data.  Pages are AES-256-XTS (IEEE 1619) of 4096 bytes, all
with the same tweak: equal pages have equal ciphertext, which is the format's weakness and not to be imitated.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

PAGE: Final = 4096  # bytes
TAG: Final = 16
NONCE: Final = 12
TRAILER: Final = TAG + NONCE
TOKEN: Final = 32
XTS_KEY: Final = 64
XTS_IV: Final = 16
DIGEST: Final = 32

_BLOCK: Final = 64  # of SHA-256
_SLACK: Final = 15  # what the library asks for behind the output of a block cipher


class DecryptionError(Exception):
    """A message is not what was encrypted with this key.  Whoever knows where it stood makes a FileError of it."""


class Messages:
    """Messages under a dump's token (32 bytes)."""

    def __init__(self, token: bytes) -> None:
        self._cipher = ChaCha20Poly1305(token)

    def open(self, ciphertext: bytes | memoryview, tag: bytes, nonce: bytes) -> bytes:
        """The plaintext.  Raises DecryptionError."""
        try:
            return self._cipher.decrypt(nonce, b"".join((ciphertext, tag)), None)
        except InvalidTag:
            raise DecryptionError from None

    def seal(self, data: bytes | memoryview) -> tuple[bytes, bytes, bytes]:
        """(ciphertext, tag, nonce); the nonce is random, as in the reference."""
        nonce = os.urandom(NONCE)
        sealed = self._cipher.encrypt(nonce, bytes(data), None)
        return sealed[:-TAG], sealed[-TAG:], nonce


class Pages:
    """Memory pages under a dump's key (64 bytes) and IV (16 bytes)."""

    def __init__(self, key: bytes, iv: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.XTS(iv))
        self._reusable = self._can_reuse()

    def _can_reuse(self) -> bool:
        """Whether one context may encrypt page after page: each call is then a data unit of its own.

        OpenSSL does it that way without promising it, and a new context for each page takes eight times as long.  So it
        is tried, and whatever does anything else gets a new context for each page.
        """
        pages = b"".join(hashlib.shake_256(bytes([n])).digest(PAGE) for n in range(3))
        for encrypt in (True, False):
            once, again = bytearray(len(pages)), bytearray(len(pages))
            self._each(pages, memoryview(once), encrypt=encrypt)
            try:
                self._reused(pages, memoryview(again), encrypt=encrypt)
            except Exception:  # noqa: BLE001 - then it does not work, whatever the library says about it
                return False
            if once != again:
                return False
        return True

    def encrypt(self, data: bytes | memoryview, out: memoryview) -> None:
        """Whole pages from `data` into `out`, which is as long."""
        (self._reused if self._reusable else self._each)(data, out, encrypt=True)

    def decrypt(self, data: bytes | memoryview, out: memoryview) -> None:
        """The way back.  There is nothing that could fail: XTS does not authenticate."""
        (self._reused if self._reusable else self._each)(data, out, encrypt=False)

    def _reused(self, data: bytes | memoryview, out: memoryview, *, encrypt: bool) -> None:
        view = memoryview(data)
        _check(view, out)
        context = self._cipher.encryptor() if encrypt else self._cipher.decryptor()
        update, last = context.update_into, len(view) - PAGE
        # The library wants 15 bytes more than it writes, which only the last page has not got in `out`.
        for at in range(0, last, PAGE):
            update(view[at : at + PAGE], out[at : at + PAGE + _SLACK])
        if last >= 0:
            spare = bytearray(PAGE + _SLACK)
            update(view[last:], spare)
            out[last:] = spare[:PAGE]

    def _each(self, data: bytes | memoryview, out: memoryview, *, encrypt: bool) -> None:
        view = memoryview(data)
        _check(view, out)
        for at in range(0, len(view), PAGE):
            context = self._cipher.encryptor() if encrypt else self._cipher.decryptor()
            out[at : at + PAGE] = context.update(view[at : at + PAGE])


def _check(data: memoryview, out: memoryview) -> None:
    if len(data) != len(out) or len(data) % PAGE:
        raise ValueError("not whole pages, or no room for them")


class PageDigest:
    """XOR over all pages of HMAC-SHA-256(token, ciphertext || u64 address || i32 0): order does not matter.

    Nor does anything that occurs twice.  `value` is the sum so far.
    """

    def __init__(self, token: bytes) -> None:
        padded = token.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in padded))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in padded))
        self._sum = 0

    def add(self, ciphertext: bytes | memoryview, address: int) -> None:
        """Whole pages that follow one another from `address` on."""
        view, total = memoryview(ciphertext), self._sum
        # By hand instead of hmac: a copy of two half-done hashes costs half of what a new HMAC costs.
        for at in range(0, len(view), PAGE):
            inner = self._inner.copy()
            inner.update(view[at : at + PAGE])
            # The last four bytes were meant for a pid, and the reference leaves them zero.
            inner.update((address + at).to_bytes(8, "little") + b"\0\0\0\0")
            outer = self._outer.copy()
            outer.update(inner.digest())
            total ^= int.from_bytes(outer.digest(), "little")
        self._sum = total

    @property
    def value(self) -> bytes:
        """32 bytes."""
        return self._sum.to_bytes(DIGEST, "little")

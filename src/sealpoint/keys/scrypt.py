"""Passphrases: the roots encrypted with AES-256-GCM under a key that scrypt (RFC 7914) makes of the passphrase.

Stanza body = salt 16 || u8 log2 N || AES-256-GCM(roots), AAD = `WrapContext.info`, nonce = zeros: the key is as fresh
as its salt and encrypts once.  r = 8, p = 1.  A passphrase is bytes and is used as it is: no Unicode normalisation (the
same text typed on two systems can differ in bytes), and the newline at the end of a file is the caller's to strip.
"""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealpoint import arguments
from sealpoint.errors import UsageError
from sealpoint.format.constants import HASH_SIZE, KEY_SIZE, StanzaKind
from sealpoint.format.stanza import Stanza, WrapContext
from sealpoint.keys import base

DEFAULT_LOG2_N = 17  # 128 MiB and about 0.4 s per guess
MIN_LOG2_N = 10  # below that guessing is free; nobody writes it by mistake
MAX_LOG2_N = 20  # 1 GiB: bounds what a stranger's file can make a reader allocate
SALT_SIZE = 16
OVERHEAD = SALT_SIZE + 1 + 16
_NONCE = bytes(12)


def seal(passphrase: bytes, plain: bytes, aad: bytes, log2_n: int) -> bytes:
    """salt || u8 log2 N || ciphertext.  Raises ValueError for a log2 N that no reader accepts."""
    if not MIN_LOG2_N <= log2_n <= MAX_LOG2_N:
        raise ValueError(f"log2 N must be in {MIN_LOG2_N} to {MAX_LOG2_N}")
    salt = os.urandom(SALT_SIZE)
    key = _derive(passphrase, salt, log2_n)
    return salt + bytes([log2_n]) + AESGCM(key).encrypt(_NONCE, plain, aad)


def unseal(passphrase: bytes, body: bytes, aad: bytes) -> bytes:
    """Inverse of `seal`.  Raises ValueError for limits and lengths, InvalidTag for all that is wrong otherwise."""
    if len(body) < OVERHEAD:
        raise ValueError("too short")
    log2_n = body[SALT_SIZE]
    if not MIN_LOG2_N <= log2_n <= MAX_LOG2_N:
        raise ValueError("scrypt cost out of range")
    key = _derive(passphrase, body[:SALT_SIZE], log2_n)
    return AESGCM(key).decrypt(_NONCE, body[SALT_SIZE + 1 :], aad)


def _derive(passphrase: bytes, salt: bytes, log2_n: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Scrypt(salt=salt, length=KEY_SIZE, n=1 << log2_n, r=8, p=1).derive(passphrase)


def _checked(passphrase: bytes) -> bytes:
    """The passphrase.  Raises UsageError: it is empty, or not bytes."""
    passphrase = arguments.secret(passphrase, "the passphrase")
    check_passphrase(passphrase)
    return passphrase


def check_passphrase(passphrase: bytes) -> None:
    """Raises UsageError for an empty one, which is a script's unset variable rather than a choice."""
    if not passphrase:
        raise UsageError("the passphrase is empty")


class PassphraseRecipient:
    """Whoever knows the passphrase.  Has no public key, so its fingerprint is zeros and it stands alone in a slot."""

    kind = StanzaKind.SCRYPT
    fingerprint = bytes(HASH_SIZE)
    name = base.KIND_NAMES[StanzaKind.SCRYPT]

    def __init__(self, passphrase: bytes, log2_n: int = DEFAULT_LOG2_N) -> None:
        self._passphrase = _checked(passphrase)
        self._log2_n = log2_n

    def wrap(self, roots: bytes, context: WrapContext) -> Stanza:
        """See `Recipient`."""
        base.check_roots(roots, context)
        info = context.info(self.kind, self.fingerprint)
        body = seal(self._passphrase, roots, info, self._log2_n)
        return Stanza(self.kind, context.roots, self.fingerprint, body)

    def __repr__(self) -> str:
        return f"<Recipient {self.name}>"


class PassphraseIdentity:
    """The passphrase as a key.  Matches every passphrase stanza: there is nothing in it that tells two apart."""

    kind = StanzaKind.SCRYPT
    fingerprint = bytes(HASH_SIZE)
    name = base.KIND_NAMES[StanzaKind.SCRYPT]

    def __init__(self, passphrase: bytes) -> None:
        self._passphrase = _checked(passphrase)

    def matches(self, stanza: Stanza) -> bool:
        """See `Identity`."""
        return stanza.kind is self.kind

    def unwrap(self, stanza: Stanza, context: WrapContext) -> bytes:
        """See `Identity`."""
        return base.open_stanza(
            self,
            stanza,
            context,
            lambda body, info: (
                unseal(self._passphrase, body, info)
                if len(body) == OVERHEAD + base.roots_size(context)
                else b""
            ),
        )

    def recipient(self) -> PassphraseRecipient:
        """See `Identity`."""
        return PassphraseRecipient(self._passphrase)

    def __repr__(self) -> str:
        return f"<Identity {self.name}>"


def passphrase_recipient(passphrase: bytes, *, log2_n: int = DEFAULT_LOG2_N) -> PassphraseRecipient:
    """Seal to a passphrase.  `log2_n`: cost, 10 to 20 (tests take 10).  Raises UsageError if it is empty."""
    return PassphraseRecipient(passphrase, log2_n)


def passphrase_identity(passphrase: bytes) -> PassphraseIdentity:
    """Open with a passphrase.  Raises UsageError if it is empty."""
    return PassphraseIdentity(passphrase)

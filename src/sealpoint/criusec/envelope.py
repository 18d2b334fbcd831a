"""cipher.img: a dump's keys, wrapped for one RSA key by PKCS#1 v1.5, and the digest over its pages.

It says nothing of the recipient, is not signed, and its IV and digest are in the clear and not authenticated.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sealpoint.criu import schema
from sealpoint.criusec.cipher import DIGEST, TOKEN, XTS_IV, XTS_KEY, Messages, Pages
from sealpoint.criusec.grammar import CIPHER_MAGIC, COMMON_MAGIC
from sealpoint.errors import FileError, IdentityError, UsageError
from sealpoint.keys.rsa import MAX_BITS, RsaIdentity, RsaRecipient

if TYPE_CHECKING:
    from sealpoint.keys import Identity, Recipient

MAX_SIZE: Final = (
    16 * 1024
)  # bytes of cipher.img; with the largest key that is accepted it has 4.2 KiB
_HEAD: Final = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class KeyEnvelope:
    """wrapped_token, wrapped_key: one RSA ciphertext each; iv: 16 bytes; digest: 32 bytes."""

    wrapped_token: bytes
    wrapped_key: bytes
    iv: bytes
    digest: bytes

    @classmethod
    def decode(cls, data: bytes, where: str) -> KeyEnvelope:
        """Raises FileError."""
        if len(data) < _HEAD.size or len(data) > MAX_SIZE:
            raise FileError(f"{where}: {len(data)} bytes cannot be the keys of a dump")
        common, magic, size = _HEAD.unpack_from(data)
        if (common, magic) != (COMMON_MAGIC, CIPHER_MAGIC):
            raise FileError(f"{where}: does not begin as the keys of a dump do")
        if size != len(data) - _HEAD.size:
            raise FileError(
                f"{where}: its record says {size} bytes, but {len(data) - _HEAD.size} follow"
            )
        from google.protobuf.message import DecodeError

        try:
            entry: Any = schema.message("cipher_entry").FromString(data[_HEAD.size :])
        except DecodeError:
            raise FileError(f"{where}: not a well-formed cipher_entry") from None
        # Fields that the message has as optional are none to the CRIU that restores: else who can write the dump could
        # take the digest away, and with it all that notices a changed page.
        found = cls(entry.token, entry.aes_key, entry.aes_iv, entry.hmac_digest)
        for wrapped in (found.wrapped_token, found.wrapped_key):
            if not 0 < len(wrapped) <= MAX_BITS // 8:
                raise FileError(f"{where}: a wrapped key of {len(wrapped)} bytes")
        if len(found.iv) != XTS_IV:
            raise FileError(f"{where}: the IV has {len(found.iv)} bytes, not {XTS_IV}")
        if len(found.digest) != DIGEST:
            raise FileError(f"{where}: the digest has {len(found.digest)} bytes, not {DIGEST}")
        return found

    def encode(self) -> bytes:
        """The file."""
        entry = schema.message("cipher_entry")(
            token=self.wrapped_token,
            aes_key=self.wrapped_key,
            aes_iv=self.iv,
            hmac_digest=self.digest,
        )
        data: bytes = entry.SerializeToString()
        return _HEAD.pack(COMMON_MAGIC, CIPHER_MAGIC, len(data)) + data


@dataclass(frozen=True, slots=True, repr=False)
class DumpKeys:
    """token: of messages and of the digest; key and iv: of pages."""

    token: bytes
    key: bytes
    iv: bytes

    @classmethod
    def new(cls) -> DumpKeys:
        """Random."""
        key = os.urandom(XTS_KEY)
        while key[: XTS_KEY // 2] == key[XTS_KEY // 2 :]:  # libraries refuse it, as IEEE 1619 says
            key = os.urandom(XTS_KEY)
        return cls(os.urandom(TOKEN), key, os.urandom(XTS_IV))

    def messages(self) -> Messages:
        """What encrypts all but pages."""
        return Messages(self.token)

    def pages(self) -> Pages:
        """What encrypts pages.  Raises FileError for a key that no sound writer makes."""
        try:
            return Pages(self.key, self.iv)
        except ValueError:
            raise FileError("the dump's key for pages is not a key of AES-XTS") from None

    def wrap(self, recipient: RsaRecipient, digest: bytes) -> KeyEnvelope:
        """For one recipient."""
        token, key = (recipient.wrap_pkcs1v15(secret) for secret in (self.token, self.key))
        return KeyEnvelope(token, key, self.iv, digest)


def candidates(envelope: KeyEnvelope, identities: Sequence[Identity]) -> list[DumpKeys]:
    """What each RSA identity makes of an envelope: one of them may be right, and nothing here tells which.

    Where the padding or a length is wrong the keys are random, so that a wrong guess is met where a message is not
    authentic and nowhere else: whoever sends envelopes learns no more from one failure than from another.
    Raises IdentityError if none of the identities is an RSA key.
    """
    fitting = [i for i in identities if isinstance(i, RsaIdentity)]
    if not identities:
        raise UsageError(
            "no identity given", hint="a CRIUsec dump is opened by an RSA private key: --tls-key"
        )
    if not fitting:
        raise IdentityError(
            "a CRIUsec dump is opened by an RSA private key, and no identity given is one"
        )
    return [
        DumpKeys(
            identity.unwrap_pkcs1v15(envelope.wrapped_token, TOKEN),
            identity.unwrap_pkcs1v15(envelope.wrapped_key, XTS_KEY),
            envelope.iv,
        )
        for identity in fitting
    ]


def rsa_recipient(recipients: Sequence[Recipient]) -> RsaRecipient:
    """The one whom a dump in this format is for.  Raises UsageError."""
    first = recipients[0] if len(recipients) == 1 else None
    if not isinstance(first, RsaRecipient):
        raise UsageError(
            "the CRIUsec format has room for one recipient, with an RSA certificate",
            hint="name it with -r (or --tls-cert)",
        )
    return first

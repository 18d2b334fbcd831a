"""The two nouns of encryption: who can open a checkpoint (Recipient) and what opens it (Identity).

Out of scope: where keys are stored and how kinds work; those are the other modules of this package, one kind each.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sealpoint.errors import IdentityError
from sealpoint.format.constants import KEY_SIZE, Roots, StanzaKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from sealpoint.format.stanza import Stanza, WrapContext

KIND_NAMES = {
    StanzaKind.HYBRID: "hybrid",
    StanzaKind.X25519: "x25519",
    StanzaKind.P256: "p256",
    StanzaKind.P384: "p384",
    StanzaKind.RSA_OAEP: "rsa",
    StanzaKind.SCRYPT: "passphrase",
}


@runtime_checkable
class Recipient(Protocol):
    """One who can open a checkpoint.

    fingerprint: 32 bytes, SHA-256 of the public key bytes (zeros for a passphrase); name: for people, never parsed.
    """

    @property
    def kind(self) -> StanzaKind: ...
    @property
    def fingerprint(self) -> bytes: ...
    @property
    def name(self) -> str: ...

    def wrap(self, roots: bytes, context: WrapContext) -> Stanza:
        """`roots`: 32 bytes (METADATA) or 64 (BOTH, metadata first), as `context.roots` says.

        Raises ValueError for another length, IdentityError where the public key turns out unusable.
        """
        ...


@runtime_checkable
class Identity(Protocol):
    """A private key or passphrase that opens what was sealed to its recipient."""

    @property
    def kind(self) -> StanzaKind: ...
    @property
    def fingerprint(self) -> bytes: ...
    @property
    def name(self) -> str: ...

    def matches(self, stanza: Stanza) -> bool:
        """Whether the stanza says that it is for this identity; only then is `unwrap` worth its one attempt."""
        ...

    def unwrap(self, stanza: Stanza, context: WrapContext) -> bytes:
        """The roots, 32 or 64 bytes.  Raises the same IdentityError whatever the reason."""
        ...

    def recipient(self) -> Recipient:
        """The public side."""
        ...


def display_name(kind: StanzaKind, fingerprint: bytes) -> str:
    """For instance `hybrid 3f2a9c01d2e4…`."""
    return f"{KIND_NAMES[kind]} {fingerprint.hex()[:12]}…"


def claims(identity: Identity, stanza: Stanza) -> bool:
    """Kind and fingerprint are those of `identity`, compared in constant time."""
    same = hmac.compare_digest(stanza.fingerprint, identity.fingerprint)
    return same and stanza.kind is identity.kind


def check_roots(roots: bytes, context: WrapContext) -> None:
    """Raises ValueError unless `roots` is as long as `context.roots` says."""
    if len(roots) != roots_size(context):
        raise ValueError("length of the roots contradicts the context")


def roots_size(context: WrapContext) -> int:
    """Bytes that a stanza of this context wraps."""
    return KEY_SIZE if context.roots is Roots.METADATA else 2 * KEY_SIZE


def open_stanza(
    identity: Identity,
    stanza: Stanza,
    context: WrapContext,
    decrypt: Callable[[bytes, bytes], bytes],
) -> bytes:
    """Call `decrypt(body, info)` at most once and return the roots.

    Every failure, whatever its reason, becomes the same IdentityError without a cause: a difference would let a
    stranger's file ask questions of the private key.
    """
    try:
        if claims(identity, stanza) and stanza.roots is context.roots:
            roots = decrypt(stanza.body, context.info(identity.kind, identity.fingerprint))
            if len(roots) == roots_size(context):
                return roots
    except Exception:  # noqa: BLE001, S110 - that is the point, see above
        pass
    raise IdentityError("the key does not open this checkpoint")

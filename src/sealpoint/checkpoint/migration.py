"""Moving a process tree to another machine: what the two sides say to each other (docs/spec.md, 14).

The receiver names a session.  Each sealed file of the migration says in its signed contents for which session it was
made, so an old one cannot be played again.  The last one is restored up to the gate, where everything has verified and
nothing of the tree runs.  From then on messages carry a MAC under a key from that file's memory root: whoever makes one
has opened the file, or made it.

    receiver -> READY    the tree is here, and waits
    sender   -> GO       it has ended there
    receiver -> RUNNING  it runs here

Whoever does not get what he waits for: before READY arrived, the tree runs on at the sender.  After GO was sent, it may
run at the receiver only.  A receiver that sent READY and hears neither GO nor STOP cannot know, so it does not run the
tree, and keeps the sealed file for somebody who can look at both sides.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final

from sealpoint.errors import SystemEnvironmentError
from sealpoint.format import derive
from sealpoint.format.constants import Role
from sealpoint.format.derive import RootKeys
from sealpoint.format.preamble import Preamble
from sealpoint.store.link import Kind, LinkError

SESSION_SIZE: Final = 32
_VERSION: Final = b"sealpoint/v1 migration"
# Properties of the metadata manifest: for which session the file was made, in hex; whether it is the last one.
_SESSION: Final = "migration"
_LAST: Final = "migration-last"


class UncertainError(SystemEnvironmentError):
    """The link broke when the tree had ended on one side and was not yet known to run on the other."""


def greeting(session: bytes) -> bytes:
    """Payload of HELLO."""
    return _VERSION + session


def session_of(payload: bytes, peer: str) -> bytes:
    """The session in a HELLO.  Raises LinkError."""
    if len(payload) != len(_VERSION) + SESSION_SIZE or not payload.startswith(_VERSION):
        raise LinkError(f"{peer} does not answer as this version of sealpoint does")
    return payload[len(_VERSION) :]


def key_of(roots: RootKeys, preamble: Preamble, session: bytes) -> bytes:
    """The key of READY, GO, RUNNING and STOP, which only the file's maker and its memory recipients have."""
    return derive.derive(roots.root(Role.MEMORY), preamble, "migration", session)


def proof(key: bytes, kind: Kind, origin_digest: bytes) -> bytes:
    """What a message of that kind carries: a MAC over it and the origin digest of the last file."""
    return hmac.digest(key, bytes([kind]) + origin_digest, "sha256")


def check_proof(payload: bytes, key: bytes, kind: Kind, origin_digest: bytes, peer: str) -> None:
    """Raises LinkError."""
    if not hmac.compare_digest(payload, proof(key, kind, origin_digest)):
        raise LinkError(f"{peer} cannot prove that it holds the checkpoint")


def properties(session: bytes, *, last: bool) -> dict[str, str]:
    """What a file of a migration says in its metadata manifest."""
    return {_SESSION: session.hex(), _LAST: "yes" if last else "no"}


def is_for(found: Mapping[str, str], session: bytes) -> bool:
    """Whether a file with these properties was made for that session."""
    return hmac.compare_digest(found.get(_SESSION, "").encode(), session.hex().encode())


def is_last(found: Mapping[str, str]) -> bool:
    """Whether the tree is to be restored from a file with these properties."""
    return found.get(_LAST) == "yes"

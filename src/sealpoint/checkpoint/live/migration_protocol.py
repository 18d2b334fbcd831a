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
tree.  The sealed files are durable at the receiver before READY, and stay there until the tree runs.
"""

from __future__ import annotations

import hmac
import re
import struct
from collections.abc import Mapping
from typing import Final

from sealpoint.errors import SystemEnvironmentError
from sealpoint.format import derive
from sealpoint.format.constants import Role
from sealpoint.format.derive import RootKeys
from sealpoint.format.preamble import Preamble
from sealpoint.store.link import LinkError, MessageKind

SESSION_SIZE: Final = 32
_PROTOCOL: Final = b"sealpoint/v2 migration"
_ANY_PROTOCOL: Final = re.compile(rb"sealpoint/v(\d{1,6}) migration")
_SIZE: Final = struct.Struct("<Q")
_MAC_SIZE: Final = 32
_MAX_PATH: Final = 4000  # bytes: of a message that is no DATA there are 4096
# Properties of the metadata manifest: for which session the file was made, in hex; whether it is the last one.
_SESSION: Final = "migration"
_LAST: Final = "migration-last"


class UncertainError(SystemEnvironmentError):
    """The link broke when the tree had ended on one side and was not yet known to run on the other."""


def greeting(session: bytes) -> bytes:
    """Payload of HELLO."""
    return _PROTOCOL + session


def session_of(payload: bytes, peer: str) -> bytes:
    """The session in a HELLO.  Raises LinkError."""
    if len(payload) != len(_PROTOCOL) + SESSION_SIZE or not payload.startswith(_PROTOCOL):
        raise strange(payload, peer)
    return payload[len(_PROTOCOL) :]


def strange(payload: bytes, peer: str) -> LinkError:
    """What to say of a greeting that is not of this version."""
    found = _ANY_PROTOCOL.match(payload)
    if found is None or found[0] == _PROTOCOL:
        return LinkError(f"{peer} does not speak sealpoint's protocol")
    return LinkError(
        f"{peer} speaks version {int(found[1])} of the migration, this sealpoint version 2: install the same on both"
    )


def offer(size: int) -> bytes:
    """Payload of OFFER: bytes that the next file will not exceed, unless the tree grows fast."""
    return _SIZE.pack(size)


def offered(payload: bytes, peer: str) -> int:
    """The size in an OFFER.  Raises LinkError."""
    if len(payload) != _SIZE.size:
        raise LinkError(f"{peer} does not speak sealpoint's protocol")
    return int(_SIZE.unpack(payload)[0])


def key_of(roots: RootKeys, preamble: Preamble, session: bytes) -> bytes:
    """The key of READY, GO, RUNNING and STOP, which only the file's maker and its memory recipients have."""
    return derive.derive(roots.root(Role.MEMORY), preamble, "migration", session)


def proof(key: bytes, kind: MessageKind, origin_digest: bytes, text: bytes = b"") -> bytes:
    """What a message of that kind carries: a MAC over it, the origin digest of the last file and the text, the text."""
    return hmac.digest(key, bytes([kind]) + origin_digest + text, "sha256") + text


def check_proof(
    payload: bytes, key: bytes, kind: MessageKind, origin_digest: bytes, peer: str
) -> bytes:
    """The text in it.  Raises LinkError."""
    text = payload[_MAC_SIZE:]
    if not hmac.compare_digest(payload, proof(key, kind, origin_digest, text)):
        raise LinkError(f"{peer} cannot prove that it holds the checkpoint")
    return text


def place(path: str) -> bytes:
    """The text of READY: where the receiver keeps the last file.  Raises SystemEnvironmentError."""
    text = path.encode(errors="surrogateescape")
    if len(text) > _MAX_PATH:
        raise SystemEnvironmentError(f"{path} is too long a name", hint="shorten that of --keep")
    return text


def properties(session: bytes, *, last: bool) -> dict[str, str]:
    """What a file of a migration says in its metadata manifest."""
    return {_SESSION: session.hex(), _LAST: "yes" if last else "no"}


def is_for(found: Mapping[str, str], session: bytes) -> bool:
    """Whether a file with these properties was made for that session."""
    return hmac.compare_digest(found.get(_SESSION, "").encode(), session.hex().encode())


def is_last(found: Mapping[str, str]) -> bool:
    """Whether the tree is to be restored from a file with these properties."""
    return found.get(_LAST) == "yes"

"""Who sends: a statement signed over the nonce of the side that listens, before that takes any data.

A DSSE envelope with a payload type of its own, by the key that signs the files (docs/spec.md, Peers).  It is worth one
connection: the nonce is fresh.  It says nothing of what follows, which is signed by itself.
"""

from __future__ import annotations

import time
from typing import Final

from sealpoint.errors import PolicyError
from sealpoint.format import dsse, strictjson
from sealpoint.format.strictjson import Fields
from sealpoint.format.writer import Signing
from sealpoint.keys import TrustPolicy

NONCE_SIZE: Final = 32
MIGRATION: Final = "sealpoint/v2 migration"
PAGE_SERVER: Final = "sealpoint/v2 page-server"
_TYPE: Final = "application/vnd.sealpoint.peer.v1+json"
_WHAT: Final = "the peer's proof"


def prove(signing: Signing, context: str, nonce: bytes) -> bytes:
    """What the sender says of itself.  context: which protocol; nonce: of the side that listens."""
    payload = {"context": context, "nonce": nonce.hex(), "signers": sorted(signing.signers)}
    return signing.envelope(_TYPE, strictjson.encode(payload))


def check(proof: bytes, policy: TrustPolicy, context: str, nonce: bytes) -> None:
    """Raises PolicyError, FileError: nobody who is trusted has made it, for this connection."""
    envelope = dsse.decode(proof, _TYPE, _WHAT)
    verified = policy.evaluate(envelope)
    policy.check_time(verified, int(time.time()))
    f = Fields(strictjson.decode(envelope.payload, _WHAT), _WHAT)
    found = f.text("context"), f.hex("nonce", NONCE_SIZE)
    signers = f.array("signers", limit=dsse.MAX_SIGNATURES)
    f.done()
    if found != (context, nonce) or signers != sorted(verified.key_ids):
        raise PolicyError("the peer's proof was made for another connection")

"""The host's signing key: made once, on the host, where it stays; its public half is what is enrolled elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Final

from sealpoint import keys
from sealpoint.config import SYSTEM_PATH
from sealpoint.errors import PolicyError
from sealpoint.keys.generate import new_signer, public_pem
from sealpoint.keys.text import encode_signer
from sealpoint.machine.configure import no_passphrase
from sealpoint.machine.files import status_in

DIRECTORY: Final = os.path.dirname(SYSTEM_PATH)
_PRIVATE: Final = "signer.key"
_PUBLIC: Final = "signer.pub"


def ensure(place: int, write: Callable[[str, bytes, int], None]) -> str:
    """Make the key if there is none, and its public half; returns that as a literal.

    place: the host's DIRECTORY; write: puts a file of that path, contents and mode there.  One that exists is used as
    it is.  Raises IdentityError, PolicyError (others can read it), OSError.
    """
    if status_in(place, _PRIVATE) is None:
        private, _ = new_signer()
        write(f"{DIRECTORY}/{_PRIVATE}", private, 0o600)
    literal, public = _public_of(place)
    if status_in(place, _PUBLIC) is None:
        write(f"{DIRECTORY}/{_PUBLIC}", public, 0o644)
    return literal


def existing(place: int) -> str:
    """The public half of the key that is there, as a literal; "" if there is none."""
    return _public_of(place)[0] if status_in(place, _PRIVATE) is not None else ""


def _public_of(place: int) -> tuple[str, bytes]:
    """As a literal and in PEM."""
    info = status_in(place, _PRIVATE)
    path = f"{DIRECTORY}/{_PRIVATE}"
    if info is None or not stat.S_ISREG(info.st_mode) or info.st_uid or info.st_mode & 0o077:
        raise PolicyError(
            f"{path} is refused: it must be a file of root's that nobody else can read",
            hint=f"chown root {path}; chmod 600 {path}",
        )
    signer = keys.load_signer(f"/proc/self/fd/{place}/{_PRIVATE}", passphrase=no_passphrase)
    return encode_signer(signer.public_key), public_pem(signer.public_key)

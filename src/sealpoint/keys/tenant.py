"""Tenant key files (docs/spec.md, Stored chunks): a block "SEALPOINT TENANT KEY" of u8 version 1 || 32 random bytes."""

from __future__ import annotations

import os
from typing import Final

from sealpoint.errors import IdentityError
from sealpoint.format.constants import KEY_SIZE
from sealpoint.keys.files import (
    decode_armour,
    encode_armour,
    pem_blocks,
    read_key_file,
    write_new_file,
)
from sealpoint.keys.load import in_file

LABEL: Final = "SEALPOINT TENANT KEY"
_VERSION: Final = b"\x01"


def make(path: str) -> bytes:
    """A new key in a new file, 0600.  Raises UsageError if it exists, SystemEnvironmentError."""
    key = os.urandom(KEY_SIZE)
    write_new_file(path, encode_armour(LABEL, _VERSION + key), mode=0o600)
    return key


def load(path: str) -> bytes:
    """The 32 bytes.  Raises IdentityError, UsageError, SystemEnvironmentError."""
    data = read_key_file(path)
    try:
        blocks = pem_blocks(data)
        if len(blocks) != 1 or blocks[0].label != LABEL or blocks[0].text.strip() != data.strip():
            raise IdentityError(
                "holds no tenant key",
                hint="make one with: sealpoint store init DIR --tenant-key FILE",
            )
        payload = decode_armour(blocks[0])
        if payload[:1] != _VERSION or len(payload) != 1 + KEY_SIZE:
            raise IdentityError("a tenant key of an unknown version")
    except IdentityError as error:
        raise in_file(error, path) from None
    return payload[1:]

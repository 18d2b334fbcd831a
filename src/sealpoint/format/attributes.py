"""What a manifest records of an archive's member beside its bytes (docs/spec.md, Attributes).

Out of scope: whether a link or an owner may be made on the machine that opens the checkpoint; that is for who extracts.
"""

from __future__ import annotations

from typing import Any, Final

from sealpoint.errors import FileError
from sealpoint.format.strictjson import Fields, parse_base64

TYPES: Final = ("file", "directory", "symlink", "hardlink", "character", "block", "fifo")
_LINKS: Final = ("symlink", "hardlink")
_DEVICES: Final = ("character", "block")
_MAX_MODE: Final = 0o7777
_MAX_ID: Final = (1 << 32) - 1
_MAX_XATTRS: Final = 256
_MAX_XATTR: Final = 128 * 1024  # in base64; Linux allows 64 KiB


def check(value: dict[str, Any], size: int, what: str) -> dict[str, Any]:
    """`value` itself if it is a valid set of attributes for an object of `size` bytes.  Raises FileError."""
    fields = Fields(value, what)
    kind = fields.text("type", limit=16)
    if kind not in TYPES or (size and kind != "file"):
        raise FileError(f"{what}: impossible type {kind!r}")
    for key, largest in (("mode", _MAX_MODE), ("uid", _MAX_ID), ("gid", _MAX_ID)):
        if fields.u64(key) > largest:
            raise FileError(f"{what}: {key!r} is too large")
    fields.u64("mtime")
    for key in ("user", "group"):
        if fields.has(key):
            fields.text(key, limit=256)
    if kind in _LINKS:
        link = fields.text("link")
        if not link or "\0" in link:
            raise FileError(f"{what}: 'link' is not a path")
    if kind in _DEVICES:
        fields.u64("major")
        fields.u64("minor")
    if fields.has("xattrs"):
        xattrs = fields.fields("xattrs")
        if not 0 < len(xattrs.keys()) <= _MAX_XATTRS:
            raise FileError(f"{what}: impossible number of extended attributes")
        for name in list(xattrs.keys()):
            parse_base64(xattrs.text(name, limit=_MAX_XATTR), what)
    fields.done()
    return value


def is_directory(value: dict[str, Any] | None) -> bool:
    """Whether other objects may lie below this one."""
    return value is not None and value["type"] == "directory"

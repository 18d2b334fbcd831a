"""The self-contained bundle that this program runs from, as a list of what is in it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import sealpoint
from sealpoint.errors import FileError, UsageError

MARK: Final = ".sealpoint-bundle"
_MAX_LEVELS: Final = 8
_DIGITS: Final = 16


class Listing(NamedTuple):
    """Names relative to the bundle.  files: SHA-256 and whether it is a program; links: where to."""

    directories: list[str]
    files: dict[str, tuple[str, bool]]
    links: dict[str, str]

    def encode(self) -> bytes:
        """The same bytes for the same contents."""
        values = {"version": 1, **self._asdict()}
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises FileError."""
        try:
            values: dict[str, Any] = json.loads(data)
            if values["version"] != 1:
                raise ValueError
            files = {str(k): (str(v[0]), bool(v[1])) for k, v in values["files"].items()}
            links = {str(k): str(v) for k, v in values["links"].items()}
            listing = cls([str(d) for d in values["directories"]], files, links)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise FileError("not a list of the files of a bundle") from None
        for name in (*listing.directories, *listing.files, *listing.links):
            if name.startswith("/") or not name or ".." in name.split("/"):
                raise FileError("a list of the files of a bundle leads out of it")
        return listing


class Bundle(NamedTuple):
    """path: its directory; identity: its version and a hash of what is in it."""

    path: str
    identity: str
    listing: Listing


def own() -> Bundle:
    """The bundle that this program runs from.  Raises UsageError: it runs from none."""
    directory = os.path.dirname(os.path.realpath(sealpoint.__file__))
    for _ in range(_MAX_LEVELS):
        if os.path.exists(os.path.join(directory, MARK)):
            return read(directory)
        directory = os.path.dirname(directory)
    raise UsageError(
        "this sealpoint is not the self-contained bundle, which is what a host gets",
        hint="run the program of the bundle or of the image",
    )


def read(directory: str) -> Bundle:
    """Raises UsageError: there is something in it that a bundle does not have."""
    top = Path(directory)
    listing = Listing([], {}, {})
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            listing.directories.append(name)
        elif stat.S_ISREG(mode):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            listing.files[name] = (digest, bool(mode & 0o100))
        elif stat.S_ISLNK(mode) and not os.path.isabs(os.readlink(path)):
            listing.links[name] = os.readlink(path)
        else:
            raise UsageError(f"{path} is no part of a bundle")
    version = (top / MARK).read_text().strip()
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return Bundle(directory, f"{version}-{digest[:_DIGITS]}", listing)

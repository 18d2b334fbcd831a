"""What an installation on a host has made, beside it, so that it can be removed exactly.

Written before each change, as that of `install-criu` (machine/record): whatever moment an installation ends at, the
next one, or a removal, knows what is ours.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sealpoint.errors import SystemEnvironmentError
from sealpoint.machine.files import write_in

NAME: Final = "node.json"
STAGED: Final = "staged"
READY: Final = "ready"
REMOVING: Final = "removing"
_VERSION: Final = 1
_MAX_SIZE: Final = 1024 * 1024


@dataclass(slots=True)
class NodeRecord:
    """made: whether its directory is ours; versions: identity to state; files: path on the host to the SHA-256 of each
    content that we gave it; directories: other ones that we made, the outermost first.
    """

    made: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)

    def save(self, directory: int) -> None:
        """Durably.  Raises OSError."""
        data = json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n"
        write_in(directory, NAME, data.encode(), 0o644)

    def announce(self, directory: int, path: str, digest: str) -> None:
        """Before a file gets a content of ours.  Raises OSError."""
        known = self.files.setdefault(path, [])
        if digest not in known:
            known.append(digest)
            self.save(directory)


def load(directory: int) -> NodeRecord | None:
    """None if nothing was installed there.  Raises SystemEnvironmentError, OSError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with open(os.open(NAME, flags, dir_fd=directory), "rb") as file:
            data = file.read(_MAX_SIZE)
    except FileNotFoundError:
        return None
    try:
        values: dict[str, Any] = json.loads(data)
        if values["version"] != _VERSION:
            raise ValueError
        return NodeRecord(
            made=bool(values["made"]),
            versions={str(k): str(v) for k, v in values["versions"].items()},
            files={str(k): [str(x) for x in v] for k, v in values["files"].items()},
            directories=[str(d) for d in values["directories"]],
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SystemEnvironmentError(
            f"{NAME} is not the record of an installation by this version of sealpoint"
        ) from None

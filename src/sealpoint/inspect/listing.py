"""The checkpoints in a directory: archives, sealed files and directories of images.

Of a sealed file only what is public is told unless an identity is given.  What cannot be read is listed with its error,
not left out: it may be the one that is looked for.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Final

from sealpoint.errors import SealpointError, left_out
from sealpoint.format.constants import MAGIC
from sealpoint.inspect import container, finding, source
from sealpoint.inspect.tree_text import when

KUBELET: Final = "/var/lib/kubelet/checkpoints"
_MAX_ENTRIES: Final = 1 << 16
# checkpoint-<pod>_<namespace>-<container>-<timestamp>.tar
_KUBELET_NAME: Final = re.compile(
    r"checkpoint-(?P<pod>[^_]+)_(?P<namespace>[^_]+)-(?P<container>[^_-]+)-(?P<time>\d{4}-.+)\.tar(?:\.\w+)?"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """One checkpoint.  kind: "archive", "directory" or "sealed"; size in bytes of the file; error: "" or why not."""

    name: str
    kind: str
    size: int
    container: str = ""
    namespace: str = ""
    engine: str = ""
    checkpointed: str = ""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Without what is not known."""
        values = {key: getattr(self, key) for key in self.__slots__}
        return {key: value for key, value in values.items() if value != ""}


def checkpoints(directory: str, access: source.Access, *, identities: bool) -> list[Listed]:
    """Sorted by name.  identities: whether there are any, so that sealed files can be opened.  Raises OSError."""
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda e: e.name)
    if len(entries) > _MAX_ENTRIES:
        left_out(
            f"{directory} has {len(entries)} entries: only the first {_MAX_ENTRIES} are listed"
        )
        del entries[_MAX_ENTRIES:]
    listed = []
    for entry in entries:
        one = _look_at(entry, access, identities=identities)
        if one is not None:
            listed.append(one)
    return listed


def _look_at(entry: os.DirEntry[str], access: source.Access, *, identities: bool) -> Listed | None:
    if entry.is_dir():
        if not os.path.exists(f"{entry.path}/inventory.img") and not os.path.exists(
            f"{entry.path}/checkpoint/inventory.img"
        ):
            return None
        kind = "directory"
    elif entry.is_file():
        try:
            with open(entry.path, "rb") as file:
                head = file.read(finding.HEAD)
        except OSError as error:
            return Listed(entry.name, "file", 0, error=error.strerror or "cannot be read")
        if not finding.is_container(head):
            return None
        kind = "sealed" if head.startswith(MAGIC) else "archive"
    else:
        return None
    size = entry.stat().st_size if kind != "directory" else 0
    try:
        if kind == "sealed" and not identities:
            return _public(entry, size)
        with finding.open_source(entry.path, access) as opened:
            return _describe(entry.name, kind, size, opened)
    except SealpointError as error:
        return Listed(entry.name, kind, size, error=error.message.removeprefix(f"{entry.path}: "))


def _public(entry: os.DirEntry[str], size: int) -> Listed:
    from sealpoint.checkpoint.opening import Opening
    from sealpoint.keys import load_trust

    policy = load_trust([], allow_unsigned=True, allow_expired=True, names_only=True)
    with Opening(policy, alone=True, unproven=True).open(entry.path) as checkpoint:
        captured = checkpoint.origin.captured
    return Listed(entry.name, "sealed", size, checkpointed=when(captured))


def _describe(name: str, kind: str, size: int, opened: source.Source) -> Listed:
    told = container.describe(source.images(opened))
    checkpointed, shown = told.checkpointed, told.name
    if kind == "directory":
        size = sum(opened.size(n) for n in opened.names())
    match = _KUBELET_NAME.fullmatch(name)
    if match:
        shown = shown or match["container"]
        checkpointed = checkpointed or match["time"]
    namespace = told.namespace or (match["namespace"] if match else "")
    return Listed(name, kind, size, shown, namespace, told.engine, checkpointed)

"""The checkpoints in a directory: archives, sealed files and directories of images.

Of a sealed file only what is public is told unless an identity is given.  What cannot be read is listed with its error,
not left out: it may be the one that is looked for.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sealpoint.errors import SealpointError, left_out
from sealpoint.format.constants import MAGIC
from sealpoint.inspect import container, finding, source
from sealpoint.inspect.container import Container
from sealpoint.inspect.tree_text import when

KUBELET: Final = "/var/lib/kubelet/checkpoints"
_MAX_ENTRIES: Final = 1 << 16
_LONG_NUMBER: Final = 12  # digits that no time has
# checkpoint-<pod>_<namespace>-<container>-<timestamp>.tar, perhaps compressed or sealed.  All three may have dashes.
_KUBELET_NAME: Final = re.compile(
    r"checkpoint-(?P<pod>[^_]+)_(?P<rest>[^_]+-[^_]+)"
    r"-(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d))\.tar(?:\.\w+)*",
    re.ASCII,
)
# What engines call a container of Kubernetes: k8s_<container>_<pod>_<namespace>_<uid>_<attempt>.
_ENGINES_NAME: Final = re.compile(
    r"k8s_(?P<container>[^_]+)_(?P<pod>[^_]+)_(?P<namespace>[^_]+)_[^_]+_\d+", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Listed:
    """One checkpoint.  kind: "archive", "directory" or "sealed"; size in bytes of the file; error: "" or why not."""

    name: str
    kind: str
    size: int
    container: str = ""
    pod: str = ""
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


def in_store(url: str) -> list[Listed]:
    """The sealed files of a store, beside and below a URL, as the store describes them; nobody has verified that."""
    from sealpoint.store import properties
    from sealpoint.store.location import open_store

    listed = []
    for stored, _ in zip(open_store(url).list(), range(_MAX_ENTRIES), strict=False):
        captured = stored.properties.get(properties.CAPTURED, "")
        known = captured.isascii() and captured.isdigit() and len(captured) < _LONG_NUMBER
        listed.append(
            Listed(
                stored.name,
                "sealed",
                stored.size or 0,
                checkpointed=when(int(captured)) if known else "",
            )
        )
    return sorted(listed, key=lambda one: one.name)


def container_of(name: str, fd: int) -> Container:
    """What an archive says of its container; `fd` stays the caller's.

    Raises FileError (it is damaged, or has no images), UsageError (it has several dumps).
    """
    from sealpoint.inspect.archive import ArchiveSource

    own = os.dup(fd)
    try:
        opened = ArchiveSource(own, name)
    except BaseException:
        os.close(own)
        raise
    with contextlib.closing(opened):
        return container.describe(source.images(opened))


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
    from sealpoint.checkpoint import Opening
    from sealpoint.keys import load_trust

    policy = load_trust([], allow_unsigned=True, allow_expired=True, names_only=True)
    with Opening(policy, alone=True, unproven=True).open(entry.path) as checkpoint:
        captured = checkpoint.origin.captured
    told = Whose().by_file_name(entry.name)
    return Listed(
        entry.name,
        "sealed",
        size,
        told.container,
        told.pod,
        told.namespace,
        checkpointed=when(captured),
    )


def _describe(name: str, kind: str, size: int, opened: source.Source) -> Listed:
    told = container.describe(source.images(opened))
    if kind == "directory":
        size = sum(opened.size(n) for n in opened.names())
    whose = Whose.of(name, told)
    match = _KUBELET_NAME.fullmatch(name)
    checkpointed = told.checkpointed or (match["time"] if match else "")
    return Listed(
        name,
        kind,
        size,
        whose.container,
        whose.pod,
        whose.namespace,
        told.engine,
        checkpointed,
    )


class Whose(NamedTuple):
    """Whose checkpoint it is, as far as that is known; what is known already is not taken from elsewhere."""

    container: str = ""
    pod: str = ""
    namespace: str = ""

    @classmethod
    def of(cls, file_name: str, told: Container | None = None) -> Whose:
        """What is known of an archive; told: what is in it, which knows better than the name."""
        known = cls() if told is None else cls(told.name, told.pod, told.namespace)
        return known.by_engine().by_file_name(file_name)

    def by_engine(self) -> Whose:
        """With what the engine's name of the container says, of which the first part replaces it."""
        match = _ENGINES_NAME.fullmatch(self.container)
        if match is None:
            return self
        return Whose(
            match["container"], self.pod or match["pod"], self.namespace or match["namespace"]
        )

    def by_file_name(self, name: str) -> Whose:
        """With what kubelet's name of the archive says without doubt.

        Between namespace and container stands a dash, and both may have dashes: one of them has to be known.
        """
        match = _KUBELET_NAME.fullmatch(name)
        if match is None:
            return self
        words = match["rest"].split("-")
        halves = [("-".join(words[:n]), "-".join(words[n:])) for n in range(1, len(words))]
        fitting = [
            (namespace, container)
            for namespace, container in halves
            if self.namespace in ("", namespace) and self.container in ("", container)
        ]
        namespace, container = fitting[0] if len(fitting) == 1 else ("", "")
        return Whose(
            self.container or container, self.pod or match["pod"], self.namespace or namespace
        )

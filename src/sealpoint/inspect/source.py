"""One way to read a checkpoint, whatever it lies in: a sealed file, a directory, an engine's archive; the latter two
also where their images are encrypted in the CRIUsec format.

`finding.open_source` finds out which it is.  A `Source` has objects by name; `Images` are those of one CRIU dump among
them (`checkpoint/` in an engine's archive) and lead to the images of the parent that they increment.  Names, sizes and
contents are a stranger's word: whoever reads checks them, and gets no more than asked for.

Not thread-safe: one thread, one source.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from sealpoint.errors import FileError, UsageError, left_out
from sealpoint.format.constants import Role
from sealpoint.store.location import is_url, split_url

if TYPE_CHECKING:
    from sealpoint.checkpoint import Opening
    from sealpoint.keys import Identity, TrustPolicy

READ_LIMIT: Final = 256 * 1024 * 1024  # bytes of an object that is read in one piece
_MAX_PARENTS: Final = 256
PARENT_ELSEWHERE: Final = (
    "podman's --with-previous leaves the pre-checkpoint in a separate archive: "
    "unpack both into one directory"
)


class Source(Protocol):
    """Named objects: regular files only, names as in an archive ("checkpoint/core-1.img").

    label: what to call it in messages, as the user named it.
    Every method that takes a name raises FileError if there is no such object or what it holds is damaged, and
    IdentityError, naming the identities that would do, if it is withheld from this one.
    """

    label: str

    def names(self) -> Sequence[str]:
        """All objects within reach, in the source's order.  Of withheld objects not even names are known."""

    def exists(self, name: str) -> bool:
        """Whether the object is there and within reach."""

    def withheld(self, name: str) -> bool:
        """Whether an object of that name, if there is one, could only be read with another identity."""

    def size(self, name: str) -> int:
        """Bytes."""

    def role(self, name: str) -> Role:
        """Which root protects it in a sealed file; elsewhere, would."""

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """A whole object.  Raises FileError also if it is larger than `limit`."""

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only where the object ends."""

    def chunks(self, name: str, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """The same piece by piece, for what is large: each lies in a reused buffer until the next is asked for."""

    def parent(self, prefix: str) -> tuple[Source, str] | None:
        """Where the parent of the images under `prefix` lies, None if they have none.

        Raises FileError if they name one that is not to be found.
        """

    def close(self) -> None:
        """Ends the use of descriptors, those of parents included."""


@dataclass(frozen=True)
class Images:
    """The images of one CRIU dump: the objects of `source` whose names begin with `prefix` ("" or "checkpoint/")."""

    source: Source
    prefix: str = ""
    children: frozenset[str] = frozenset()  # labels of those whose parent this is, near or far

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.source.label}:{self.prefix}" if self.prefix else self.source.label

    def where(self, name: str) -> str:
        """An image as a user would name it."""
        return f"{self.source.label}:{self.prefix}{name}"

    def names(self) -> list[str]:
        """Base names, without what lies in deeper directories."""
        start = len(self.prefix)
        return [
            name[start:]
            for name in self.source.names()
            if name.startswith(self.prefix) and "/" not in name[start:]
        ]

    def exists(self, name: str) -> bool:
        """As Source.exists."""
        return self.source.exists(self.prefix + name)

    def withheld(self, name: str) -> bool:
        """As Source.withheld."""
        return self.source.withheld(self.prefix + name)

    def size(self, name: str) -> int:
        """As Source.size."""
        return self.source.size(self.prefix + name)

    def role(self, name: str) -> Role:
        """As Source.role."""
        return self.source.role(self.prefix + name)

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """As Source.read."""
        return self.source.read(self.prefix + name, limit)

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """As Source.pread."""
        return self.source.pread(self.prefix + name, offset, size)

    def chunks(self, name: str, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """As Source.chunks."""
        return self.source.chunks(self.prefix + name, offset, size)

    def parent(self) -> Images | None:
        """The images that these increment.  Raises FileError if they are missing or lead in a circle."""
        found = self.source.parent(self.prefix)
        if found is None:
            return None
        parent = Images(*found, self.children | {self.label})
        if parent.label in parent.children or len(parent.children) > _MAX_PARENTS:
            raise FileError(f"{self.label}: its chain of parents has no end")
        return parent


def image_sets(source: Source) -> list[Images]:
    """All dumps in a source, those with a process tree first; of a pod one for each container."""
    sets: dict[str, bool] = {}
    for name in source.names():
        directory, _, base = name.rpartition("/")
        prefix = directory + "/" if directory else ""
        if base.endswith(".img"):
            sets.setdefault(prefix, False)
        if base == "pstree.img":
            sets[prefix] = True
    order = {"checkpoint/": 0, "": 1, "pre-checkpoint/": 3}
    return [
        Images(source, prefix)
        for prefix in sorted(sets, key=lambda p: (not sets[p], order.get(p, 2), p))
    ]


def images(source: Source, directory: str = "") -> Images:
    """The one dump in a source, or the one in `directory`.  Raises FileError, UsageError if there are several."""
    sets = image_sets(source)
    if directory:
        prefix = directory.strip("/") + "/"
        for candidate in sets:
            if candidate.prefix in (prefix, prefix + "checkpoint/"):
                return candidate
        raise UsageError(f"{source.label} has no images in {directory}")
    if not sets:
        raise FileError(f"{source.label} has no CRIU images")
    trees = [s for s in sets if source.exists(s.prefix + "pstree.img")]
    if len(trees) > 1 and trees[0].prefix not in ("", "checkpoint/"):
        names = ", ".join(s.prefix.rstrip("/") for s in trees[:10])
        raise UsageError(
            f"{source.label} has the images of several dumps: {names}",
            hint=f"name one of them: {source.label}:{trees[0].prefix}",
        )
    if len(trees) > 1:
        names = ", ".join(f"{source.label}:{s.prefix}" for s in trees[1:10])
        left_out(f"{source.label} has other dumps, which are shown by these names: {names}")
    return sets[0]


@dataclass(frozen=True)
class Access:
    """With what to open: the policy that says which signers of sealed files to believe, and who asks.

    identities: called when the first sealed file is opened, so that plain input needs no key.
    policy: the same; it may raise PolicyError where nobody is trusted.
    stores, parents: where else than beside a sealed file the stored chunks and the parents may lie that it names.
    """

    identities: Callable[[], Sequence[Identity]]
    policy: Callable[[], TrustPolicy]
    stores: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    limit: int | None = None  # bytes that are held of what comes from a pipe

    def opening(self) -> Opening:
        """How readers open a sealed file: what lies beside it may be missing until it is needed."""
        from sealpoint.checkpoint import Opening

        return Opening(
            self.policy(), self.identities, parents=self.parents, stores=self.stores, lenient=True
        )

    @classmethod
    def of(cls, identities: Sequence[Identity], policy: TrustPolicy) -> Self:
        """From what is loaded already."""
        return cls(lambda: identities, lambda: policy)


def split_place(text: str) -> tuple[str, str]:
    """FILE:OBJECT to (FILE, OBJECT), as scp does it: what exists under the whole name is a file without an object."""
    if text == "-" or os.path.lexists(text):
        return text, ""
    if is_url(text):
        return split_url(text)
    path, colon, _ = text.rpartition(":")
    while colon:
        if path == "-" or os.path.lexists(path):
            return path, text[len(path) + 1 :]
        path, colon, _ = path.rpartition(":")
    return text, ""


def inside(prefix: str, link: str) -> str | None:
    """Where a relative link in `prefix` leads within the same source, as a prefix; None if it leads out."""
    joined = posixpath.normpath(posixpath.join("/", prefix, link))
    raw = posixpath.normpath(posixpath.join(prefix or ".", link))
    if posixpath.isabs(link) or raw.startswith(".."):
        return None
    return "" if joined == "/" else joined[1:] + "/"

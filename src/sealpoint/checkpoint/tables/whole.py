"""Whether what a command sealed from files is whole: every set of images in it, each as its kind needs.

`Taken` is told of everything that goes into the sealed file, as it goes, and judges in the end.  A set is the images of
one directory: a directory can hold a chain of pre-dumps, an archive the dumps of several containers.  Where pages are
in a parent, each of them must be there.  Out of scope: where the files come from (`gather`, `archive`).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sealpoint.checkpoint.tables import evidence
from sealpoint.checkpoint.tables.evidence import Kind
from sealpoint.checkpoint.tables.seen import Passing, Seen
from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import Pagemap, is_pagemap
from sealpoint.criu.roles import is_pages
from sealpoint.errors import FileError, UsageError
from sealpoint.format.constants import MAGIC, Role

if TYPE_CHECKING:
    from sealpoint.format.manifest import Entry
    from sealpoint.format.opened import OpenFile

FILES: Final = "files"  # the kind of what nobody asked to be images
ENCRYPTED: Final = "CRIUsec"  # the kind of images that nobody can read without a key
SEALED: Final = (
    "sealed"  # the kind of a sealed file in the place of images, which its sealer judged
)
_KEY_IMAGE: Final = "cipher.img"
PARENT: Final = "parent"  # by this name CRIU finds the images that it increments
_PROPERTY: Final = "kind"
# Who has one of these has a dump, or wants to.  Other names that end in .img may be anything.
_TELLING: Final = re.compile(
    r"(?:inventory|pstree|files|reg-files|cipher|(?:core|mm|ids|fs|fdinfo|pagemap|pagemap-shmem|pages)-\d+)\.img",
    re.ASCII,
)
_MAX_PARENTS: Final = 4096
_MAX_TABLES: Final = 512 * 1024 * 1024  # bytes of pagemaps that are held
_HINT: Final = "dump again; or, to keep the files as they are, use --as-files"
_IMAGES_OF: Final = "this sealed file holds the images of {}"
_OPEN_IT: Final = "open it where its other images are (sealpoint open), or seal a complete dump"
_ELSEWHERE: Final[dict[str, str]] = {
    Kind.INCREMENT: "an increment: other pages are in its parent",
    Kind.LAZY: "a lazy dump: other pages are still on the machine that made the dump",
    Kind.DEDUPLICATED: "a dump from which pages were freed: they are in a later one",
}


@dataclass(slots=True)
class ImageSet:
    """The images of one directory.  where: for messages.

    tables: its pagemaps as they are; stubs: names under which something stands in place of an image.
    linked: it says that it has a parent; parent: that, None where it is not within reach.
    """

    where: str
    seen: Seen = field(default_factory=Seen)
    tables: dict[str, bytes] = field(default_factory=dict)
    stubs: list[str] = field(default_factory=list)
    linked: bool = False
    parent: ImageSet | None = None

    @property
    def is_dump(self) -> bool:
        """Whether any of its names is one of CRIU's."""
        return any(_TELLING.fullmatch(name) for name in (*self.seen.sizes, *self.stubs))

    @property
    def continues(self) -> bool:
        """Whether some of its pages are in a parent."""
        return any(sums.parent for sums in self.seen.counted.values())

    def table(self, name: str) -> Pagemap:
        """A pagemap.  Raises FileError."""
        if name not in self.tables:
            raise FileError(f"{self.where}{name} is not there")
        return pagemap.decode(self.tables[name], f"{self.where}{name}")


class _Kept(Passing):
    """A pagemap, of which the bytes are kept beside what `Seen` makes of it."""

    def __init__(self, inner: Passing, keep: Callable[[bytes], None]) -> None:
        self._inner = inner
        self._data = bytearray()
        self._keep = keep

    def add(self, data: bytes | memoryview) -> None:
        self._data += data
        if len(self._data) > _MAX_TABLES:
            raise FileError(f"{self._inner.name} is absurdly large")
        self._inner.add(data)

    def end(self) -> None:
        self._inner.end()
        self._keep(bytes(self._data))


class Taken:
    """What goes into one sealed file.

    as_files: whatever it is, it was asked for as it is, and is not judged.
    """

    def __init__(self, *, as_files: bool = False) -> None:
        self.as_files = as_files
        self.sets: dict[str, ImageSet] = {}
        self._links: dict[str, str] = {}
        self._parts: set[str] = set()
        self._held = 0

    def image(self, name: str) -> Passing | None:
        """An object begins to pass; None where it is no image, or nobody asks.  For one thread."""
        prefix, base = _split(name)
        if self.as_files or not base.endswith(".img"):
            return None
        images = self.set(prefix)
        passing = images.seen.image(base)
        if not is_pagemap(base):
            return passing

        def keep(data: bytes) -> None:
            self._held += len(data)
            if self._held > _MAX_TABLES:
                raise FileError("the pagemaps are absurdly large")
            images.tables[base] = data

        return _Kept(passing, keep)

    def stub(self, name: str) -> None:
        """Something that has no contents goes into the file: a link, a device."""
        prefix, base = _split(name)
        if not self.as_files and base.endswith(".img"):
            self.set(prefix).stubs.append(base)

    def part(self, name: str) -> None:
        """A sealed file goes into the file, in place of a set of images."""
        self._parts.add(_split(name)[0])

    def link(self, name: str, target: str) -> None:
        """A link goes into the file; the one that matters is that to a parent."""
        prefix, base = _split(name)
        if base == PARENT and not self.as_files:
            self._links[prefix] = target

    def freed(self, name: str) -> None:
        """A pages image has holes: pages of it were freed."""
        prefix, base = _split(name)
        self.set(prefix).seen.holes.add(base)

    def set(self, prefix: str) -> ImageSet:
        """The one whose names begin so."""
        return self.sets.setdefault(prefix, ImageSet(prefix))

    def judge(self, what: str, *, hint: str = _HINT) -> dict[str, str]:
        """The kind of each set, by what its names begin with.

        what, hint: for messages.  Raises UsageError where there is no image, FileError where one is not whole.
        """
        if self.as_files:
            return {"": FILES}
        verdicts = self.verdicts()
        problems = [prefix + wrong for prefix, (_, all_) in verdicts.items() for wrong in all_]
        if problems:
            raise FileError(
                f"{what} is not a complete checkpoint: {evidence.said(problems)}", hint=hint
            )
        if not verdicts:
            raise UsageError(
                f"{what} holds no images of CRIU",
                hint="to seal any other files as they are, use --as-files",
            )
        return {prefix: kind for prefix, (kind, _) in verdicts.items()}

    def verdicts(self) -> dict[str, tuple[str, list[str]]]:
        """Kind of each set, and what speaks against its being whole."""
        self._join()
        found = {p: judge(s) for p, s in self.sets.items() if s.is_dump}
        # Images beside a sealed file are judged without it: they are no dump, since it has their inventory.
        sealed: dict[str, tuple[str, list[str]]] = {p: (SEALED, []) for p in self._parts}
        return dict(sorted((sealed | found).items()))

    def _join(self) -> None:
        """Sets and their parents, by links within an archive, or directories in the place of links."""
        for prefix, images in self.sets.items():
            link = self._links.get(prefix, PARENT if f"{prefix}{PARENT}/" in self.sets else None)
            if images.parent is None and link is not None:
                images.linked = True
                target = posixpath.normpath(posixpath.join(prefix or ".", link))
                images.parent = self.sets.get("" if target == "." else f"{target}/")

    @classmethod
    def of(
        cls,
        entries: Mapping[str, Entry],
        sizes: Mapping[str, int],
        read: Callable[[str], Iterable[bytes | memoryview]],
    ) -> Taken:
        """What a sealed file holds.  entries: of it; sizes: of its images, in bytes; read: an image, in pieces."""
        taken = cls()
        for name, size in sizes.items():
            attributes = (entries[name].attributes or {}) if name in entries else {}
            kind = attributes.get("type", "file")
            if kind == "symlink":
                taken.link(name, attributes["link"])
            if kind not in ("file", "directory"):
                taken.stub(name)
            if (
                kind == "file"
                and name.endswith(f"/{evidence.INVENTORY}")
                and _is_sealed(read(name))
            ):
                taken.part(name)
                continue
            passing = taken.image(name) if kind == "file" else None
            if passing is None:
                continue
            if is_pages(_split(name)[1]):
                passing.count(size)
            else:
                for piece in read(name):
                    passing.add(piece)
            passing.end()
        return taken

    def require_pages(self) -> None:
        """Raises FileError where pages of a set are neither in it nor in a parent that is here."""
        self._join()
        for prefix, images in sorted(self.sets.items()):
            if _KEY_IMAGE in images.seen.sizes or not images.is_dump:
                continue
            if not images.continues or images.parent is None:
                require_pages(images.seen, prefix)
            elif problems := list(_beyond(images)):
                raise FileError(
                    f"the memory in this sealed file is not complete: {prefix}{problems[0]}"
                )

    def parentless(self) -> tuple[str, ...]:
        """What the names of those sets begin with whose parent is not within reach."""
        sets = self.sets.items()
        return tuple(prefix for prefix, s in sets if s.continues and s.linked and s.parent is None)


def judge(images: ImageSet) -> tuple[str, list[str]]:
    """Its kind, and what speaks against its being whole: in itself, and in its parents."""
    if _KEY_IMAGE in images.seen.sizes:
        return ENCRYPTED, _encrypted(images)
    problems = _stubs(images)
    parent = images.parent
    known = () if not images.linked else None if parent is None else parent.seen.counted
    verdict = evidence.judge(images.seen, parent=known)
    problems += verdict.problems
    if images.continues and parent is not None and not problems:
        problems += _beyond(images)
    return str(verdict.kind or FILES), problems


def _stubs(images: ImageSet) -> list[str]:
    return [f"{name} is a link or a special file, without contents" for name in images.stubs]


def _encrypted(images: ImageSet) -> list[str]:
    """What can be seen without a key."""
    problems = _stubs(images)
    for name in (evidence.INVENTORY, evidence.PSTREE):
        if not images.seen.sizes.get(name):
            problems.append(f"{name} is missing")
    return problems


def _beyond(images: ImageSet) -> Iterator[str]:
    """What is wrong with pages that are in parents, near and far."""
    chain = list(_chain(images))
    if len(chain) > _MAX_PARENTS:
        yield "its chain of parents has no end"
        return
    for name, sums in sorted(images.seen.counted.items()):
        if not sums.parent:
            continue
        try:
            for _ in pagemap.resolve(lambda n, name=name: _nth(chain, n, name)):  # type: ignore[misc]
                pass
        except FileError as error:
            yield f"{name}: {error.message}"
            return
    for parent in chain[1:]:
        problems = [*parent.stubs, *evidence.judge(parent.seen).problems]
        if problems:
            yield f"{PARENT}: {parent.where}{evidence.said(problems)}"
            return


def _chain(images: ImageSet) -> Iterator[ImageSet]:
    at: ImageSet | None = images
    for _ in range(_MAX_PARENTS + 1):
        if at is None:
            return
        yield at
        at = at.parent


def _nth(chain: list[ImageSet], number: int, name: str) -> Pagemap:
    if number >= len(chain):
        raise FileError("pages are in a parent that is not there")
    return chain[number].table(name)


def properties(kinds: dict[str, str]) -> dict[str, str]:
    """How the manifest says them: `kind`, and for images below a directory `kind:DIRECTORY/`."""
    return {f"{_PROPERTY}:{p}" if p else _PROPERTY: kind for p, kind in kinds.items()}


def recorded(properties_: dict[str, str]) -> dict[str, str]:
    """The kinds that a manifest says, by prefix."""
    found = {}
    for key, value in properties_.items():
        name, _, prefix = key.partition(":")
        if name == _PROPERTY:
            found[prefix] = value
    return found


def require_alone(opened: OpenFile) -> None:
    """Raises FileError where a sealed file says that pages of its images are elsewhere, and not in a sealed parent."""
    kind = recorded(opened.manifests[Role.METADATA].properties).get("", "")
    if kind in _ELSEWHERE and opened.authentic.origin.parent is None:
        raise FileError(_IMAGES_OF.format(_ELSEWHERE[kind]), hint=_OPEN_IT)


def require_pages(seen: Seen, where: str = "") -> None:
    """Raises FileError where images that are to be all that there is lack pages, whatever their file says of them.

    where: for the message.
    """
    problems = [where + problem for problem in evidence.lacking(seen)]
    if problems:
        raise FileError(
            f"the memory in this sealed file is not complete: {evidence.said(problems)}",
            hint=_OPEN_IT,
        )


def _is_sealed(pieces: Iterable[bytes | memoryview]) -> bool:
    return bytes(next(iter(pieces), b"")[: len(MAGIC)]) == MAGIC


def _split(name: str) -> tuple[str, str]:
    directory, slash, base = name.rpartition("/")
    return directory + slash, base

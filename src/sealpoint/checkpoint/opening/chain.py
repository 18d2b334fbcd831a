"""A chain of increments: each file's parents, found beside it by checkpoint id, and held to what the origins say.

A parent is looked for in CRIU's own arrangement (the link `parent` in the images directory) and in the directory of its
child, or in its store; a name is only a hint, what counts is the id and the origin digest in the child's signed
statement.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.errors import FileError, PolicyError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import ID_SIZE, MAGIC, MAX_CHAIN, PREAMBLE_SIZE
from sealpoint.format.opened import OpenFile
from sealpoint.format.raw import Descriptor
from sealpoint.format.reader import SealedFile
from sealpoint.format.statement import Origin, ParentRef
from sealpoint.keys import Identity, TrustPolicy
from sealpoint.keys.load import in_file
from sealpoint.store import properties
from sealpoint.store.location import is_url, open_remote, open_store

PARENT_LINK: Final = "parent"  # CRIU's CR_PARENT_LINK
# The sealed file in an images directory of the drop-in: podman and CRI-O look for that name before they call criu.
SEALED_IMAGE: Final = "inventory.img"
_ID_AT: Final = 16  # in the preamble
_MAX_NAMES: Final = 65536  # looked at in one directory
_SPARE_DESCRIPTORS: Final = 256


class ChainLink(NamedTuple):
    """One file of a chain.  path: as it was found."""

    path: str
    checkpoint: CheckedFile

    @property
    def reference(self) -> ParentRef:
        """By which others name it."""
        return self.checkpoint.authentic.reference


class Finder:
    """Finds sealed files by checkpoint id.  Directories are read once each."""

    def __init__(self, directories: Sequence[str] = ()) -> None:
        """`directories`: where else to look than beside the child.  Raises UsageError."""
        for directory in directories:
            if not is_url(directory) and not os.path.isdir(directory):
                raise UsageError(f"{directory} is not a directory")
        self._directories = tuple(directories)
        self._known: dict[str, dict[bytes, list[str]]] = {}
        self._stand_ins: dict[str, dict[bytes, list[str]]] = {}

    def find(self, checkpoint_id: bytes, child: str | None) -> list[str]:
        """Paths of files that claim that id, the likeliest first.  `child`: path of the file whose parent it is."""
        found: list[str] = []
        beside = (
            [] if child is None else [child if is_url(child) else os.path.dirname(child) or "."]
        )
        for directory in beside:
            linked = f"{directory}/{PARENT_LINK}/{SEALED_IMAGE}"
            if claimed_id(linked) == checkpoint_id:
                found.append(linked)
        for directory in (*beside, *self._directories):
            found += self._files(directory).get(checkpoint_id, [])
        for directory in (*beside, *(f"{d}/{PARENT_LINK}" for d in beside), *self._directories):
            if not found:
                found += self._merged(directory).get(checkpoint_id, [])
        return list(dict.fromkeys(found))

    def _files(self, directory: str) -> dict[bytes, list[str]]:
        if directory not in self._known:
            if is_url(directory):
                self._known[directory], self._stand_ins[directory] = _stored_files(directory)
            else:
                self._known[directory] = sealed_files(directory)
        return self._known[directory]

    def _merged(self, directory: str) -> dict[bytes, list[str]]:
        """By the id of the file for which they stand.  Nothing of it is authentic."""
        if is_url(directory):
            self._files(directory)
        if directory not in self._stand_ins:
            table = self._stand_ins[directory] = {}
            for path in (p for paths in self._files(directory).values() for p in paths):
                origin = claimed_origin(path)
                if origin is not None and origin.stands_for is not None:
                    table.setdefault(origin.stands_for.checkpoint_id, []).append(path)
        return self._stand_ins[directory]


def claimed_id(path: str) -> bytes | None:
    """The checkpoint id in the first bytes of a sealed file, which prove nothing; None if it is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        head = os.pread(fd, PREAMBLE_SIZE, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
    if len(head) < PREAMBLE_SIZE or head[: len(MAGIC)] != MAGIC:
        return None
    return head[_ID_AT : _ID_AT + ID_SIZE]


def claimed_origin(path: str) -> Origin | None:
    """What a sealed file says of itself, which proves nothing; None if it is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    try:
        return Origin.decode(SealedFile(Descriptor(fd)).origin_envelope.payload)
    except (FileError, SystemEnvironmentError):
        return None
    finally:
        os.close(fd)


def sealed_files(directory: str) -> dict[bytes, list[str]]:
    """The sealed files of a directory by the checkpoint id that they claim."""
    found: dict[bytes, list[str]] = {}
    try:
        with os.scandir(directory) as entries:
            names = sorted(
                e.name for e, _ in zip(entries, range(_MAX_NAMES), strict=False) if e.is_file()
            )
    except OSError:
        return found
    for name in names:
        path = os.path.join(directory, name)
        if (identifier := claimed_id(path)) is not None:
            found.setdefault(identifier, []).append(path)
    return found


def _stored_files(url: str) -> tuple[dict[bytes, list[str]], dict[bytes, list[str]]]:
    """The sealed files of a store, beside and below one, by the id that they claim, and by that for which they stand.

    The store tells their properties.  A file without, which another program put there, is asked itself.
    Raises UsageError, SystemEnvironmentError.
    """
    found: dict[bytes, list[str]] = {}
    stand_ins: dict[bytes, list[str]] = {}
    for stored, _ in zip(open_store(url).list(), range(_MAX_NAMES), strict=False):
        told = stored.properties
        if not told:
            try:
                with contextlib.closing(open_remote(stored.name)) as source:
                    told = properties.describe(source)
            except (FileError, UsageError):
                continue
        if (own := properties.checkpoint_id(told)) is not None:
            found.setdefault(own, []).append(stored.name)
        if (instead := properties.checkpoint_id(told, properties.STANDS_FOR)) is not None:
            stand_ins.setdefault(instead, []).append(stored.name)
    return found, stand_ins


def newest_in(directory: str) -> str | None:
    """The sealed file that a directory stands for, None if there is none.

    That is `inventory.img`, where an engine has it; the only one; or of increments the last of their chain.  Which one
    that is follows from statements that are not verified yet: opening the file verifies it.
    Raises UsageError if several are no parent of another.
    """
    if claimed_id(f"{directory}/{SEALED_IMAGE}") is not None:
        return f"{directory}/{SEALED_IMAGE}"
    files = sorted((p, i) for i, paths in sealed_files(directory).items() for p in paths)
    if len(files) < 2:
        return files[0][0] if files else None
    parents: set[bytes] = set()
    for path, _ in files:
        origin = claimed_origin(path)
        if origin is not None and origin.parent is not None:
            parents.add(origin.parent.checkpoint_id)
    last = [path for path, identifier in files if identifier not in parents]
    if len(last) == 1:
        return last[0]
    raise UsageError(
        f"{directory} holds several sealed files that are not increments of one another",
        hint=f"name one of them, for instance {(last or [files[0][0]])[0]}",
    )


class Chain:
    """The files of a chain, newest first, all authentic.  A context manager that closes them."""

    def __init__(self, top: ChainLink, policy: TrustPolicy, finder: Finder) -> None:
        """Takes over `top`.  Its parents are found when they are asked for."""
        self.links = [top]
        self._policy, self._finder = policy, finder
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str,
        policy: TrustPolicy,
        *,
        directories: Sequence[str] = (),
        spool: str | None = None,
        progress: Callable[[int], None] = lambda _: None,
        stores: Sequence[str] = (),
    ) -> Chain:
        """The file at `path` ("-": standard input) and all its parents.

        Raises FileError (a parent is missing, another than the one named, or freed for a file that is not in the
        chain), PolicyError, UsageError.
        """
        finder = Finder(directories)
        top = CheckedFile.open(path, policy, spool=spool, progress=progress, stores=stores)
        chain = cls(ChainLink(path, top), policy, finder)
        try:
            chain.complete()
        except BaseException:
            chain.close()
            raise
        return chain

    def extend(self) -> bool:
        """Open one parent more; False where the chain has its first file already.  Raises FileError, PolicyError."""
        if self.links[-1].checkpoint.authentic.origin.parent is None:
            return False
        self.links.append(_open_parent(self.links, self._finder, self._policy, self.top.stores))
        return True

    def complete(self) -> None:
        """Open all parents.  Raises FileError, PolicyError."""
        while self.extend():
            pass
        self._check_pruned()

    @property
    def top(self) -> CheckedFile:
        """The newest file: what a restore restores."""
        return self.links[0].checkpoint

    def unlock(self, identities: Sequence[Identity]) -> list[OpenFile]:
        """All files, newest first.  Raises IdentityError, FileError."""
        opened = []
        for link in self.links:
            try:
                opened.append(link.checkpoint.unlock(identities))
            except FileError as error:
                raise in_file(error, link.path) from None
        return opened

    def _check_pruned(self) -> None:
        above: set[tuple[bytes, bytes]] = set()
        for link in self.links:
            prune = link.checkpoint.authentic.prune
            if prune is not None:
                child = (prune.child.checkpoint_id, prune.child.origin_digest)
                if child not in above:
                    raise FileError(
                        f"{link.path}: parts of it were freed when checkpoint {child[0].hex()} replaced them",
                        hint="restore that checkpoint, or one that continues it",
                    )
            for reference in (link.reference, link.checkpoint.authentic.origin.stands_for):
                if reference is not None:
                    above.add((reference.checkpoint_id, reference.origin_digest))

    def close(self) -> None:
        """Let go of the files; what is public of them stays known."""
        if not self._closed:
            self._closed = True
            for link in self.links:
                link.checkpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open_parent(
    links: list[ChainLink], finder: Finder, policy: TrustPolicy, stores: Sequence[str]
) -> ChainLink:
    """The parent of the last file.  Raises FileError, PolicyError."""
    child = links[-1]
    origin = child.checkpoint.authentic.origin
    wanted = origin.parent
    assert wanted is not None
    if len(links) >= MAX_CHAIN or origin.chain_sequence > MAX_CHAIN:
        raise FileError(f"the chain has more than {MAX_CHAIN} files")
    _allow_descriptors(len(links))
    name = f"checkpoint {wanted.checkpoint_id.hex()}"
    paths = finder.find(wanted.checkpoint_id, None if child.path == "-" else child.path)
    if not paths:
        raise FileError(
            f"{_shown(child.path)}: its parent, {name}, is missing: it is not beside it",
            hint="put the file beside it, or name its directory with --parents",
        )
    problem: FileError | PolicyError | None = None
    for path in paths:
        try:
            parent = CheckedFile.open(path, policy, stores=stores)
        except (FileError, PolicyError) as error:
            problem = problem or error
            continue
        try:
            _check_parent(child, ChainLink(path, parent))
        except FileError as error:
            parent.close()
            problem = problem or error
            continue
        return ChainLink(path, parent)
    assert problem is not None
    raise problem


def _check_parent(child: ChainLink, parent: ChainLink) -> None:
    """Raises FileError unless `parent` is the very file that `child` continues, or stands for it."""
    below, above = parent.checkpoint.authentic.origin, child.checkpoint.authentic.origin
    exact = parent.reference == above.parent
    if not exact and below.stands_for != above.parent:
        raise FileError(
            f"{parent.path}: is not the parent of {_shown(child.path)}, although it has its checkpoint id"
        )
    follows = below.chain_sequence + 1 == above.chain_sequence
    if above.kind == "merged" or not exact:  # files between the two may be gone
        follows = below.chain_sequence < above.chain_sequence
    if (
        not follows
        or (exact and below.chain_root != above.chain_root)
        or below.workload != above.workload
    ):
        raise FileError(
            f"{_shown(child.path)}: its place in the chain is not that after {parent.path}"
        )


def _shown(path: str) -> str:
    return "standard input" if path == "-" else path


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

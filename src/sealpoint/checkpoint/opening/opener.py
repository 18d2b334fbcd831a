"""The one way to open a checkpoint: trust, file, parents, keys, pages beside it, chunks of a store, in this order.

Every command, the drop-in, podman and the readers come through here, so none can forget a step or do it by other rules.
Keys are asked for when the file is authentic, and not before.  Out of scope: what is done with it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from sealpoint.checkpoint.opening import parts, separate_pages
from sealpoint.checkpoint.opening.access import CheckedFile, authenticate, require_trust
from sealpoint.checkpoint.opening.chain import Chain, ChainLink, Finder
from sealpoint.checkpoint.opening.expectation import ANY, Expectation
from sealpoint.checkpoint.opening.flat import Flat, FlatImage
from sealpoint.checkpoint.opening.stored_pages import require_chunks
from sealpoint.criu import schema
from sealpoint.errors import (
    FileError,
    IdentityError,
    PolicyError,
    SystemEnvironmentError,
    UsageError,
)
from sealpoint.format.opened import OpenFile
from sealpoint.format.raw import ByteSource, Descriptor
from sealpoint.format.reader import AuthenticFile
from sealpoint.format.statement import Origin, ParentRef
from sealpoint.keys import Identity, TrustPolicy, VerifiedSignature, load_trust
from sealpoint.keys.load import in_file
from sealpoint.store.location import open_remote
from sealpoint.store.locks import writing

if TYPE_CHECKING:
    from sealpoint.store.ranges import RemoteSource

STANDARD_INPUT: Final = "-"
_READ_LIMIT: Final = 256 * 1024 * 1024

Keys = Callable[[], Sequence[Identity]]


def _no_keys() -> Sequence[Identity]:
    return ()


@dataclass(frozen=True)
class Opening:
    """How to open checkpoints.

    trust: whom to believe; identities: called once, when the file is authentic and its contents are asked for.
    parents, stores: directories where else than beside a file its parents and stored chunks may lie.  spool: where what
    comes from a pipe is held, None in memory; limit: bytes of it at most, None for what `limits` says; progress: gets
    the bytes of it as they arrive.  expected: which checkpoint it must be.

    alone: parents are left out of it.  lenient: parents and a pages file that are not there are an error when they are
    needed, not before.  unproven: for showing what a file says of itself and who signed it, to nobody who would believe
    it for that; without, somebody must be trusted, or `trust` allow what is unsigned.
    """

    trust: TrustPolicy
    identities: Keys = _no_keys
    parents: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    spool: str | None = None
    limit: int | None = None
    progress: Callable[[int], None] = field(default=lambda _: None)
    expected: Expectation = ANY
    alone: bool = False
    lenient: bool = False
    unproven: bool = False

    def require_trust(self) -> None:
        """Raises PolicyError where nobody is trusted, before there is anything to open."""
        if not self.unproven:
            # A policy that only finds out who signed is no answer to whom to believe.
            require_trust(self.trust if not self.trust.names_only else TrustPolicy())

    def open(self, path: str) -> OpenedCheckpoint:
        """The checkpoint at `path`, "-" for standard input.

        Raises PolicyError, FileError, UsageError, SystemEnvironmentError.
        """
        self.require_trust()
        finder = Finder(self.parents)
        top = CheckedFile.open(
            path,
            self.trust,
            spool=self.spool,
            progress=self.progress,
            stores=self.stores,
            limit=self.limit,
        )
        return self._begin(ChainLink(path, top), finder)

    def take(self, source: ByteSource, path: str = STANDARD_INPUT) -> OpenedCheckpoint:
        """As `open`, from `source`, which it takes over, and closes if it fails."""
        try:
            self.require_trust()
            finder = Finder(self.parents)
            where = None if path == STANDARD_INPUT else path
            top = CheckedFile.of(source, self.trust, path=where, stores=self.stores)
        except BaseException:
            source.close()
            raise
        return self._begin(ChainLink(path, top), finder)

    @contextlib.contextmanager
    def change(
        self, path: str, *, repair: bool = False, mend: Callable[[int], object] = lambda _: None
    ) -> Iterator[Changing]:
        """The file at `path`, to be changed in place; no other writer is at work in the meantime.

        repair: also where a rekey was interrupted; mend: called with the descriptor before anything is believed.
        Raises PolicyError, FileError, UsageError, SystemEnvironmentError.
        """
        self.require_trust()
        fd = _open_to_write(path)
        try:
            with writing(fd, path):
                mend(fd)
                authentic, _ = authenticate(Descriptor(fd), self.trust, repair=repair)
                self.expected.check(authentic)
                yield Changing(fd, authentic)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def change_stored(self, url: str, *, repair: bool = False) -> Iterator[ChangingStored]:
        """As `change`, of a file in a store, whose head `Store.replace_head` can replace."""
        self.require_trust()
        with contextlib.closing(open_remote(url)) as source:
            authentic, _ = authenticate(source, self.trust, repair=repair)
            self.expected.check(authentic)
            yield ChangingStored(source, authentic)

    def _begin(self, top: ChainLink, finder: Finder) -> OpenedCheckpoint:
        checkpoint = OpenedCheckpoint(Chain(top, self.trust, finder), self)
        try:
            self._check_expected(checkpoint)
            if not (self.alone or self.lenient):
                checkpoint.complete()
        except BaseException:
            checkpoint.close()
            raise
        return checkpoint

    def _check_expected(self, checkpoint: OpenedCheckpoint) -> None:
        try:
            self.expected.check(checkpoint.authentic)
        except PolicyError as error:
            raise in_file(error, checkpoint.label) from None


class Changing(NamedTuple):
    """An authentic file that is open for writing.  fd: a descriptor that ends with the change."""

    fd: int
    authentic: AuthenticFile


class ChangingStored(NamedTuple):
    """An authentic file in a store.  source: is closed at the end of the change."""

    source: RemoteSource
    authentic: AuthenticFile


def _open_to_write(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist",
            hint="rekey changes a file in place" if path == STANDARD_INPUT else None,
        ) from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory", hint="name a sealed file") from None
    except OSError as error:
        raise SystemEnvironmentError(f"cannot write {path}: {error.strerror}") from None


class Task(NamedTuple):
    """A process of a checkpoint, from its images.  parent: pid, 0 for the root."""

    pid: int
    parent: int
    command: bytes


class OpenedCheckpoint:
    """An authentic checkpoint: a sealed file, its parents, and what lies beside them.  A context manager."""

    def __init__(self, chain: Chain, opening: Opening) -> None:
        """Takes over `chain`; see `open`."""
        self._chain, self._opening = chain, opening
        self._identities: Sequence[Identity] | None = None
        self._own: dict[int, OpenFile] = {}
        self._joined: dict[int, OpenFile] = {}
        self._parts: dict[int, list[parts.SealedPart]] = {}
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str,
        *,
        trust: TrustPolicy | Iterable[str] = (),
        identities: Sequence[Identity] | Keys = (),
        allow_unsigned: bool = False,
        parents: Sequence[str] = (),
        stores: Sequence[str] = (),
        spool: str | None = None,
        progress: Callable[[int], None] = lambda _: None,
        workloads: Sequence[str] = (),
        expect: Sequence[str] = (),
    ) -> OpenedCheckpoint:
        """The checkpoint at `path` ("-": standard input), if it is whole and somebody in `trust` signed all of it.

        trust: a policy, or signers as --trust names them; allow_unsigned: whoever made it.  identities: private keys,
        or a call that loads them.  workloads, expect: which checkpoint it must be, by workload, and by id or origin
        digest.  Raises PolicyError, FileError, UsageError, SystemEnvironmentError.
        """
        policy = trust if isinstance(trust, TrustPolicy) else load_trust(trust)
        if allow_unsigned:
            policy = policy._replace(allow_unsigned=True)
        keys = identities if callable(identities) else lambda: identities
        opening = Opening(
            policy,
            keys,
            tuple(parents),
            tuple(stores),
            spool=spool,
            progress=progress,
            expected=Expectation.of(workloads, expect),
        )
        return opening.open(path)

    # What is public

    @property
    def links(self) -> list[ChainLink]:
        """Its files, newest first, as far as they were opened."""
        return self._chain.links

    @property
    def top(self) -> CheckedFile:
        """The newest file: the one that was named."""
        return self._chain.top

    @property
    def path(self) -> str:
        """As it was named."""
        return self._chain.links[0].path

    @property
    def label(self) -> str:
        """For messages."""
        return shown(self.path)

    @property
    def authentic(self) -> AuthenticFile:
        """The public parts of the newest file."""
        return self.top.authentic

    @property
    def origin(self) -> Origin:
        """What the sealer of the newest file signed."""
        return self.authentic.origin

    @property
    def reference(self) -> ParentRef:
        """By which this checkpoint is told from others."""
        return self.authentic.reference

    @property
    def signers(self) -> tuple[VerifiedSignature, ...]:
        """Of the newest file."""
        return self.top.signers

    def extend(self) -> bool:
        """Open one parent more; False where there is none.  Raises FileError, PolicyError."""
        self.require_open()
        return self._chain.extend()

    def complete(self) -> None:
        """Open all parents.  Raises FileError, PolicyError."""
        self.require_open()
        self._chain.complete()

    # What takes keys

    def identities(self) -> Sequence[Identity]:
        """The keys."""
        if self._identities is None:
            self._identities = self._opening.identities()
        return self._identities

    def own(self, number: int = 0) -> OpenFile:
        """One of `links` without what lies beside it.  Raises IdentityError, FileError, UsageError."""
        self.require_open()
        if number not in self._own:
            link = self.links[number]
            try:
                self._own[number] = link.checkpoint.unlock(self.identities())
            except FileError as error:
                raise in_file(error, shown(link.path)) from None
        return self._own[number]

    def file(self, number: int = 0) -> OpenFile:
        """One of `links`, with its pages file.  Raises IdentityError, FileError, PolicyError, UsageError."""
        self.require_open()
        if number not in self._joined:
            main, directory = self.own(number), os.path.dirname(self.links[number].path)
            absent = self._opening.lenient and separate_pages.is_missing(main, directory)
            if not absent:
                opening = self._opening
                main = separate_pages.join(
                    main, directory, opening.trust, self.identities(), opening.stores
                )
            try:
                self._parts[number] = parts.check(main, self._opening.trust)
            except (FileError, PolicyError) as error:
                raise in_file(error, shown(self.links[number].path)) from None
            self._joined[number] = main
        return self._joined[number]

    def parts(self, number: int = 0) -> list[parts.SealedPart]:
        """The sealed files inside one of `links`.  Raises what `file` raises."""
        self.file(number)
        return self._parts[number]

    def inside(self, number: int = 0) -> OpenFile:
        """As `file`, with the images of `parts` in their place, as far as the keys open them."""
        return parts.look_through(self.file(number), self.parts(number), self.identities())

    def files(self) -> list[OpenFile]:
        """All files, newest first.  Raises what `complete` and `file` raise."""
        if not self._opening.alone:
            self.complete()
        return [self.file(number) for number in range(len(self.links))]

    def whole(self) -> list[OpenFile]:
        """As `files`, for making another file of them.  Raises IdentityError where the keys open metadata only."""
        files = self.files()
        if not all(opened.has_memory for opened in files):
            raise IdentityError(
                "this identity opens only metadata: it cannot copy the memory of a checkpoint",
                hint="use an identity that the checkpoint was sealed to with -r",
            )
        return files

    @functools.cached_property
    def flat(self) -> Flat:
        """All files as one full set of images.  Raises what `files` raises."""
        return Flat(self.files())

    def flat_from(self, number: int) -> Flat:
        """As `flat`, of the checkpoint that one of `links` is.  Raises what `files` raises."""
        return Flat(self.files()[number:]) if number else self.flat

    @property
    def images(self) -> Mapping[str, ImageData]:
        """The images by name, whole.  Raises what `files` raises."""
        self.require_open()
        flat = self.flat
        return {name: ImageData(flat, image, self) for name, image in flat.images.items()}

    def tree(self) -> Iterator[Task]:
        """The processes, parents before children; of a pre-dump none.  Raises FileError, IdentityError."""
        images = self.images
        if "pstree.img" not in images:
            return
        for entry in schema.records(images["pstree.img"].read(), "pstree_entry", "pstree.img"):
            core = images.get(f"core-{entry.pid}.img")
            command = b""
            if core is not None:
                first = next(schema.records(core.read(), "core_entry", core.name), None)
                command = bytes(first.tc.comm) if first is not None else b""
            yield Task(int(entry.pid), int(entry.ppid), command)

    def require_chunks(self) -> None:
        """See that every stored chunk is there.  Raises FileError, SystemEnvironmentError."""
        require_chunks(self.files())

    def verify(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Authenticate every byte of every file within reach of the keys.  Raises FileError, SystemEnvironmentError.

        progress: gets plaintext bytes.
        """
        for number, opened in enumerate(self.files()):
            opened.verify_all(progress)
            for part in self.parts(number):
                parts.verify(part, self.identities(), progress)

    def close(self) -> None:
        """Let go of all files; what is public of them stays known."""
        self._closed = True
        joined, self._joined = self._joined, {}
        for opened in joined.values():
            if isinstance(opened, separate_pages.WithPages):
                opened.close()
        self._chain.close()

    def require_open(self) -> None:
        """Raises UsageError after `close`."""
        # The numbers of its descriptors may be those of other files by now, which would be read in their place.
        if self._closed:
            raise UsageError(f"{self.label} was closed", hint="open it again")

    def __enter__(self) -> Self:
        self.require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ImageData(NamedTuple):
    """An image of a checkpoint."""

    flat: Flat
    image: FlatImage
    checkpoint: OpenedCheckpoint

    @property
    def name(self) -> str:
        """As CRIU calls it."""
        return self.image.name

    @property
    def size(self) -> int:
        """Bytes."""
        return self.image.size

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, piece by piece; each is overwritten by the next.  Raises FileError, UsageError."""
        self.checkpoint.require_open()
        for piece in self.flat.read(self.image):
            yield piece
            self.checkpoint.require_open()

    def read(self, limit: int = _READ_LIMIT) -> bytes:
        """All of it.  Raises FileError also if it is larger than `limit` bytes."""
        if self.size > limit:
            raise FileError(f"{self.name} is larger than {limit} bytes")
        data = bytearray()
        for piece in self.pieces():
            data += piece
        return bytes(data)


def shown(path: str) -> str:
    """A file as messages name it."""
    return "standard input" if path == STANDARD_INPUT else path

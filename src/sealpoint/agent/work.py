"""One archive that was taken over: sealed, put into the store, removed.  Each step can be killed, and is gone on with.

The order is what makes it safe.  Before the store is asked to give the sealed file its name, the queue has its id on
disk.  So after a crash the store says whether that file is there: if it is, and we have signed it, the archive is
removed; if not, the archive is sealed again.  Only the inode that was read is removed, and only as it was read.
"""

from __future__ import annotations

import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sealpoint.agent.claim import FileState, WatchedDirectory, has_lease
from sealpoint.agent.depot import Depot, file_name, is_ours
from sealpoint.agent.faults import ChangedError, DepotError, GoneError, RefusedArchiveError
from sealpoint.agent.journal import AgentQueue, ClaimedArchive, Kept
from sealpoint.agent.sealings import NodeSealing
from sealpoint.agent.settings import Settings
from sealpoint.checkpoint import seal
from sealpoint.errors import (
    FileError,
    OmissionWarning,
    SealpointError,
    SystemEnvironmentError,
    UsageError,
)
from sealpoint.format.constants import PREAMBLE_SIZE
from sealpoint.format.preamble import Preamble
from sealpoint.inspect import listing
from sealpoint.inspect.container import Container
from sealpoint.inspect.listing import Whose
from sealpoint.progress import Report

if TYPE_CHECKING:
    from sealpoint.dropin.pod import Pod
    from sealpoint.store.output import Buffer, Target

_NANO: Final = 1_000_000_000
_ATTEMPTS: Final = (
    63  # that are remembered besides the newest: one of them may still come to its end in the store
)


@dataclass(frozen=True, slots=True)
class SealedArchive:
    """What came of an archive.  plain, size: bytes of archive and sealed file; seconds: it needed.

    removed: whether the archive was removed here; else somebody else was faster.  linked: whether it has another name.
    """

    url: str
    plain: int
    size: int
    seconds: float
    removed: bool
    linked: bool


class Worker:
    """Does the work.  One thread."""

    def __init__(
        self,
        settings: Settings,
        sealing: NodeSealing,
        journal: AgentQueue,
        depot: Depot,
        report: Report,
    ) -> None:
        self._settings, self._sealing, self._journal = settings, sealing, journal
        self._depot = depot
        self._report = report

    def run(self, entry: ClaimedArchive, directory: WatchedDirectory) -> SealedArchive:
        """Raises RefusedArchiveError, GoneError, UnfinishedError, ChangedError, DepotError, SystemEnvironmentError."""
        began = time.monotonic()
        stored = self._stored(entry)
        with directory.opened(entry.claim, self._settings.max_size) as fd:
            if stored is not None and FileState.of(os.fstat(fd)) == entry.state:
                entry, size = stored
            else:  # what the store has of it, if anything, is another state of it, which is nobody's loss to keep
                entry, size = self._seal(entry if stored is None else _anew(entry), directory, fd)
            assert entry.state is not None
            removed = True
            try:
                directory.remove(entry.claim, fd, entry.state)
            except GoneError:
                removed = False
            linked = os.fstat(fd).st_nlink > 0
        self.finish(entry, size)
        seconds = time.monotonic() - began
        return SealedArchive(entry.url, entry.state.size, size, seconds, removed, linked)

    def settled(self, entry: ClaimedArchive) -> bool:
        """Whether an archive that is not there any more is in the store, so that a crash came after its removal.

        Raises DepotError.
        """
        stored = self._stored(entry)
        if stored is None:
            return False
        self.finish(*stored)
        return True

    def finish(self, entry: ClaimedArchive, size: int) -> None:
        """It is in the store, and the archive is gone."""
        if self._settings.retention.limits and entry.state is not None:
            kept = Kept(
                entry.identifier,
                entry.container,
                entry.url,
                entry.attempts[-1],
                size,
                entry.state.modified,
            )
            self._journal.keep(kept)
        self._journal.drop(entry)

    def _stored(self, entry: ClaimedArchive) -> tuple[ClaimedArchive, int] | None:
        """The sealed file that the store has of it already, as its one attempt, and its size; None if it has none."""
        if not entry.attempts:
            return None
        with _of_the_store():
            found = self._depot.identifier(entry.url)
            if found is None or found not in entry.attempts:
                return None
            size = is_ours(entry.url, found, self._sealing.everybody.signing.signers)
        return None if size is None else (entry._replace(attempts=(found,)), size)

    def _seal(
        self, entry: ClaimedArchive, directory: WatchedDirectory, fd: int
    ) -> tuple[ClaimedArchive, int]:
        before = FileState.of(os.fstat(fd))
        self._check_space(before.size)
        with _of_the_store():
            taken = bool(entry.attempts) and self._depot.identifier(entry.url) is not None
        if taken or entry.state not in (None, before):
            entry = _anew(entry)
        told = self._told(entry, fd)
        pod = self._sealing.pod(entry.name, told.annotations)
        if not entry.url:
            whose = Whose.of(entry.name, told) if pod is None else pod
            entry = self._place(entry, before, whose)
        held = [entry]

        def note(checkpoint: str) -> None:
            self._check_unchanged(directory, entry, fd, before)
            attempts = (*held[0].attempts[-_ATTEMPTS:], checkpoint)
            held[0] = self._journal.put(held[0]._replace(attempts=attempts, state=before))

        with (
            self._faults(entry, fd),
            self._output(entry.url) as out,
            open(os.dup(fd), "rb") as file,
        ):
            file.seek(0)
            sealed = seal(
                entry.name,
                _Noted(out, note),
                self._sealing.of(pod),
                report=self._report,
                file=file,
                workload=self._sealing.workload(pod),
            )
        return held[0], sealed.file_size

    def _output(self, url: str) -> AbstractContextManager[Target]:
        with _of_the_store():
            return self._depot.output(url)

    @contextmanager
    def _faults(self, entry: ClaimedArchive, fd: int) -> Iterator[None]:
        """What is wrong with the archive is told from what is wrong with the store."""
        try:
            yield
        except (FileError, UsageError) as error:
            if not os.fstat(fd).st_nlink:
                raise GoneError(f"{entry.name} was removed by someone else") from None
            if not has_lease(fd):
                raise ChangedError(f"someone is writing to {entry.name} again") from None
            raise RefusedArchiveError(error.message, hint=error.hint) from None

    def _check_space(self, size: int) -> None:
        """Before anything is read.  Raises SystemEnvironmentError."""
        with _of_the_store():
            free = self._depot.free()
        if free is not None and free - size < self._settings.min_free:
            raise SystemEnvironmentError(
                f"space is short: {self._depot.name} has {free} bytes, and an archive of {size} bytes would leave less "
                f"than {self._settings.min_free}",
                hint="free some space; --min-free SIZE says how much must be left",
            )

    def _place(self, entry: ClaimedArchive, state: FileState, whose: Whose | Pod) -> ClaimedArchive:
        """Decide where it goes, durably."""
        container = (whose.namespace, whose.pod, whose.container)
        unique = secrets.token_hex(16) if entry.container != ("", "", "") else entry.identifier
        name = file_name(container, entry.name, state.modified // _NANO, unique)
        url = self._depot.place(name)
        return self._journal.put(
            entry._replace(container=container, url=url, attempts=(), state=None)
        )

    def _told(self, entry: ClaimedArchive, fd: int) -> Container:
        """What the archive says of its container; nothing where it has several dumps, or none: sealing decides."""
        with warnings.catch_warnings():  # what is left out here is sealed all the same
            warnings.simplefilter("ignore", OmissionWarning)
            try:
                return listing.container_of(entry.name, fd)
            except SealpointError:
                return Container()

    @staticmethod
    def _check_unchanged(
        directory: WatchedDirectory, entry: ClaimedArchive, fd: int, before: FileState
    ) -> None:
        """Raises GoneError, ChangedError."""
        status = os.fstat(fd)
        named = directory.state(entry.claim)
        if not status.st_nlink or named is None:
            raise GoneError(f"{entry.name} was removed by someone else")
        if not has_lease(fd) or FileState.of(status) != before or named != before:
            raise ChangedError(f"{entry.name} was changed while it was sealed")


def _anew(entry: ClaimedArchive) -> ClaimedArchive:
    """The same, to be sealed under another name."""
    return entry._replace(url="", attempts=(), state=None)


@contextmanager
def _of_the_store() -> Iterator[None]:
    """What a store cannot do, refuses or answers wrongly is no fault of the archive."""
    try:
        yield
    except SealpointError as error:
        raise DepotError(error.message, hint=error.hint) from None


class _Noted:
    """A Target that tells the id of the sealed file before it is committed, so that a crash can be told apart."""

    def __init__(self, out: Target, note: Callable[[str], None]) -> None:
        self._out, self._note = out, note
        self._head = b""
        self.committed = False

    def write(self, *buffers: Buffer) -> None:
        for buffer in buffers:
            if len(self._head) >= PREAMBLE_SIZE:
                break
            self._head += bytes(buffer[: PREAMBLE_SIZE - len(self._head)])
        with _of_the_store():
            self._out.write(*buffers)

    def sync(self) -> None:
        with _of_the_store():
            self._out.sync()

    def commit(self) -> None:
        self._note(Preamble.decode(self._head).checkpoint_id.hex())
        with _of_the_store():
            self._out.commit()
        self.committed = self._out.committed

    def cancel(self) -> None:
        self._out.cancel()

    def mark_failed(self) -> str | None:
        return self._out.mark_failed()

"""The agent: looks, seals, waits; what fails is said and done again, later and later while the store is down."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Self

from sealpoint.agent.depot import Depot, open_depot
from sealpoint.agent.expiry import expire
from sealpoint.agent.faults import DepotError, GoneError, RefusedArchiveError
from sealpoint.agent.figures import Figures
from sealpoint.agent.inotify import Inotify
from sealpoint.agent.journal import AgentQueue, ClaimedArchive
from sealpoint.agent.scan import DirectoryScanner, age
from sealpoint.agent.settings import Settings
from sealpoint.agent.work import SealedArchive, Worker
from sealpoint.errors import SealpointError, SystemEnvironmentError, UsageError

if TYPE_CHECKING:
    from sealpoint.agent.sealings import NodeSealing
    from sealpoint.progress import Progress

Say = Callable[[str], None]
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 300.0
_SOON: Final = 0.2  # seconds until a file that is written is looked at again, at first
_TICK: Final = 1.0
_AGAIN: Final = 2.0  # seconds until an archive is tried again that failed by itself, at first
_HOUR: Final = 3600.0


class StopAgent(BaseException):
    """Raised by a handler of a signal: end, with nothing half done."""


class Agent:
    """A context manager: has the directories, the state directory and the port until its end."""

    def __init__(self, settings: Settings, sealing: NodeSealing, say: Say) -> None:
        """Raises SealpointError: a directory is not root's alone, another agent works there, the store is none."""
        if not sealing.everybody.signing.signers:
            raise UsageError(
                "the agent signs what it seals", hint="name a signer with --sign, or in config.toml"
            )
        self._settings, self._say = settings, say
        self.figures = Figures(settings.commit_timeout)
        self._depot: Depot = open_depot(settings)
        self._depot.check()
        self._journal = AgentQueue(settings.state)
        self._changed = threading.Condition()
        self._queue: deque[ClaimedArchive] = deque()
        self._later: list[tuple[float, ClaimedArchive]] = []  # not before that time (monotonic)
        self._mine: set[str] = set()  # entries that are in one of these, or being worked at
        self._lost: deque[ClaimedArchive] = deque()
        self._told: dict[str, str] = {}
        self._scanner = DirectoryScanner(
            settings, self._journal, self.figures, say, self._enqueue, self._note_lost
        )
        self._worker = Worker(settings, sealing, self._journal, self._depot, self._progress)
        self._pause = self._not_before = 0.0  # for the store: seconds, and a time (monotonic)
        self._delays: dict[str, float] = {}  # seconds, of entries that failed by themselves
        self._expired = 0.0
        self._stopping = False
        self._inotify: Inotify | None = None

    def __enter__(self) -> Self:
        try:
            for name in self._journal.clear_damaged():
                self._say(f"entry {name} of the queue cannot be read: its archive is sealed again")
            self._tell_unwatched()
            self._scanner.open()
        except BaseException:
            self._close()
            raise
        return self

    def _tell_unwatched(self) -> None:
        """Archives that wait in a directory which the configuration does not name any more."""
        watched = {directory.path for directory in self._scanner.directories}
        waiting = {entry.directory for entry in self._journal.entries()[0]}
        for path in sorted(waiting - watched):
            text = f"archives of {path} wait in the queue, but it is not watched any more"
            self.figures.problem(f"unwatched {path}", text)
            self._say(text)

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self._scanner.close()
        self._journal.close()

    # --- Once. ---

    def once(self) -> tuple[int, int]:
        """Seal what is complete; returns how many archives are sealed, and how many are not.  Raises SealpointError."""
        left = self._scanner.look()
        self._settle()
        done = 0
        for _ in range(len(self._queue)):
            done += self._attempt(self._queue.popleft())
            if self._pause:
                break  # the store does not take the others now, either
        self._expire()
        return done, left + len(self._mine) + len(self._scanner.refused)

    # --- For ever. ---

    def run(self) -> None:
        """Until StopAgent is raised in this thread.  Raises SealpointError."""
        self._inotify = Inotify()
        watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        watcher.start()
        try:
            while True:
                self._step()
        finally:
            self._stopping = True
            self._inotify.wake()
            watcher.join()
            self._inotify.close()

    def _step(self) -> None:
        self.figures.live()
        self._wait_for_store()
        self._settle()
        if time.monotonic() - self._expired >= _HOUR:
            self._expire()
        with self._changed:
            now = time.monotonic()
            self._queue += [entry for due, entry in self._later if due <= now]
            self._later = [(due, entry) for due, entry in self._later if due > now]
            if not self._queue and not self._lost:
                self._changed.wait(_TICK if self._later else self._settings.every)
            entry = self._queue.popleft() if self._queue else None
        if entry is not None and self._attempt(entry) and self._settings.retention.limits:
            self._expire()

    def _wait_for_store(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            self.figures.live()
            time.sleep(min(left, 1.0))

    def _watch(self) -> None:
        """The other thread."""
        assert self._inotify is not None
        soon = _SOON
        while not self._stopping:
            try:
                for directory in self._scanner.directories:
                    if directory.fd >= 0:
                        self._inotify.watch(directory.fd)
                unfinished = self._scanner.look()
                self.figures.problem("start", None)
                self.figures.problem("watch", None)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told and tried again
                text = error.message if isinstance(error, SealpointError) else repr(error)
                if self.figures.problem("watch", text):
                    self._say(text)
                unfinished = 0
            self._gauges()
            soon = min(soon * 2, self._settings.every) if unfinished else _SOON
            self._inotify.wait(soon if unfinished else self._settings.every)

    def _gauges(self) -> None:
        self.figures.set("oldest_plain_seconds", age(self._scanner.oldest()))

    # --- One archive. ---

    def _enqueue(self, entry: ClaimedArchive) -> None:
        with self._changed:
            if entry.identifier in self._mine:
                return  # its directory has come back meanwhile
            self._mine.add(entry.identifier)
            self.figures.set("queue_length", len(self._mine))
            self._queue.append(entry)
            self._changed.notify_all()

    def _note_lost(self, entry: ClaimedArchive) -> None:
        with self._changed:
            if entry.identifier in self._mine:
                return  # whoever works at it finds that out
            self._mine.add(entry.identifier)
            self._lost.append(entry)
            self._changed.notify_all()

    def _done(self, entry: ClaimedArchive) -> None:
        with self._changed:
            self._mine.discard(entry.identifier)
            self.figures.set("queue_length", len(self._mine))
        self._told.pop(entry.identifier, None)
        self._delays.pop(entry.identifier, None)
        self.figures.problem(entry.identifier, None)

    def _progress(self, _: Progress) -> None:
        self.figures.live()

    def _attempt(self, entry: ClaimedArchive) -> bool:
        """Whether it is stored.  What cannot be is told, and queued again where that can help."""
        directory = self._scanner.directory(entry.directory)
        if directory is None:
            self._say(f"{entry.directory} is not there: {entry.name} waits for it")
            self._done(entry)  # it is found in the queue on disk when the directory comes back
            return False
        try:
            self._report(entry, self._worker.run(entry, directory))
        except GoneError as error:
            self._gone(entry, error)
        except RefusedArchiveError as error:
            self._scanner.refuse(directory, entry, error.message)
            self._journal.drop(entry)
            self._done(entry)
            self.figures.add("refused_total")
            self._say(f"not sealed: {error.message}")
        except DepotError as error:
            self._store_failed(entry, error)
        except SystemEnvironmentError as error:
            self._failed(entry, error.message, error.hint)
        except OSError as error:
            self._failed(entry, f"{entry.directory}: {error.strerror}", None)
        else:
            self._done(entry)
            return True
        return False

    def _failed(self, entry: ClaimedArchive, message: str, hint: str | None) -> None:
        """By itself, and not because of the store: the others go on."""
        self.figures.add("failed_total")
        self.figures.problem(entry.identifier, message)
        if self._told.get(entry.identifier) != message:
            self._told[entry.identifier] = message
            self._say(f"{entry.name} is tried again: {message}" + (f" ({hint})" if hint else ""))
        delay = self._delays.get(entry.identifier, _AGAIN)
        self._delays[entry.identifier] = min(delay * 2, _LONGEST_PAUSE)
        self._again(entry, delay)

    def _report(self, entry: ClaimedArchive, stored: SealedArchive) -> None:
        self._pause = 0.0
        self.figures.problem("store", None)
        self.figures.set("store_up", 1)
        self.figures.set("last_success_seconds", time.time())
        for name, value in (
            ("sealed_total", 1.0),
            ("plain_bytes_total", stored.plain),
            ("sealed_bytes_total", stored.size),
            ("seconds_total", stored.seconds),
        ):
            self.figures.add(name, value)
        text = f"{entry.name} sealed into {stored.url}, {stored.size} bytes"
        if not stored.removed:
            text += "; someone else has removed the archive meanwhile"
        if stored.linked:
            text += "; the archive has another name, under which it stays in the clear"
        self._say(text)

    def _gone(self, entry: ClaimedArchive, error: GoneError) -> None:
        """It is not there: because we removed it before a crash, or because somebody else did."""
        try:
            settled = self._worker.settled(entry)
        except DepotError as failure:
            self._store_failed(entry, failure)
            return
        if settled:
            self.figures.add("sealed_total")
            self._say(f"{entry.name} is in the store: {entry.url}")
        else:
            self._journal.drop(entry)
            self.figures.add("gone_total")
            self._say(f"not sealed: {error.message}")
        self._done(entry)

    def _store_failed(self, entry: ClaimedArchive, error: DepotError) -> None:
        self._pause = min(max(self._pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
        # Not at the same moment as every other node.
        self._not_before = time.monotonic() + self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self.figures.add("failed_total")
        self.figures.set("store_up", 0)
        hint = f" ({error.hint})" if error.hint else ""
        if self.figures.problem("store", error.message):
            self._say(f"{entry.name} waits for the store: {error.message}{hint}")
        self._again(entry, 0.0)

    def _again(self, entry: ClaimedArchive, seconds: float) -> None:
        """Behind all others, so that it blocks nobody; as the queue on disk has it."""
        with self._changed:
            due = time.monotonic() + seconds
            self._later.append((due, self._journal.entry(entry.identifier) or entry))

    def _settle(self) -> None:
        """Entries of the queue whose archives are not there any more."""
        for _ in range(len(self._lost)):
            entry = self._lost.popleft()
            self._gone(entry, GoneError(f"{entry.name} was removed by someone else"))

    def _expire(self) -> None:
        self._expired = time.monotonic()
        if not self._settings.retention.limits:
            return
        try:
            for kept in expire(self._journal, self._depot, self._settings.retention):
                self.figures.add("expired_total")
                self._say(f"{kept.url} removed from the store: it is older than what is kept")
        except (SealpointError, OSError) as error:
            text = error.message if isinstance(error, SealpointError) else str(error)
            self._say(f"older files stay in the store for now: {text}")

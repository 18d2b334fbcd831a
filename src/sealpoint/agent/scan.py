"""Looking into the watched directories: what is complete is taken over, what is not is told.

It may run beside the sealing, in a thread of its own.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from sealpoint.agent.claim import FileState, FoundFile, WatchedDirectory, claim_name, is_sealed
from sealpoint.agent.faults import ChangedError, GoneError, RefusedArchiveError, UnfinishedError
from sealpoint.agent.figures import Figures
from sealpoint.agent.journal import AgentQueue, ClaimedArchive
from sealpoint.agent.settings import Settings
from sealpoint.errors import SealpointError

Say = Callable[[str], None]
_NANO: Final = 1_000_000_000


class _Seen(NamedTuple):
    """A file that was not taken over, and why not: it is looked at again when its state changes."""

    state: FileState
    reason: str


class DirectoryScanner:
    """Finds archives and takes them over.

    refused: files that lie in the clear as they are, by (directory, name).
    """

    def __init__(
        self,
        settings: Settings,
        journal: AgentQueue,
        figures: Figures,
        say: Say,
        found: Callable[[ClaimedArchive], None],
        lost: Callable[[ClaimedArchive], None],
    ) -> None:
        """found: gets what is to be sealed; lost: entries of the queue whose archives are not there any more."""
        self._settings, self._journal, self._figures = settings, journal, figures
        self._say, self._found, self._lost = say, found, lost
        self.directories = [WatchedDirectory(path) for path in dict.fromkeys(settings.watch)]
        self.refused: dict[tuple[str, str], _Seen] = {}
        self._one = threading.Lock()  # one file is looked at, or given back, at a time
        self._told: dict[tuple[str, str], str] = {}  # what is said once of a file that changes

    def directory(self, path: str) -> WatchedDirectory | None:
        """The watched directory of that path, if it is there."""
        found = next((d for d in self.directories if d.path == path), None)
        return found if found is not None and found.fd >= 0 else None

    def open(self) -> None:
        """All directories that are there, and what a crash has left in them.  Raises SealpointError."""
        for directory in self.directories:
            self._open(directory)

    def _open(self, directory: WatchedDirectory) -> bool:
        """Whether it is there.  Raises SealpointError."""
        before = directory.fd
        if not directory.open():
            return False
        if directory.fd != before:
            self._recover(directory)
        return True

    def close(self) -> None:
        """Let go of the directories."""
        for directory in self.directories:
            directory.close()

    def look(self) -> int:
        """Take over what is complete; returns how many files are still being written."""
        unfinished, oldest = 0, None
        present: set[tuple[str, str]] = set()
        for directory in self.directories:
            try:
                if not self._open(directory):
                    continue
                candidates = list(directory.found())
                taken_over = [directory.state(claim) for claim in directory.claimed()]
            except (SealpointError, OSError) as error:
                self._problem(directory, error)
                continue
            self._figures.problem(directory.path, None)
            self._look_at_space(directory)
            for state in filter(None, taken_over):
                oldest = min(oldest or state.modified, state.modified)
            for found in candidates:
                key = (directory.path, found.name)
                present.add(key)
                with self._one:
                    taken = self._consider(directory, found)
                if taken is None:
                    unfinished += 1
                if not taken and not self._is_sealed(directory, found):
                    oldest = min(oldest or found.state.modified, found.state.modified)
        self._forget(present)
        self._figures.set("refused", len(self.refused))
        self._figures.set("unfinished", unfinished)
        self._oldest = oldest
        return unfinished

    _oldest: int | None = None

    def oldest(self) -> int | None:
        """When the oldest file was written that was in the clear at the last look, in nanoseconds since 1970."""
        return self._oldest

    def refuse(self, directory: WatchedDirectory, entry: ClaimedArchive, reason: str) -> None:
        """Give an archive its name back; it is not looked at again before it changes.  Raises OSError."""
        with self._one:
            name = directory.give_back(entry.claim, entry.name)
            state = directory.state(name)
            if state is not None:
                self.refused[directory.path, name] = _Seen(state, reason)
            self._figures.set("refused", len(self.refused))

    def _forget(self, present: set[tuple[str, str]]) -> None:
        """What is known of files that are not there any more."""
        with self._one:
            for path, name in [key for key in self.refused if key not in present]:
                directory = self.directory(path)
                if directory is None or directory.state(name) is None:
                    del self.refused[path, name]
            for gone in [key for key in self._told if key not in present]:
                del self._told[gone]

    def _look_at_space(self, directory: WatchedDirectory) -> None:
        """Tell before the engine has no room for the next archive."""
        status = os.fstatvfs(directory.fd)
        free = status.f_bavail * status.f_frsize
        short = free < self._settings.min_free
        text = f"space is short in {directory.path}: less than {self._settings.min_free} bytes are free"
        if self._figures.problem(f"space {directory.path}", text if short else None):
            self._say(text if short else f"there is space in {directory.path} again")

    def _problem(self, directory: WatchedDirectory, error: SealpointError | OSError) -> None:
        text = error.message if isinstance(error, SealpointError) else str(error.strerror)
        if self._figures.problem(directory.path, text):
            self._say(text)

    def _is_sealed(self, directory: WatchedDirectory, found: FoundFile) -> bool:
        return (directory.path, found.name) not in self.refused and is_sealed(
            directory.fd, found.name
        )

    def _consider(self, directory: WatchedDirectory, found: FoundFile) -> bool | None:
        """Whether it was taken over; None: not yet."""
        key = (directory.path, found.name)
        seen = self.refused.get(key)
        if seen is not None and seen.state == found.state:
            return False
        self.refused.pop(key, None)
        if is_sealed(directory.fd, found.name):
            return False
        try:
            with directory.opened(found.name, self._settings.max_size) as fd:
                state = FileState.of(os.fstat(fd))
            self._take(directory, found.name, state)
        except UnfinishedError as error:
            self._tell_once(key, error.message)
            return None
        except (GoneError, ChangedError):
            return None
        except RefusedArchiveError as error:
            self.refused[key] = _Seen(found.state, error.message)
            self._figures.add("refused_total")
            self._tell_once(key, error.message)
            return False
        except (SealpointError, OSError) as error:
            self._problem(directory, error)
            return False
        return True

    def _take(self, directory: WatchedDirectory, name: str, state: FileState) -> None:
        identifier = secrets.token_hex(16)
        claim = claim_name(identifier, name)
        entry = self._journal.put(
            ClaimedArchive.new(directory.path, name, claim, state.inode, identifier)
        )
        try:
            directory.take(name, claim, state)
        except BaseException:
            self._journal.drop(entry)
            raise
        self._found(entry)

    def _tell_once(self, key: tuple[str, str], text: str) -> None:
        if self._told.get(key) != text:
            self._told[key] = text
            self._say(text)

    def _recover(self, directory: WatchedDirectory) -> None:
        """What the queue and a directory say after a crash, or when the directory has come back."""
        known = set()
        for entry in self._journal.entries()[0]:
            if entry.directory != directory.path:
                continue
            claimed, named = directory.state(entry.claim), directory.state(entry.name)
            if claimed is not None and claimed.inode == entry.inode:
                known.add(entry.claim)
                self._found(entry)
            elif not entry.attempts and named is not None and named.inode == entry.inode:
                self._journal.drop(entry)  # it was not renamed yet
            else:
                self._lost(entry)
        self._adopt(directory, known)

    def _adopt(self, directory: WatchedDirectory, known: set[str]) -> None:
        """Archives that an agent has taken over and that are in no queue."""
        for claim, name in directory.claimed().items():
            state = directory.state(claim)
            if claim in known or state is None:
                continue
            entry = ClaimedArchive.new(
                directory.path, name, claim, state.inode, secrets.token_hex(16)
            )
            self._found(self._journal.put(entry))


def age(when: int | None) -> float:
    """Seconds since a time in nanoseconds; 0 for none."""
    return 0.0 if when is None else max(0.0, time.time() - when / _NANO)

"""The agent's queue: a durable file for each archive that it has taken over, and for each that retention counts.

A file is written before what it announces is done, so that whatever a crash leaves can be told apart afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from typing import Any, Final, NamedTuple

from sealpoint import ownership
from sealpoint.agent.claim import FileState, locked
from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.store.naming import write_file

_FORMAT: Final = "sealpoint.dev/agent/v1"
_ENTRY: Final = re.compile(r"([0-9a-f]{32})\.json")
_MAX_SIZE: Final = 64 * 1024
_WHAT: Final = "the agent's state directory"


class ClaimedArchive(NamedTuple):
    """An archive that was taken over.

    identifier: random; directory, name, claim: where it is, what it was called, and is now.  inode: as it was found.
    container: (namespace, pod, container), as far as they are known; url: where it goes, "" while that is not decided.
    attempts: ids of sealed files that may have got that name; state: of the archive when the last of them was made.
    """

    identifier: str
    directory: str
    name: str
    claim: str
    inode: int
    container: tuple[str, str, str] = ("", "", "")
    url: str = ""
    attempts: tuple[str, ...] = ()
    state: FileState | None = None

    @classmethod
    def new(
        cls, directory: str, name: str, claim: str, inode: int, identifier: str
    ) -> ClaimedArchive:
        """One that was found."""
        return cls(identifier, directory, name, claim, inode)


class Kept(NamedTuple):
    """A sealed file in the store that counts for retention.  checkpoint: its id; when: nanoseconds since 1970."""

    identifier: str
    container: tuple[str, str, str]
    url: str
    checkpoint: str
    size: int
    when: int


class AgentQueue:
    """The state directory, which one agent has at a time.  Thread-safe, as each entry is one thread's at a time."""

    def __init__(self, path: str) -> None:
        """Raises SystemEnvironmentError: it cannot be made, is not ours alone, or another agent has it."""
        self.path = path
        self._thread = threading.Lock()
        self._all_kept: dict[str, Kept] | None = None
        try:
            self._directory = ownership.private_directory(path, _WHAT)
            self._lock = locked(self._directory, "lock", path)
            self._queue = self._below("queue")
            self._kept = self._below("kept")
        except OSError as error:
            raise SystemEnvironmentError(f"{_WHAT} {path}: {error.strerror}") from None

    def _below(self, name: str) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._directory)
            os.fsync(self._directory)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=self._directory)
        for left in os.listdir(fd):
            if left.startswith("."):  # a write that was killed
                os.unlink(left, dir_fd=fd)
        return fd

    def free(self) -> int:
        """Bytes."""
        status = os.fstatvfs(self._directory)
        return status.f_bavail * status.f_frsize

    def close(self) -> None:
        """Let another agent have it."""
        for fd in (self._queue, self._kept, self._lock, self._directory):
            os.close(fd)

    def put(self, entry: ClaimedArchive) -> ClaimedArchive:
        """Durable, in place of what was said of it before; returns it.  Raises SystemEnvironmentError."""
        values = entry._asdict() | {"state": list(entry.state) if entry.state else None}
        self._write(self._queue, entry.identifier, values)
        return entry

    def drop(self, entry: ClaimedArchive) -> None:
        """It is done with.  Raises SystemEnvironmentError."""
        self._remove(self._queue, entry.identifier)

    def clear_damaged(self) -> list[str]:
        """Remove entries that cannot be read; returns their names.  Their archives are found by the names they have.

        Raises SystemEnvironmentError.
        """
        damaged = self.entries()[1]
        for name in damaged:
            self._remove(self._queue, name)
        return damaged

    def entries(self) -> tuple[list[ClaimedArchive], list[str]]:
        """All of them, and the names of those that cannot be read, which are left out."""
        found = []
        damaged: list[str] = []
        for identifier, values in self._read(self._queue, damaged):
            entry = _entry(identifier, values)
            if entry is None:
                damaged.append(identifier)
            else:
                found.append(entry)
        return found, damaged

    def entry(self, identifier: str) -> ClaimedArchive | None:
        """One of them, as it is on disk; None if it is not there, or cannot be read."""
        try:
            return _entry(identifier, _decode(self._queue, f"{identifier}.json"))
        except (OSError, ValueError, FileError, RecursionError):
            return None

    def keep(self, kept: Kept) -> None:
        """It counts for retention.  Raises SystemEnvironmentError."""
        self._write(self._kept, kept.identifier, kept._asdict())
        if self._all_kept is not None:
            self._all_kept[kept.identifier] = kept

    def forget(self, kept: Kept) -> None:
        """It is not in the store any more.  Raises SystemEnvironmentError."""
        self._remove(self._kept, kept.identifier)
        if self._all_kept is not None:
            self._all_kept.pop(kept.identifier, None)

    def kept(self) -> list[Kept]:
        """All that counts for retention; read from the disk once."""
        if self._all_kept is None:
            self._all_kept = {one.identifier: one for one in self._read_kept()}
        return list(self._all_kept.values())

    def _read_kept(self) -> list[Kept]:
        found = []
        for identifier, values in self._read(self._kept, []):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                found.append(
                    Kept(
                        identifier,
                        _triple(values["container"]),
                        str(values["url"]),
                        str(values["checkpoint"]),
                        int(values["size"]),
                        int(values["when"]),
                    )
                )
        return found

    def _write(self, directory: int, identifier: str, values: dict[str, Any]) -> None:
        data = json.dumps({"format": _FORMAT} | values).encode()
        try:
            with self._thread:
                write_file(directory, f"{identifier}.json", data)
        except OSError as error:
            raise SystemEnvironmentError(f"cannot write {self.path}: {error.strerror}") from None

    def _remove(self, directory: int, identifier: str) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{identifier}.json", dir_fd=directory)
            os.fsync(directory)
        except OSError as error:
            raise SystemEnvironmentError(f"cannot write {self.path}: {error.strerror}") from None

    def _read(self, directory: int, damaged: list[str]) -> list[tuple[str, dict[str, Any]]]:
        found = []
        for name in sorted(os.listdir(directory)):
            match = _ENTRY.fullmatch(name)
            if match is None:
                continue
            try:
                found.append((match[1], _decode(directory, name)))
            except (OSError, ValueError, FileError, RecursionError):
                damaged.append(match[1])
        return found


def _decode(directory: int, name: str) -> dict[str, Any]:
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)) as file:
        data = file.read(_MAX_SIZE + 1)
    values = json.loads(data)
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise FileError(f"{name} is not the agent's")
    return values


def _entry(identifier: str, values: dict[str, Any]) -> ClaimedArchive | None:
    try:
        return ClaimedArchive(
            identifier,
            str(values["directory"]),
            str(values["name"]),
            str(values["claim"]),
            int(values["inode"]),
            _triple(values["container"]),
            str(values["url"]),
            tuple(map(str, values["attempts"])),
            FileState(*map(int, values["state"])) if values["state"] else None,
        )
    except (KeyError, TypeError, ValueError):
        return None


def _triple(value: Any) -> tuple[str, str, str]:
    namespace, pod, container = map(str, value)
    return namespace, pod, container

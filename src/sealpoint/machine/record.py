"""What `install-criu` made and replaced, on disk beside the configuration, so that it can be undone exactly.

The record is written before each change and names the content that the change will bring.  Whatever moment an
installation ends at, every file is then recognisable as ours, as what was there before, or as somebody's later work.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sealpoint import ownership
from sealpoint.config import SYSTEM_PATH
from sealpoint.errors import SealpointError, SystemEnvironmentError, UsageError
from sealpoint.machine.files import (
    NEW_SUFFIX,
    READ,
    hash_in,
    hash_of,
    remove_in,
    status_in,
    write_in,
)

DIRECTORY: Final = os.path.dirname(SYSTEM_PATH)
RECORD_PATH: Final = os.path.join(DIRECTORY, "installed.json")
BACKUP_SUFFIX: Final = ".before-sealpoint"
_VERSION: Final = 1
_MAX_SIZE: Final = 1024 * 1024


@dataclass(slots=True)
class FileRecord:
    """One file.  ours: SHA-256 of each content that we gave it; before: of what it replaced, "" for nothing."""

    path: str
    ours: list[str] = field(default_factory=list)
    before: str = ""

    @property
    def backup(self) -> str:
        """Where what it replaced is kept."""
        return self.path + BACKUP_SUFFIX


@dataclass(slots=True)
class InstallationRecord:
    """criu, config: the files, None if we have not written them; directories: made by us, the outermost first."""

    criu: FileRecord | None = None
    config: FileRecord | None = None
    directories: list[str] = field(default_factory=list)

    def save(self) -> None:
        """Durably.  Raises SystemEnvironmentError."""
        data = json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n"
        write_file(RECORD_PATH, data.encode(), mode=0o644)


def load() -> InstallationRecord | None:
    """None if nothing is installed.

    Raises SystemEnvironmentError if the record is not readable, PolicyError if others than root could have written it:
    what it names is removed, and run by `doctor`.
    """
    try:
        with open(ownership.open_owned(RECORD_PATH, "the record"), "rb") as file:
            values = json.loads(file.read(_MAX_SIZE))
        if values.pop("version") != _VERSION:
            raise ValueError
        return InstallationRecord(
            criu=_file_record(values["criu"]),
            config=_file_record(values["config"]),
            directories=[str(d) for d in values["directories"]],
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SystemEnvironmentError(f"{RECORD_PATH}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SystemEnvironmentError(
            f"{RECORD_PATH}: not a record of this version of sealpoint",
            hint="remove it, the drop-in criu and config.toml by hand",
        ) from None


def _file_record(values: dict[str, Any] | None) -> FileRecord | None:
    if values is None:
        return None
    return FileRecord(str(values["path"]), [str(x) for x in values["ours"]], str(values["before"]))


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One installation or removal at a time; the directory exists then, and is gone again if it ends empty.

    Raises UsageError, SystemEnvironmentError.
    """
    made = not os.path.lexists(DIRECTORY)
    try:
        fd = _open_directory()
        try:
            _lock(fd)
            yield
        finally:
            os.close(fd)
    finally:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(DIRECTORY)


def _open_directory() -> int:
    try:
        return ownership.private_directory(DIRECTORY, "the directory", mode=0o755, exact=False)
    except OSError as error:
        raise SystemEnvironmentError(f"{DIRECTORY}: {error.strerror}") from None


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError("another install-criu or uninstall-criu is running") from None


def make_directory(path: str) -> None:
    """Open to all readers, to be changed by root alone, whatever the umask.  Raises SystemEnvironmentError."""
    ownership.make_private(path, "the directory", mode=0o755, exact=False)


def content_hash(path: str) -> str:
    """SHA-256 of a file, "" if there is none.  Raises SystemEnvironmentError."""
    try:
        return hash_of(os.open(path, READ))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise SystemEnvironmentError(f"{path}: cannot be read: {error.strerror}") from None


def write_file(path: str, data: bytes, *, mode: int) -> None:
    """All or nothing, durably, in a directory that only root can change.  Raises SystemEnvironmentError."""
    try:
        with _held(path) as (directory, name):
            write_in(directory, name, data, mode)
    except OSError as error:
        raise SystemEnvironmentError(f"{path}: cannot be written: {error.strerror}") from None


def link_backup(file: FileRecord) -> None:
    """A second name for what will be replaced: owner, times and attributes come back with it.

    Raises SystemEnvironmentError.
    """
    try:
        with _held(file.path) as (directory, name):
            os.link(
                name,
                name + BACKUP_SUFFIX,
                src_dir_fd=directory,
                dst_dir_fd=directory,
                follow_symlinks=False,
            )
            os.fsync(directory)
    except OSError as error:
        raise SystemEnvironmentError(
            f"{file.backup}: cannot be written: {error.strerror}"
        ) from None


@contextlib.contextmanager
def _held(path: str) -> Iterator[tuple[int, str]]:
    """The directory of a file, which is root's alone, by a descriptor, and the file's name in it.

    Raises OSError, SystemEnvironmentError.
    """
    where, name = os.path.split(path)
    directory = ownership.private_directory(where, "the directory", make=False, exact=False)
    try:
        yield directory, name
    finally:
        os.close(directory)


def undo(record: InstallationRecord) -> tuple[list[str], list[str]]:
    """Back to what was before.  Returns what was done, and what was left and why.  May be repeated.

    Raises SystemEnvironmentError.
    """
    done: list[str] = []
    left: list[str] = []
    for file in (record.criu, record.config):
        if file is not None:
            _undo_file(file, done, left)
    try:
        with _held(RECORD_PATH) as (parent, name):
            remove_in(parent, name)
            remove_in(parent, name + NEW_SUFFIX)
    except OSError as error:
        raise SystemEnvironmentError(
            f"{RECORD_PATH}: cannot be removed: {error.strerror}"
        ) from None
    for directory in reversed(record.directories):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            left.append(f"{directory}: it is not empty")
        else:
            done.append(f"removed {directory}")
    return done, left


def _undo_file(file: FileRecord, done: list[str], left: list[str]) -> None:
    try:
        with _held(file.path) as (directory, name):
            _undo_in(directory, name, file, done, left)
    except SealpointError as error:
        left.append(error.message)
    except (FileNotFoundError, NotADirectoryError):
        if file.before:
            left.append(f"{file.path}: its former content is gone")
    except OSError as error:
        left.append(f"{file.path}: {error.strerror}")


def _undo_in(directory: int, name: str, file: FileRecord, done: list[str], left: list[str]) -> None:
    """Raises OSError."""
    remove_in(directory, name + NEW_SUFFIX)
    status, kept = status_in(directory, name), status_in(directory, name + BACKUP_SUFFIX)
    now = hash_in(directory, name)
    if now in file.ours or not now:
        _put_back(directory, name, file, now, done, left)
    elif now != file.before:
        left.append(f"{file.path}: it was changed since")
        if kept is not None:
            left.append(f"{file.backup}: what {file.path} was before")
    elif kept is not None and status is not None and os.path.samestat(kept, status):
        os.unlink(name + BACKUP_SUFFIX, dir_fd=directory)  # linked, but never replaced


def _put_back(
    directory: int, name: str, file: FileRecord, now: str, done: list[str], left: list[str]
) -> None:
    """Raises OSError."""
    backup = name + BACKUP_SUFFIX
    if file.before and status_in(directory, backup) is not None:
        if hash_in(directory, backup) != file.before:
            left.append(f"{file.path}: its former content in {file.backup} was changed since")
            return
        os.rename(backup, name, src_dir_fd=directory, dst_dir_fd=directory)
        done.append(f"restored {file.path}")
    elif file.before:
        left.append(f"{file.path}: its former content is gone")
    elif now:
        os.unlink(name, dir_fd=directory)
        done.append(f"removed {file.path}")

"""Secrets in the clear, found in whatever was written.

`FileWatcher` searches all files that were written anywhere while it was active, `scan_directory` the
files of a directory, `Finder` any bytes. What is looked for is `harness.make_needles()`, as a rule.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


def _behind_hole(fd: int, offset: int) -> int | None:
    """Where data begin, from `offset` on; None if there are none."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        return None if error.errno == errno.ENXIO else offset


class Finder:
    """Looks for secrets in files of any size with bounded memory."""

    BLOCK = 4 << 20

    def __init__(self, needles: Mapping[str, bytes]) -> None:
        if not needles:
            raise ValueError("nothing to look for")
        self._needles = dict(needles)
        first, last = min(needles.values()), max(needles.values())
        same = [a == b for a, b in zip(first, last, strict=False)]
        self._common = first[: same.index(False) if False in same else len(same)]
        self._longest = max(map(len, needles.values()))

    def in_bytes(self, data: bytes | bytearray) -> set[str]:
        found: set[str] = set()
        if len(self._common) < 8:
            return {name for name, needle in self._needles.items() if needle in data}
        at = data.find(self._common)
        while at >= 0:
            for name, needle in self._needles.items():
                if data[at : at + len(needle)] == needle:
                    found.add(name)
            at = data.find(self._common, at + 1)
        return found

    def in_descriptor(self, fd: int) -> set[str]:
        # Not mmap: a file that somebody truncates while it is searched would be a SIGBUS.
        found: set[str] = set()
        keep = b""
        offset = 0
        while block := os.pread(fd, self.BLOCK, offset):
            offset += len(block)
            found |= self.in_bytes(keep + block if keep else block)
            keep = block[-self._longest :]
            if block.count(0) == len(
                block
            ):  # perhaps a hole: another test's sparse file has a terabyte
                after, keep = _behind_hole(fd, offset), b""
                if after is None:
                    break
                offset = after
        return found

    def in_file(self, path: str) -> set[str]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return set()
        try:
            return self.in_descriptor(fd)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTCONN, errno.ENODEV):
                return (
                    set()
                )  # no file in this sense: of the kernel, or of a file system that has gone
            raise
        finally:
            os.close(fd)


def scan_directory(directory: Path, needles: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Secret name -> names of the files (relative to `directory`) that contain it."""
    finder = Finder(needles)
    result: dict[str, list[str]] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            for name in finder.in_file(str(path)):
                result.setdefault(name, []).append(str(path.relative_to(directory)))
    return result


@dataclass(frozen=True, order=True)
class Leak:
    """A secret in the clear: `how` is `file`, `name` (the file's own name) or `closed` (it was in
    the file at some moment a writer closed it; the file may be gone since)."""

    path: str
    needle: str
    how: str = "file"


_FAN_CLOSE_WRITE = 0x8
_FAN_Q_OVERFLOW = 0x4000
_FAN_CLOEXEC = 0x1
_FAN_NONBLOCK = 0x2
_FAN_UNLIMITED_QUEUE = 0x10
_FAN_MARK_ADD = 0x1
_FAN_MARK_FILESYSTEM = 0x100
_FAN_EVENT = struct.Struct("<IBBHQii")

_libc = ctypes.CDLL(None, use_errno=True)


class _CloseTrace:
    """Searches every file on some file systems when a writer closes it (fanotify, so root only).

    This also sees what a snapshot cannot: temporary files that are removed again and files that
    never had a name.
    """

    def __init__(self, finder: Finder, directories: Iterable[str], ignore: tuple[str, ...]):
        self._finder = finder
        self._ignore = ignore
        self.leaks: set[Leak] = set()
        self.seen = 0
        self.problem: str | None = None
        flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_UNLIMITED_QUEUE
        self._fd = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "fanotify_init")
        devices: set[int] = set()
        for directory in directories:
            device = os.stat(directory).st_dev
            if device in devices:
                continue
            devices.add(device)
            if _libc.fanotify_mark(
                self._fd,
                ctypes.c_uint(_FAN_MARK_ADD | _FAN_MARK_FILESYSTEM),
                ctypes.c_uint64(_FAN_CLOSE_WRITE),
                ctypes.c_int(-100),
                ctypes.c_char_p(os.fsencode(directory)),
            ):
                error = OSError(ctypes.get_errno(), "fanotify_mark", directory)
                os.close(self._fd)
                raise error
        self._wake_reader, self._wake_writer = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take in what happened until now, then end."""
        os.close(self._wake_writer)
        self._thread.join()
        os.close(self._wake_reader)
        os.close(self._fd)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN | select.POLLHUP)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if self._fd in ready:
                    self._read_events()
                elif self._wake_reader in ready:
                    return
        except Exception as error:  # reported by the watcher: a dead trace must not look clean
            self.problem = f"{type(error).__name__}: {error}"

    def _read_events(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            length, _, _, _, mask, fd, _ = _FAN_EVENT.unpack_from(data, at)
            at += length
            if mask & _FAN_Q_OVERFLOW:
                self.problem = "events were lost"
            if fd < 0:
                continue
            try:
                self._look_at(fd)
            finally:
                os.close(fd)

    def _look_at(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.startswith(self._ignore) or not stat.S_ISREG(os.fstat(fd).st_mode):
            return
        self.seen += 1
        for needle in self._finder.in_descriptor(fd):
            self.leaks.add(Leak(path, needle, "closed"))


class FileWatcher:
    """Finds secrets in all files that were written while it was active.

        with FileWatcher(needles, [tmp_path], ignore=[workload.dir]) as watcher:
            ...
        assert watcher.leaks() == []

    Two means. A snapshot of the directories before and after: every new or changed file is
    searched, and its name. And, if the kernel lets us (`watcher.traced`), every file on the same
    file systems at the moment a writer closes it, even if it is removed later. Memory is not
    looked at: memfds and file systems mounted meanwhile are not files that stay.

    `ignore`: directories whose *closed* files are not searched, for the workload's own ones: CRIU
    must make a file that the process held without a name again, for a moment and in the clear, as
    it was before. What remains in them in the end is searched all the same.
    """

    DIRECTORIES = ("/tmp", "/var/tmp", "/run", "/dev/shm", "/var/log", "/var/lib/systemd/coredump")
    NEVER = ("/proc", "/sys", "/dev")

    def __init__(
        self,
        needles: Mapping[str, bytes],
        directories: Iterable[str | Path] = (),
        *,
        ignore: Iterable[str | Path] = (),
        trace: bool = True,
    ) -> None:
        self._finder = Finder(needles)
        everywhere = [*map(str, directories), os.getcwd(), *self.DIRECTORIES]
        self.directories = _without_nested(
            os.path.realpath(path) for path in everywhere if os.path.isdir(path)
        )
        self._ignore = tuple(os.path.realpath(path) + "/" for path in ignore)
        self._want_trace = trace
        self._trace: _CloseTrace | None = None
        self._before: dict[str, tuple[int, int, int, int]] = {}
        self._skip_devices = {os.stat(path).st_dev for path in ("/proc", "/sys")}
        self.traced = False

    def __enter__(self) -> Self:
        self._before = dict(self._snapshot())
        if self._want_trace:
            try:
                self._trace = _CloseTrace(self._finder, self.directories, self._ignore)
                self.traced = True
            except (OSError, AttributeError):
                self._trace = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._trace is not None:
            self._trace.stop()

    def changed(self) -> list[str]:
        """New and changed files, as of now."""
        return [path for path, mark in self._snapshot() if self._before.get(path) != mark]

    def leaks(self) -> list[Leak]:
        """All leaks, sorted; call it after the `with` block (or in it: then without the trace)."""
        result: set[Leak] = set()
        for path in self.changed():
            result.update(Leak(path, name) for name in self._finder.in_file(path))
            if path not in self._before:
                names = self._finder.in_bytes(os.fsencode(path))
                result.update(Leak(path, name, "name") for name in names)
        if self._trace is not None:
            if self._trace.problem:
                raise RuntimeError(f"the trace of written files failed: {self._trace.problem}")
            result |= self._trace.leaks
        return sorted(result)

    def _snapshot(self) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
        todo = list(self.directories)
        while todo:
            try:
                with os.scandir(todo.pop()) as entries:
                    for entry in entries:
                        try:
                            if entry.is_dir(follow_symlinks=False):
                                if self._enters(entry):
                                    todo.append(entry.path)
                            elif entry.is_file(follow_symlinks=False):
                                s = entry.stat(follow_symlinks=False)
                                mark = (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
                                yield entry.path, mark
                        except OSError:
                            continue  # it has just gone
            except OSError:
                continue

    def _enters(self, entry: os.DirEntry[str]) -> bool:
        if entry.path in self.NEVER:
            return False
        return not os.path.ismount(entry.path) or (
            entry.stat(follow_symlinks=False).st_dev not in self._skip_devices
        )


def _without_nested(paths: Iterable[str]) -> list[str]:
    result: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(outer.rstrip("/") + "/") for outer in result):
            result.append(path)
    return result

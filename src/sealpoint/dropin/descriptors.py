"""What a request refers to outside of itself: descriptors of the engine's, CRIU's log file, a freezer cgroup.

Descriptor numbers in a request are the engine's; CRIU looks them up in the process that made its socket, which is now
the helper, so each is opened here anew and its number replaced.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

from sealpoint.errors import SystemEnvironmentError
from sealpoint.names import printable, text
from sealpoint.process import Held

_PIDFD_GETFD: Final = 438
_DEFAULT_LOG: Final = "criu.log"


class RequestDescriptors:
    """parent: the process in which the request's numbers count."""

    def __init__(self, parent: Held) -> None:
        self._parent = parent

    @staticmethod
    def names_directory(options: Any) -> bool:
        """Whether the request says where images are."""
        return bool(options.images_dir) or (
            options.HasField("images_dir_fd") and options.images_dir_fd >= 0
        )

    def directory(self, options: Any) -> int:
        """The engine's images directory, opened here.  Raises SystemEnvironmentError."""
        if options.HasField("images_dir_fd") and options.images_dir_fd >= 0:
            return self._directory(options.images_dir_fd)
        if options.images_dir:
            return self._open(
                text(options.images_dir)
            )  # as CRIU would: its working directory is ours
        raise SystemEnvironmentError("the request names no images directory")

    def work_directory(self, options: Any, images: int) -> int:
        """Where CRIU's log goes to: by default the images directory.  Raises SystemEnvironmentError."""
        number = options.work_dir_fd if options.HasField("work_dir_fd") else -1
        return self._directory(number) if number >= 0 else images

    def redirect(self, options: Any, images: int, work: int) -> None:
        """Point every descriptor at ours.  Raises SystemEnvironmentError."""
        options.images_dir_fd = images
        options.ClearField("images_dir")
        options.work_dir_fd = work
        for name in ("status_fd", "pidfd_store_sk"):
            if options.HasField(name) and getattr(options, name) >= 0:
                setattr(options, name, self._copy(getattr(options, name)))

    def _directory(self, number: int) -> int:
        # By a descriptor of ours: a path with the engine's pid could be another's by now.
        copy = self._copy(number)
        try:
            return self._open(f"/proc/self/fd/{copy}")
        finally:
            os.close(copy)

    @staticmethod
    def _open(path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise SystemEnvironmentError(f"cannot open the engine's directory: {reason}") from None

    def _copy(self, number: int) -> int:
        return copy_descriptor(self._parent, number)


def copy_descriptor(owner: Held, number: int) -> int:
    """A descriptor of the engine's or CRIU's, as one of ours.  Raises SystemEnvironmentError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not owner.runs:
        raise SystemEnvironmentError(
            "a descriptor that the request names is gone: the engine has ended"
        )
    fd: int = libc.syscall(_PIDFD_GETFD, owner.fd, number, 0)
    if fd < 0:
        raise SystemEnvironmentError("cannot take over a descriptor of the engine")
    return fd


class Journal:
    """CRIU's log file: the place where people look, and which engines name in their errors."""

    def __init__(self) -> None:
        self.directory = -1  # descriptor, -1 for none
        self._name = _DEFAULT_LOG

    def open(self, directory: int, name: str) -> None:
        """directory: descriptor; name: as the request says, empty for CRIU's default."""
        self.directory = directory
        if "/" not in name and not name.endswith((".img", ".sealed")):  # never into a checkpoint
            self._name = name or _DEFAULT_LOG

    def say(self, reason: str, kind: str = "Error") -> None:
        """Append a line as CRIU writes errors (or warnings: `Warn `).  Not worth failing for."""
        if self.directory < 0:
            return
        flags = (
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
        line = f"{kind} (sealpoint): {printable(reason.replace(chr(10), ' '))}\n"
        try:
            fd = os.open(self._name, flags, 0o600, dir_fd=self.directory)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)
        except (OSError, ValueError):
            pass


class Freezer:
    """The cgroup with which CRIU freezes a tree; a CRIU that was killed would leave it frozen for ever."""

    _FILES: Final = {"freezer.state": ("FROZEN", "FREEZING", "THAWED"), "cgroup.freeze": ("1", "0")}

    def __init__(self, directory: str) -> None:
        """directory: as the request says, empty if it names none."""
        self._path = ""
        for name in self._FILES:
            path = os.path.join(directory, name)
            if directory and os.path.isfile(path) and not self._frozen(path):
                self._path = path

    def _frozen(self, path: str) -> bool:
        try:
            with open(path) as file:
                return file.read().strip() in self._FILES[os.path.basename(path)][:-1]
        except OSError:
            return True  # then it is not ours to thaw

    def restore(self) -> None:
        """Thaw it if it was not frozen before."""
        if self._path and self._frozen(self._path):
            try:
                with open(self._path, "w") as file:
                    file.write(self._FILES[os.path.basename(self._path)][-1])
            except OSError:
                pass  # the cgroup is gone, and with it what was in it

"""Mounting without a mount point: fsopen, fsconfig, fsmount, move_mount (Linux 5.2)."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from typing import Final

_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432  # the same on every architecture
_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8  # MOUNT_ATTR_*
_NOSYMFOLLOW: Final = 0x200000  # Linux 5.14
_EMPTY_PATH: Final = 4  # MOVE_MOUNT_F_EMPTY_PATH
_AT_FDCWD: Final = -100
_CLONE_NEWNS: Final = 0x20000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000


def _syscall(number: int, *args: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def detached(
    kind: str,
    options: dict[str, str],
    *,
    optional_flags: tuple[str, ...] = (),
    read_only: bool = False,
    executable: bool = False,
    follow_links: bool = True,
) -> int:
    """Descriptor of the root of a new mount that no path leads to.  Raises OSError.

    optional_flags: flags that an older kernel may not know and that are then left out.  follow_links: whether symbolic
    links lead anywhere (they do on kernels before 5.14).
    """
    context = _syscall(_FSOPEN, kind.encode(), _CLOEXEC)
    try:
        for name, value in options.items():
            _syscall(_FSCONFIG, context, _SET_STRING, name.encode(), os.fsencode(value), 0)
        for flag in optional_flags:
            try:
                _set_flag(context, flag)
            except OSError:
                continue
        _syscall(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        attributes = (
            _NOSUID | _NODEV | (_RDONLY if read_only else 0) | (0 if executable else _NOEXEC)
        )
        if not follow_links:
            try:
                return _syscall(_FSMOUNT, context, _CLOEXEC, attributes | _NOSYMFOLLOW)
            except OSError:
                pass  # an older kernel
        return _syscall(_FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def keeps_off_swap() -> bool:
    """Whether a tmpfs can be kept off swap here (Linux 6.4)."""
    try:
        context = _syscall(_FSOPEN, b"tmpfs", _CLOEXEC)
    except OSError:
        return True  # not permitted: then there will be no mount at all, and that is an error
    try:
        _set_flag(context, "noswap")
    except OSError:
        return False
    finally:
        os.close(context)
    return True


def _set_flag(context: int, name: str) -> None:
    _syscall(_FSCONFIG, context, _SET_FLAG, name.encode(), None, 0)


def attach(fd: int, directory: str) -> None:
    """Make a detached mount visible at `directory`.  Raises OSError."""
    _syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(directory), _EMPTY_PATH)


def unmount(directory: str, *, lazy: bool = False) -> None:
    """Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(directory), 2 if lazy else 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def private_namespace() -> None:
    """A mount namespace of this process's own: what is mounted in it is seen by nobody else.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)


def bind(source: str, target: str) -> None:
    """Make a mount visible at another place as well.  Raises OSError."""
    _mount(source, target, None, _MS_BIND)


def overlay(lower: str, upper: str, work: str, target: str) -> None:
    """What is written below `target` goes to `upper`.  Raises OSError."""
    for path in (lower, upper, work):
        if any(c in path for c in ",:\\"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    _mount("overlay", target, f"lowerdir={lower},upperdir={upper},workdir={work}", 0)


def _mount(source: str, target: str, options: str | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    data = None if options is None else os.fsencode(options)
    kind = b"overlay" if source == "overlay" else b""
    if libc.mount(os.fsencode(source), os.fsencode(target), kind, flags, data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def points() -> list[tuple[bytes, bytes]]:
    """(mount point, type) of every mount of this mount namespace, the uppermost last."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields, _, rest = line.partition(b" - ")
            path = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), fields.split(b" ")[4])
            found.append((path, rest.split(b" ")[0]))
    return found


def is_ours(directory: str) -> bool:
    """Whether a sealpoint mount is the uppermost on `directory`."""
    wanted = os.fsencode(os.path.realpath(directory))
    return [kind for path, kind in points() if path == wanted][-1:] == [b"fuse.sealpoint"]

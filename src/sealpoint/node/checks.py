"""Whether the drop-in can work on a host.  Nothing is changed before all of it was looked at."""

from __future__ import annotations

import os
import re
import struct
from typing import Final

from sealpoint import ownership
from sealpoint.errors import UsageError
from sealpoint.node import unit
from sealpoint.node.host import Host, UnsupportedError
from sealpoint.node.runtimes import Runtime

_KERNEL: Final = (5, 6)  # docs/guide/install.md says what came when
_MAX_PATH: Final = 150  # the kernel reads 256 bytes of a script's first line
_ELF_HEAD: Final = struct.Struct("<4sBB12xH")  # magic, class, byte order, machine: elf.h
_SELINUX: Final = "/sys/fs/selinux/enforce"


def check_name(path: str) -> str:
    """The directory as the kernel can name it in a script's first line.  Raises UsageError."""
    name = os.path.normpath(path)
    if not path.startswith("/") or not re.fullmatch(r"(/[A-Za-z0-9._+-]+)+", name):
        raise UsageError(
            f"{path}: the directory must be an absolute path of letters, digits and ._+-"
        )
    if len(name) > _MAX_PATH:
        raise UsageError(f"{path}: the kernel cannot start scripts by such a long path")
    return name


def machine(host: Host, release: str) -> None:
    """Kernel, architecture and FUSE.  release: as uname gives it.  Raises UnsupportedError."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _KERNEL:
        oldest = ".".join(map(str, _KERNEL))
        raise UnsupportedError("kernel", f"Linux {release} is older than {oldest}")
    with open("/proc/self/exe", "rb") as file:
        ours = _machine_of(file.read(_ELF_HEAD.size))
    try:
        fd = os.open("1/exe", os.O_RDONLY | os.O_CLOEXEC, dir_fd=host.proc)
    except OSError:
        theirs = None
    else:
        with open(fd, "rb") as file:
            theirs = _machine_of(file.read(_ELF_HEAD.size))
    if theirs is not None and theirs != ours:
        raise UnsupportedError(
            "architecture",
            "this is the bundle for another architecture than the host's",
            hint="use the image for the host's architecture",
        )
    try:
        device = ownership.look_below(host.root, "/dev/fuse")
        try:
            os.close(os.open(f"/proc/self/fd/{device}", os.O_RDWR | os.O_CLOEXEC))
        finally:
            os.close(device)
    except OSError as error:
        raise UnsupportedError(
            "fuse", f"/dev/fuse cannot be opened: {error.strerror}", hint="modprobe fuse"
        ) from None


def _machine_of(head: bytes) -> tuple[int, int, int] | None:
    """Class, byte order and machine of an ELF file."""
    if len(head) < _ELF_HEAD.size:
        return None
    magic, size, order, number = _ELF_HEAD.unpack(head)
    return (size, order, number) if magic == b"\x7fELF" else None


def target(host: Host, directory: str) -> None:
    """Whether programs can be put there and run.  Raises UnsupportedError, PolicyError."""
    place = directory if host.is_directory(directory) else os.path.dirname(directory)
    try:
        fd = host.directory(place, "the directory")
    except OSError as error:
        raise UnsupportedError(
            "no-directory",
            f"{place}: {error.strerror}",
            hint="name a directory below one that exists with --directory",
        ) from None
    try:
        flags = os.fstatvfs(fd).f_flag
        elsewhere = "name a writable directory with --directory"
        if flags & os.ST_RDONLY:
            raise UnsupportedError("read-only", f"{place} is read-only", hint=elsewhere)
        if flags & os.ST_NOEXEC:
            raise UnsupportedError("noexec", f"{place} is mounted noexec", hint=elsewhere)
    finally:
        os.close(fd)


def services(host: Host, found: list[Runtime]) -> None:
    """Whether the PATH of every runtime that does not find the drop-in can be set.  Raises UnsupportedError."""
    for runtime in found:
        if runtime.ours:
            continue
        who = f"{runtime.program} (process {runtime.pid})"
        if not host.is_directory("/run/systemd/system"):
            raise UnsupportedError(
                "no-systemd",
                f"the PATH of {who} has to be changed, and the host has no systemd",
                hint="put the directory's bin in front of its PATH by hand, and start it again",
            )
        if not runtime.unit:
            raise UnsupportedError(
                "no-unit",
                f"the PATH of {who} has to be changed, and it is in no systemd service",
                hint="put the directory's bin in front of its PATH by hand, and start it again",
            )
        if not host.is_directory(unit.UNITS):
            raise UnsupportedError("no-systemd", f"the host has no {unit.UNITS}")


def has_selinux(host: Host) -> bool:
    """Whether SELinux runs there."""
    return host.status(_SELINUX) is not None

"""Which checkpoint the kernel's soft-dirty bits of a process are relative to.

CRIU resets the bits with each tracked dump.  An increment on any other parent than the last tracked dump would lack the
pages that changed in between, and neither CRIU nor a reader could notice.  So the last one is written down: as unknown
before CRIU may reset the bits, and by name when its file is complete.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from typing import Final

from sealpoint.errors import SystemEnvironmentError
from sealpoint.names import proc
from sealpoint.state.chains import open_private, state_directory
from sealpoint.store import naming

_SOFT_DIRTY: Final = (
    1 << 55
)  # of an entry in /proc/PID/pagemap (Documentation/admin-guide/mm/soft-dirty.rst)
_START_TIME: Final = 19  # of the fields behind the command name in /proc/PID/stat, from 0


def supported() -> bool:
    """Whether this kernel tracks changed memory (CONFIG_MEM_SOFT_DIRTY); without, CRIU's pre-dump aborts."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[0] = 1
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            entry = os.pread(file.fileno(), 8, address // mmap.PAGESIZE * 8)
    except OSError:
        return False
    return len(entry) == 8 and bool(struct.unpack("<Q", entry)[0] & _SOFT_DIRTY)


class Tracking:
    """The record of one process, in the directory of states.  pid: as in /proc; 0 is nobody, with no record."""

    def __init__(self, directory: str, pid: int) -> None:
        self._directory = f"{directory}/tracking"
        self._name = _identity(pid)

    def last(self) -> str:
        """Checkpoint id, in hex, of the last tracked dump; empty if unknown."""
        if not self._name:
            return ""
        try:
            with open_private(self._directory, self._name) as file:
                return file.read(64).decode()
        except (OSError, ValueError, SystemEnvironmentError):
            return ""

    def begin(self) -> None:
        """CRIU may reset the bits from now on.  Raises SystemEnvironmentError."""
        self._write("")
        self._collect()

    def done(self, checkpoint_id: bytes) -> None:
        """The bits are relative to this checkpoint.  Raises SystemEnvironmentError."""
        self._write(checkpoint_id.hex())

    def _write(self, text: str) -> None:
        if not self._name:
            return
        try:
            with state_directory(self._directory) as directory:
                naming.write_file(directory, self._name, text.encode())
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot write to {self._directory}: {error.strerror}"
            ) from None

    def _collect(self) -> None:
        """Records of processes that are gone are of no use."""
        with (
            contextlib.suppress(OSError, SystemEnvironmentError),
            state_directory(self._directory, make=False) as directory,
        ):
            for name in os.listdir(directory):
                pid = name.partition("-")[0]
                if pid.isdigit() and _identity(int(pid)) != name:
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=directory)


def _identity(pid: int) -> str:
    """Names a process for as long as the machine runs, and in no other run; empty if there is none."""
    if pid <= 0:
        return ""
    try:
        started = proc(f"/proc/{pid}/stat").rpartition(")")[2].split()[_START_TIME]
        boot = proc("/proc/sys/kernel/random/boot_id")[:8]
    except (OSError, IndexError):
        return ""
    return f"{pid}-{started}-{boot}"

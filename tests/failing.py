"""System calls that fail: the kernel itself refuses them, by a seccomp filter, for the rest of the process's life.

For use in a child: `python -c` with `failing.install(...)`, or as the child of a fork.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

NUMBERS = {
    "x86_64": {"fsync": 74, "syncfs": 306, "renameat2": 316, "linkat": 265, "unlinkat": 263, "fallocate": 285},
    "aarch64": {"fsync": 82, "syncfs": 267, "renameat2": 276, "linkat": 37, "unlinkat": 35, "fallocate": 47},
}[platform.machine()]  # fmt: skip
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2


def install(name: str, error: int, **arguments: int) -> None:
    """From now on the call `name` fails with `error` if its arguments (a0 to a5, the lower 32 bits) are those."""
    checks = [(0, NUMBERS[name]), *((16 + 8 * int(k[1:]), v) for k, v in arguments.items())]
    program = []
    for number, (offset, value) in enumerate(checks):
        left = 2 * (len(checks) - number - 1) + 1  # to the last instruction, past the refusal
        program += [(_LOAD, 0, 0, offset), (_EQUAL, 0, left, value)]
    program += [(_RETURN, 0, 0, _ERRNO | error), (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("<HBBI", *each) for each in program)
    buffer = ctypes.create_string_buffer(code)
    head = struct.pack("<H6xQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(head), 0, 0
    ):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def in_child(action) -> int:
    """Exit status of a child that does `action`; 1 if that raises."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

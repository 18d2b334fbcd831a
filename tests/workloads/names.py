#!/usr/bin/env python3
"""Workload: a process whose names are no text, wherever the kernel takes any bytes for a name.

Its command, an argument, a variable and its value, a file that it has open, one that it has open and that is deleted,
one that it has mapped, a memfd, a socket: bytes that are no UTF-8, line breaks, escape sequences, marks that turn the
direction of writing.
"""

import ctypes
import mmap
import os
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from workload_common import Workload, digest

STRANGE = b"\xff\xfe\n\x1b[31m\\x\r\xe2\x80\xae"
COMMAND = b"\xff\xfe)\n\x1b[1m\rS 1 "  # at most 15 bytes; the end of it looks like a line of /proc/PID/stat
VARIABLE, VALUE = b"\xffVARIABLE\n", b"\xfe\x1b[7m"
PR_SET_NAME = 15


def again() -> None:
    """Start once more, with an argument and a variable that a test harness has no way to give."""
    if VARIABLE not in os.environb:
        words = [os.fsencode(word) for word in sys.orig_argv]
        os.execve(sys.executable, [*words, STRANGE], {**os.environb, VARIABLE: VALUE})
    sys.argv.pop()


def make(name: bytes, data: bytes) -> int:
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, data)
    return fd


def contents(fd: int) -> str:
    return digest(os.pread(fd, 1 << 16, 0))


def main() -> None:
    again()
    workload = Workload()
    place = os.fsencode(workload.dir) + b"/"
    kept = make(place + STRANGE, b"kept")
    deleted = make(place + b"\xff\xfe", b"deleted")
    os.unlink(place + b"\xff\xfe")
    mapped = make(place + b"mapped " + STRANGE, bytes(mmap.PAGESIZE))
    memory = mmap.mmap(mapped, mmap.PAGESIZE, mmap.MAP_PRIVATE)
    memory[0:4] = b"ours"  # so that the page is in the dump
    os.close(mapped)
    libc = ctypes.CDLL(None, use_errno=True)
    anonymous = libc.memfd_create(b"memfd " + STRANGE, 0)
    os.write(anonymous, b"anonymous")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place + b"socket\xff\n")
    listener.listen()
    workload.watch("kept", lambda: contents(kept))
    workload.watch("deleted", lambda: contents(deleted))
    workload.watch("mapped", lambda: digest(memory[:]))
    workload.watch("anonymous", lambda: contents(anonymous))
    libc.prctl(PR_SET_NAME, COMMAND, 0, 0, 0)
    workload.watch("command", lambda: digest(command(libc)))
    workload.serve()


def command(libc: ctypes.CDLL) -> bytes:
    name = ctypes.create_string_buffer(16)
    libc.prctl(16, name, 0, 0, 0)  # PR_GET_NAME
    return name.value


if __name__ == "__main__":
    main()

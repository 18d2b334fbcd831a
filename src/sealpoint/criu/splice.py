"""Handing page-aligned buffers to a pipe without copying them (vmsplice), and knowing when they are free again."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct
import termios

from sealpoint.criu.stream import enlarge_pipe

_PAGE = 4096


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class PageRing:
    """A few page-aligned buffers that are lent to a pipe in turn.

    A pipe holds references to the pages themselves until its reader took them, so a buffer may be refilled only when a
    whole pipe's worth was spliced after it: with buffers larger than the pipe, when the next one was sent.  `drain`
    waits for the rest.  The reader must read(), as CRIU does.
    """

    def __init__(self, fd: int, size: int, count: int) -> None:
        """`count` buffers of `size` bytes (a multiple of the page size) for the pipe `fd`."""
        self._fd = fd
        capacity = enlarge_pipe(fd)
        if size < capacity:
            raise ValueError("a buffer must be at least as large as the pipe")
        self.ahead = (
            count - 1
        )  # buffers that may be filled or waiting while earlier ones are on their way
        self._maps = [mmap.mmap(-1, size) for _ in range(count)]
        self._views = [memoryview(m) for m in self._maps]
        self._next = 0
        self._libc = ctypes.CDLL(None, use_errno=True)

    def buffer(self) -> memoryview:
        """The next buffer, free to be filled."""
        view = self._views[self._next]
        self._next = (self._next + 1) % len(self._views)
        return view

    def send(self, data: memoryview) -> None:
        """Lend the pages of `data`, which starts at a page boundary of one of the buffers.  Raises BrokenPipeError."""
        if not data:
            return  # the last chunk of an object that fills its chunks exactly
        base = ctypes.addressof(ctypes.c_char.from_buffer(data))
        done = 0
        while done < len(data):
            part = _Iovec(base + done, len(data) - done)
            size = self._libc.vmsplice(
                self._fd, ctypes.byref(part), ctypes.c_size_t(1), ctypes.c_uint(0)
            )
            if size < 0:
                code = ctypes.get_errno()
                if code == 4:  # EINTR
                    continue
                raise OSError(code, os.strerror(code))
            done += size

    def drain(self) -> None:
        """Wait until the reader took everything or went away."""
        poll = select.poll()
        poll.register(self._fd, 0)
        while _unread(self._fd):
            if poll.poll(1):  # only POLLERR can come: the reader closed its end
                return


def _unread(fd: int) -> int:
    (size,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))
    return int(size)

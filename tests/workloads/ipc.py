#!/usr/bin/env python3
"""Workload: data that is not in private memory.

A pipe and socket queues with unread data, open files without a name (a small one and a larger one
with a hole), anonymous shared memory, a memfd.
"""

import mmap
import os
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from workload_common import NEEDLE_OFFSET, PAGE, Workload, check_pipe, digest


def padded(needle: bytes, size: int) -> bytes:
    """Random data with the secret in it."""
    data = bytearray(os.urandom(size))
    data[NEEDLE_OFFSET : NEEDLE_OFFSET + len(needle)] = needle
    return bytes(data)


def add_pipe(workload: Workload) -> None:
    reader, writer = os.pipe()
    os.write(writer, padded(workload.secret("pipe"), 20000))
    workload.watch("pipe", lambda: check_pipe(reader, writer))


def add_sockets(workload: Workload) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    # Different sizes, so that borders lost between messages change the digest.
    for size in (900, 17, 5000):
        data = padded(workload.secret("queue"), size) if size > 400 else os.urandom(size)
        left.send(data)

    def datagrams() -> str:
        messages = []
        while True:
            try:
                messages.append(right.recv(65536, socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
        for message in messages:
            left.send(message)
        return digest(repr([digest(message) for message in messages]).encode())

    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near.sendall(padded(workload.secret("stream"), 9000))
    workload.watch("queue", datagrams)
    workload.watch("stream", lambda: check_pipe(far.fileno(), near.fileno()))


def add_unlinked(workload: Workload, name: str, parts: dict[int, bytes], position: int) -> None:
    """An open file without a name: `parts` maps offsets to data, what is between is a hole."""
    path = f"{workload.dir}/{name}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    for offset, data in parts.items():
        os.pwrite(fd, data, offset)
    os.lseek(fd, position, os.SEEK_SET)
    os.unlink(path)

    def measure() -> str:
        size = os.fstat(fd).st_size
        here = os.lseek(fd, 0, os.SEEK_CUR)
        return digest(os.pread(fd, size + 1, 0)) + f" at {here} of {size}"

    workload.watch(name, measure)


def add_shared(workload: Workload) -> None:
    size = 64 * PAGE
    shared = mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    shared[: size // 2] = padded(workload.secret("shm"), size // 2)
    workload.watch("shm", lambda: digest(shared))

    fd = os.memfd_create("sealpoint-workload")
    os.write(fd, padded(workload.secret("memfd"), 40 * PAGE + 123))
    os.lseek(fd, 77, os.SEEK_SET)
    mapped = mmap.mmap(fd, 8 * PAGE, flags=mmap.MAP_SHARED)

    def measure() -> str:
        size = os.fstat(fd).st_size
        here = os.lseek(fd, 0, os.SEEK_CUR)
        return digest(os.pread(fd, size + 1, 0)) + digest(mapped) + f" at {here} of {size}"

    workload.watch("memfd", measure)


def main() -> None:
    workload = Workload()
    add_pipe(workload)
    add_sockets(workload)
    add_unlinked(workload, "unlinked_small", {0: padded(workload.secret("unlinked_small"), 700)}, 5)
    big = {0: padded(workload.secret("unlinked"), 20000), 200000: os.urandom(5000)}
    add_unlinked(workload, "unlinked", big, 12345)
    add_shared(workload)
    workload.serve()


main()

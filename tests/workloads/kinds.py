#!/usr/bin/env python3
"""Workload: one of every kind of open file and namespace object that this machine lets CRIU dump.

It is there for the variety of its images, not for its memory: event, timer and signal descriptors, epoll, inotify, a
named pipe with data, sockets, locks, timers, System V shared memory, semaphores
and messages in an IPC namespace of its own, a host name of its own, two threads.
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from workload_common import Workload, digest

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUTS, CLONE_NEWIPC = 0x04000000, 0x08000000
SEGMENT = 3 * 4096


def check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def add_ipc(workload: Workload) -> None:
    """System V objects; the namespace makes CRIU dump them."""
    check(LIBC.unshare(CLONE_NEWUTS | CLONE_NEWIPC))
    socket.sethostname("sealpoint-kinds")
    LIBC.shmat.restype = ctypes.c_void_p
    number = check(LIBC.shmget(0x5EA1, SEGMENT, 0o1600))
    address = LIBC.shmat(number, None, 0)
    memory = (ctypes.c_char * SEGMENT).from_address(address)
    memory[0:SEGMENT] = os.urandom(SEGMENT)
    workload.watch("segment", lambda: digest(bytes(memory)))
    semaphores = check(LIBC.semget(0x5EA2, 3, 0o1600))
    values = (ctypes.c_ushort * 3)(1, 22, 333)
    check(LIBC.semctl(semaphores, 0, 17, ctypes.byref(values)))  # SETALL
    queue = check(LIBC.msgget(0x5EA3, 0o1600))
    for kind, text in ((1, b"first"), (7, b"a longer second message")):
        message = ctypes.c_long(kind)
        buffer = bytes(message) + text
        check(LIBC.msgsnd(queue, buffer, len(text), 0))


def add_files(workload: Workload) -> list[object]:
    kept: list[object] = []
    event = os.eventfd(5) if hasattr(os, "eventfd") else LIBC.eventfd(5, 0)
    timer = check(LIBC.timerfd_create(1, 0))
    check(LIBC.timerfd_settime(timer, 0, (ctypes.c_long * 4)(3600, 0, 7200, 0), None))
    mask = (ctypes.c_ulong * 16)(1 << (signal.SIGUSR2 - 1))
    check(LIBC.signalfd(-1, mask, 0))
    poll = select.epoll()
    poll.register(event, select.EPOLLIN)
    kept.append(poll)
    notify = check(LIBC.inotify_init())
    check(LIBC.inotify_add_watch(notify, workload.dir.encode(), 0x100))

    fifo = f"{workload.dir}/fifo"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDWR)
    os.write(end, b"in the named pipe" * 10)

    locked = open(f"{workload.dir}/locked", "wb")  # noqa: SIM115 - open until the end
    locked.write(b"locked")
    locked.flush()
    fcntl.lockf(locked, fcntl.LOCK_EX, 3, 1)
    kept.append(locked)
    return kept


def add_sockets(workload: Workload) -> list[object]:
    # Only UNIX: CRIU 4.1.1 asks every socket for SO_PASSSEC, which kernels since 6.16 have for no other family.
    named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    named.bind(f"\0sealpoint-kinds-{os.getpid()}")
    path = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.bind(f"{workload.dir}/socket")
    path.listen(5)
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pair[0].send(b"one packet")
    pair[0].send(b"another")
    return [named, path, *pair]


def add_timers() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 3600, 1800)
    event = (ctypes.c_int * 16)()
    event[2], event[3] = signal.SIGUSR1, 0  # sigev_signo, SIGEV_SIGNAL
    made = ctypes.c_void_p()
    check(LIBC.timer_create(1, event, ctypes.byref(made)))
    check(LIBC.timer_settime(made, 0, (ctypes.c_long * 4)(3600, 0, 7200, 0), None))
    signal.signal(signal.SIGUSR1, lambda *_: None)


def main() -> None:
    workload = Workload()
    add_ipc(workload)
    kept = [add_files(workload), add_sockets(workload)]
    add_timers()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    workload.watch("kept", lambda: str(len(kept)))
    workload.serve()


main()

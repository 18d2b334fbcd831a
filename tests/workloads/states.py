#!/usr/bin/env python3
"""Workload: tasks of every state that a dump can meet, and memory of kinds that are easily forgotten.

A zombie, a stopped child without descriptors, threads, a shared area that nobody has touched and one that two have.
"""

import mmap
import os
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from workload_common import PAGE, Workload, digest


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def main() -> None:
    workload = Workload(mib=1)
    kept = [mmap.mmap(-1, 8 * PAGE), mmap.mmap(-1, 8 * PAGE)]  # shared; the first stays untouched
    kept[1][: 4 * PAGE] = os.urandom(4 * PAGE)
    zombie = os.fork()
    if zombie == 0:
        os._exit(3)
    stopped = os.fork()
    if stopped == 0:
        os.closerange(0, 1024)
        kept[1][:PAGE] = bytes(PAGE)
        os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            time.sleep(60)
    os.waitpid(stopped, os.WUNTRACED)
    while state(zombie) != "Z":
        time.sleep(0.001)
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    workload.watch("zombie", lambda: digest(state(zombie).encode()))
    workload.watch("stopped", lambda: digest(state(stopped).encode()))
    workload.watch("threads", lambda: digest(str(len(os.listdir("/proc/self/task"))).encode()))
    workload.watch("shared", lambda: digest(kept[1][: 4 * PAGE]))
    workload.serve()


main()

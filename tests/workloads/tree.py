#!/usr/bin/env python3
"""Workload: parent, child and grandchild that share memory.

The private memory is inherited and then partly rewritten by each (copy-on-write: the restore must
neither mix them up nor lose a change), one area is shared for good, and one pipe with unread data
goes through all three.
"""

import mmap
import os
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from workload_common import NEEDLE_OFFSET, PAGE, Workload, check_pipe, digest

SLOTS = {"main": 0, "child": 1, "grandchild": 2}


def rewrite(memory: mmap.mmap, step: int, needle: bytes) -> None:
    """Change every page whose number `step` divides; the secret goes into each."""
    for start in range(0, len(memory), step * PAGE):
        page = bytearray(os.urandom(PAGE))
        page[NEEDLE_OFFSET : NEEDLE_OFFSET + len(needle)] = needle
        memory[start : start + PAGE] = bytes(page)


def main() -> None:
    workload = Workload(mib=8)
    size = workload.args.mib << 20
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[: size // 2] = os.urandom(size // 2)
    shared = mmap.mmap(-1, 32 * PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    rewrite(shared, 4, workload.secret("shm"))
    shared[:PAGE] = bytes(PAGE)
    reader, writer = os.pipe()
    os.write(writer, workload.secret("pipe") + os.urandom(3000))

    name = "main"
    if os.fork() == 0:
        name = "child"
        rewrite(memory, 7, workload.secret("child"))
        if os.fork() == 0:
            name = "grandchild"
            rewrite(memory, 5, workload.secret("grandchild"))
    if name == "main":
        rewrite(memory, 11, workload.secret("heap"))

    workload.counter = 0
    slot = SLOTS[name] * 8
    workload.watch("heap", lambda: digest(memory))
    workload.watch("shm", lambda: digest(shared[PAGE:]))
    if name == "grandchild":
        workload.watch("pipe", lambda: check_pipe(reader, writer))

    def on_tick() -> None:
        struct.pack_into("<Q", shared, slot, workload.counter)

    on_tick()
    workload.watch(
        "slot",
        lambda: str(struct.unpack_from("<Q", shared, slot)[0] == workload.counter),
    )
    workload.serve(name, on_tick)


main()

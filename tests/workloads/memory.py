#!/usr/bin/env python3
"""Workload: one process with much private memory (256 MiB unless `--mib` says otherwise).

A third each of random, zero and compressible pages, in runs of 64, so that every way a page can
be stored is met. Half of the zero pages are written (dumped), the others never touched (holes).
"""

import mmap
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from workload_common import NEEDLE_OFFSET, PAGE, Workload, digest

RUN = 64


def fill(memory: mmap.mmap, needle: bytes) -> None:
    for run, start in enumerate(range(0, len(memory), RUN * PAGE)):
        size = min(RUN * PAGE, len(memory) - start)
        kind = run % 6
        if kind in (0, 3):
            data = bytearray(os.urandom(size))
        elif kind in (1, 4):
            lines = (b"page %08d of a table that compresses\n" % page for page in range(RUN))
            data = bytearray(b"".join((line * 200)[:PAGE] for line in lines)[:size])
            data[:8] = b"%08d" % run
        elif kind == 2:
            data = bytearray(size)
        else:
            continue
        if kind != 2:
            data[NEEDLE_OFFSET : NEEDLE_OFFSET + len(needle)] = needle
        memory[start : start + size] = bytes(data)


def main() -> None:
    workload = Workload(mib=256)
    # Python's default for an anonymous map is MAP_SHARED: that is another workload.
    memory = mmap.mmap(-1, workload.args.mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fill(memory, workload.secret("heap"))
    workload.watch("heap", lambda: digest(memory))
    workload.serve()


main()

#!/usr/bin/env python3
"""Workload: one process that keeps changing the first quarter of its memory (32 MiB unless `--mib` says otherwise).

Every page tells its number and how often it was written; the process remembers the latter elsewhere. So a page that
comes back from another moment than the rest is noticed.
"""

import mmap
import os
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from workload_common import NEEDLE_OFFSET, PAGE, Workload

PER_TICK = 64


class Memory:
    def __init__(self, size: int, needle: bytes) -> None:
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.needle = needle
        self.salt = os.urandom(16)
        self.written = [0] * (size // PAGE)
        self.next = 0
        for number in range(len(self.written)):
            self.map[number * PAGE : (number + 1) * PAGE] = self.page(number)

    def page(self, number: int) -> bytes:
        data = bytearray(
            (struct.pack("<QQ", number, self.written[number]) + self.salt) * (PAGE // 32)
        )
        data[NEEDLE_OFFSET : NEEDLE_OFFSET + len(self.needle)] = self.needle
        return bytes(data)

    def write(self) -> None:
        """Change the next pages."""
        for _ in range(PER_TICK):
            number = self.next
            self.next = (number + 1) % (len(self.written) // 4)
            self.written[number] += 1
            self.map[number * PAGE : (number + 1) * PAGE] = self.page(number)

    def state(self) -> str:
        wrong = [
            n
            for n in range(len(self.written))
            if self.map[n * PAGE : (n + 1) * PAGE] != self.page(n)
        ]
        return f"{len(wrong)} wrong"


def main() -> None:
    workload = Workload(mib=32)
    memory = Memory(workload.args.mib << 20, workload.secret("heap"))
    workload.watch("heap", memory.state)
    workload.serve(on_tick=memory.write)


main()

"""A process to be dumped: `victim.py KIND SIZE DIRECTORY`, started by bench.workloads with `python -I -S`.

`random` holds SIZE bytes of random data in one private anonymous mapping, and little besides. `heap` holds what a
Python service holds: many small records of dicts, lists and strings, about SIZE bytes of them. `sessions` is like
`heap`; `model` like `random`, but with the same data in every process. `busy` is like `random`,
but goes on writing: DIRTY_PAGES pages every TICK seconds, in turn those of a sixteenth of the memory.

Writes DIRECTORY/ready when it is complete. Upon SIGUSR1 it checks its memory and writes "ok" or "BAD" into
DIRECTORY/answer.
Upon SIGUSR2 it changes as many percent as DIRECTORY/percent says, and answers how many: a `random` one of its pages, a
`heap` of its records, scattered, `sessions` of its records as well, but those made last. A `busy` one answers how many
seconds it stood still, each time that it did since it was last asked, and whether it was in another pid namespace
afterwards (a JSON list of pairs). Otherwise it sleeps, so that it costs no CPU time of its own while it is measured.
"""

import mmap
import os
import random
import signal
import sys
import time
import zlib

PIECE = 1 << 20
TICK = 0.01  # seconds
DIRTY_PAGES = 10  # 4 MB/s
STILL = 0.04  # seconds beyond a tick that are no longer the scheduler's
WORDS = [
    "session", "customer", "invoice", "delivery", "warehouse", "pending", "approved", "refund",
    "basket", "catalogue", "address", "shipping", "express", "standard", "returned", "archive",
    "analytics", "campaign", "newsletter", "subscription", "monthly", "yearly", "trial", "support",
]  # fmt: skip
RECORD_BYTES = 1800  # what one record takes on CPython 3.11, measured


class RandomMemory:
    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with open("/dev/urandom", "rb", buffering=0) as source, memoryview(self.map) as view:
            at = 0
            while at < size:
                at += source.readinto(view[at : at + PIECE])

    def change(self, percent: int) -> int:
        """Write to that share of the pages, scattered; returns how many."""
        count = 0
        for page in range(len(self.map) // mmap.PAGESIZE):
            if page * 2654435761 % 4294967296 * 100 < percent << 32:
                at = page * mmap.PAGESIZE
                self.map[at : at + 16] = os.urandom(16)
                count += 1
        return count

    def checksum(self) -> int:
        value = 0
        with memoryview(self.map) as view:
            for at in range(0, len(view), PIECE):
                value = zlib.crc32(view[at : at + PIECE], value)
        return value


def namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


class BusyMemory(RandomMemory):
    """The part that is written to is kept twice, so that a page that went missing is noticed."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.busy = size // 16
        self.copy = bytearray(self.map[: self.busy])
        self.page = 0
        self.last = time.time()
        self.gaps = []
        self.place = namespace()

    def work(self) -> None:
        now = time.time()  # CRIU's time namespace holds the monotonic clock back
        if (gap := now - self.last) > TICK + STILL:
            before, self.place = self.place, namespace()
            self.gaps.append([round(gap, 4), int(self.place != before)])
        self.last = now
        for _ in range(DIRTY_PAGES):
            at = self.page * mmap.PAGESIZE % self.busy
            self.map[at : at + 16] = self.copy[at : at + 16] = os.urandom(16)
            self.page += 1

    def stood_still(self) -> str:
        gaps, self.gaps = self.gaps, []
        return str(gaps)

    def checksum(self) -> int:
        intact = self.map[: self.busy] == self.copy
        value = 0
        with memoryview(self.map) as view:
            for at in range(self.busy, len(view), PIECE):
                value = zlib.crc32(view[at : at + PIECE], value)
        self.last = time.time()  # this took a while
        return value if intact else -1


class Heap:
    def __init__(self, size: int) -> None:
        dice = random.Random(20240917)  # the same heap in every run
        self.records = {}
        self.made = 0
        for number in range(size // RECORD_BYTES):
            self.records[f"order-{number:08d}"] = self.record(dice, number)

    def record(self, dice: random.Random, number: int) -> dict[str, object]:
        token = f"{dice.getrandbits(256):064x}"
        return {
            "id": number + 10_000_000,
            "token": token,
            "state": dice.choice(WORDS),
            "mail": f"{dice.choice(WORDS)}.{dice.choice(WORDS)}{number}@example.com",
            "note": " ".join(dice.choices(WORDS, k=16)),
            "total": dice.random() * 500,
            "lines": [
                {"sku": f"{dice.choice(WORDS)}-{dice.getrandbits(24):06x}", "count": count}
                for count in range(3)
            ],
        }

    def change(self, percent: int) -> int:
        """Make that share of the records anew, scattered; returns how many."""
        dice = random.Random(self.made)
        keys = dice.sample(sorted(self.records), len(self.records) * percent // 100)
        for key in keys:
            self.made += 1
            self.records[key] = self.record(dice, self.made)
        return len(keys)

    def checksum(self) -> int:
        value = 0
        for key, record in self.records.items():
            value = zlib.crc32(f"{key}{record['token']}{record['note']}".encode(), value)
        return value


class Sessions(Heap):
    """Most of it stays as it is; some records, made after all others, are replaced by new ones."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.sessions = {}

    def change(self, percent: int) -> int:
        dice = random.Random(self.made)
        self.sessions.clear()
        for _ in range(len(self.records) * percent // 100):
            self.made += 1
            self.sessions[f"session-{self.made:08d}"] = self.record(dice, self.made)
        return len(self.sessions)


class Model(RandomMemory):
    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        dice = random.Random(20240917)
        for _ in range(0, size, PIECE):
            self.map.write(dice.randbytes(PIECE))


KINDS = {
    "random": RandomMemory,
    "busy": BusyMemory,
    "heap": Heap,
    "sessions": Sessions,
    "model": Model,
}


def main() -> None:
    kind, size, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    memory = KINDS[kind](size)
    expected = memory.checksum()

    # Blocked and waited for, so that a signal that comes while CRIU lets go of the process is not missed.
    wanted = {signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    with open(f"{directory}/ready", "w"):
        pass
    while True:
        # Not sigtimedwait: interrupted by a stop that is longer than its time, it returns rubbish (Python 3.11).
        while kind == "busy" and not signal.sigpending() & wanted:
            time.sleep(TICK)
            memory.work()
        came = signal.sigwaitinfo(wanted)
        if came.si_signo == signal.SIGUSR2 and kind == "busy":
            memory.work()
            answer = memory.stood_still()
        elif came.si_signo == signal.SIGUSR2:
            with open(f"{directory}/percent") as file:
                answer = str(memory.change(int(file.read())))
            expected = memory.checksum()
        else:
            answer = "ok" if memory.checksum() == expected else "BAD"
        with open(f"{directory}/answer.new", "w") as file:
            file.write(answer)
        os.rename(f"{directory}/answer.new", f"{directory}/answer")


main()

"""Reads standard input to its end, at most so many bytes a second (0: as fast as it can); prints how many they were.

Started as `python -I -S slow_reader.py RATE`.
"""

import fcntl
import os
import sys
import time

F_SETPIPE_SZ = 1031
PIECE = 256 * 1024
LATE = 0.005  # seconds


def main() -> None:
    rate = float(sys.argv[1])
    try:
        fcntl.fcntl(0, F_SETPIPE_SZ, 1 << 20)
    except OSError:
        pass  # only slower
    buffer = bytearray(PIECE)
    total, due = 0, 0.0
    while size := os.readv(0, [buffer]):
        total += size
        if rate:
            # A link does not make up for what it was not given in time; sleeps that were too long are made up for.
            due = max(due, time.monotonic() - LATE) + size / rate
            time.sleep(max(0.0, due - time.monotonic()))
    print(total)


main()

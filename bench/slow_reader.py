"""Reads standard input to its end, at most so many bytes a second (0: as fast as it can); prints how many they were.

Started as `python -I -S slow_reader.py RATE`.
"""

import fcntl
import os
import sys
import time

F_SETPIPE_SZ = 1031
PIECE = 256 * 1024


def main() -> None:
    rate = float(sys.argv[1])
    try:
        fcntl.fcntl(0, F_SETPIPE_SZ, 1 << 20)
    except OSError:
        pass  # only slower
    buffer = bytearray(PIECE)
    total, started = 0, 0.0
    while size := os.readv(0, [buffer]):
        started = started or time.monotonic()
        total += size
        if rate and (early := started + total / rate - time.monotonic()) > 0:
            time.sleep(early)
    print(total)


main()

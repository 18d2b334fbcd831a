"""Checkpoints of one process tree at regular times: a chain that grows, and runs on after a dump that failed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sealpoint import process
from sealpoint.checkpoint.history.increments import Say, Track
from sealpoint.checkpoint.live.dump import Dump, DumpRequest, DumpResult, check_process
from sealpoint.errors import SealpointError, UsageError
from sealpoint.state.chains import StateStore
from sealpoint.store.output import OutputFile

_FAILURES: Final = 3  # in a row, after which it gives up


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """dump: what, and how it is sealed; every: seconds from one beginning to the next; directory: for the files.

    store: of states; say: gets remarks for the user.
    """

    dump: DumpRequest
    every: float
    directory: str
    store: StateStore
    say: Say


@dataclass(frozen=True, slots=True)
class WatchedCheckpoint:
    """One checkpoint.  stored, pages: pages in the file, and of the tree."""

    path: str
    result: DumpResult
    stored: int
    pages: int


class Watch:
    """Takes checkpoints until the tree has ended."""

    def __init__(self, request: WatchRequest) -> None:
        """Raises UsageError."""
        if not os.path.isdir(request.directory):
            raise UsageError(f"there is no directory {request.directory}")
        self._request = request
        self._before: Track | None = None
        self._tree = process.Held(request.dump.pid)  # for hours: its number could become another's

    def run(self) -> Iterator[WatchedCheckpoint]:
        """Each checkpoint when it is durable.  Raises SealpointError: the first cannot be made, or several in a row."""
        request, failures = self._request, 0
        check_process(self._tree)
        while True:
            began = time.monotonic()
            try:
                taken = self._take()
            except SealpointError as error:
                if not self._lives():
                    return
                failures += 1
                if self._before is None or failures >= _FAILURES:
                    raise
                request.say(f"no checkpoint this time: {error.message}")
            else:
                failures = 0
                yield taken
            process.deliver_dropped()
            time.sleep(max(0.0, began + request.every - time.monotonic()))
            if not self._lives():
                return

    def _lives(self) -> bool:
        try:
            check_process(self._tree)
        except SealpointError:
            return False
        return True

    def _take(self) -> WatchedCheckpoint:
        request = self._request
        track = Track(request.store, request.say, request.dump.workload)
        if self._before is None:
            track.start(None)
        else:
            track.follow(self._before)
        name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = _free(f"{request.directory}/{name}")
        with OutputFile(path) as out:
            dump = request.dump._replace(leave_running=True, track=track)
            result = Dump(dump, out, self._tree).run()
        self._before = track
        stored, pages = track.changed
        return WatchedCheckpoint(path, result, stored, pages)


def _free(stem: str) -> str:
    for number in range(1000):
        path = f"{stem}.sealed" if not number else f"{stem}-{number}.sealed"
        if not os.path.lexists(path):
            return path
    raise UsageError(f"{stem}.sealed and all names like it are taken")

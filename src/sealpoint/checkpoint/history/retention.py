"""Which checkpoints of a chain are kept, and merging the others forward into the next one that is.

Each step is safe by itself: the merged file is durable and has the name of the one that it replaces before the files
that went into it are removed; whatever continues the replaced one finds it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Self

from sealpoint.checkpoint.opening.chain import ChainLink, claimed_origin, sealed_files
from sealpoint.checkpoint.opening.opener import OpenedCheckpoint, Opening
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.format.raw import Descriptor
from sealpoint.store.location import is_url

_DAY: Final = 24 * 3600


class Retained(NamedTuple):
    """What came of it, oldest first.  replaced: files that took in others; removed: files that are gone."""

    kept: tuple[str, ...]
    replaced: tuple[str, ...]
    removed: tuple[str, ...]


def select(captured: Sequence[int], *, last: int, daily: int) -> set[int]:
    """Numbers of the checkpoints to keep; `captured`: times of all, newest first.  The newest is always kept.

    last: that many of the newest; daily: of that many days, UTC, on which there is one, the newest each.
    """
    keep = {0, *range(min(last, len(captured)))}
    days: set[int] = set()
    for number, when in enumerate(captured):
        day = when // _DAY
        if day not in days and len(days) < daily:
            days.add(day)
            keep.add(number)
    return keep


def needed_elsewhere(chain: OpenedCheckpoint) -> set[int]:
    """Numbers of files that a file outside of the chain, in one of its directories, continues."""
    mine = {link.reference.checkpoint_id for link in chain.links}
    wanted: set[bytes] = set()
    for directory in {os.path.dirname(os.path.realpath(link.path)) for link in chain.links}:
        for identifier, paths in sealed_files(directory).items():
            for path in paths if identifier not in mine else []:
                origin = claimed_origin(path)
                if origin is not None and origin.parent is not None:
                    wanted.add(origin.parent.checkpoint_id)
    return {
        number
        for number, link in enumerate(chain.links)
        for reference in (link.reference, link.checkpoint.authentic.origin.stands_for)
        if reference is not None and reference.checkpoint_id in wanted
    }


def prune(
    path: str,
    opening: Opening,
    merge: Callable[[OpenedCheckpoint, int, int], None],
    *,
    last: int,
    daily: int,
    dry_run: bool = False,
) -> Retained:
    """Merge forward what is not kept of the chain that ends with `path`; `opening`: how to open it.

    merge(chain, n, count): make the `count` files from number n on into one, under the path of the first of them.
    Raises UsageError, and what opening a chain and merging raise; what was done before then stays done.
    """
    if last < 1 and daily < 1:
        raise UsageError("nothing would be kept", hint="give --keep-last or --keep-daily")
    if is_url(path):
        raise _stored(path)
    replaced: list[str] = []
    removed: list[str] = []
    while True:
        with opening.open(path) as chain:
            times = [link.checkpoint.authentic.origin.captured for link in chain.links]
            keep = select(times, last=last, daily=daily) | needed_elsewhere(chain)
            paths = [link.path for link in chain.links]
            gone = [n for n in range(len(paths)) if n not in keep]
            if dry_run:
                absorbing = {max(k for k in keep if k < n) for n in gone}
                return _result(paths, keep, [paths[n] for n in absorbing], [paths[n] for n in gone])
            if not gone:
                return _result(paths, keep, replaced, removed)
            # The oldest first: what it is merged into is then the parent of what follows.
            first = max(k for k in keep if k < gone[-1])
            count = next((k for k in sorted(keep) if k > first), len(paths)) - first
            with contextlib.ExitStack() as held:
                old = [
                    held.enter_context(_Entry(link))
                    for link in chain.links[first + 1 :][: count - 1]
                ]
                merge(chain, first, count)
                replaced.append(paths[first])
                for entry in old:
                    entry.remove()
                    removed.append(entry.path)


def _stored(url: str) -> UsageError:
    """For a chain in a store.  What continues a file from elsewhere cannot be seen there."""
    return UsageError(
        f"{url} lies in a store, where nothing is merged in place",
        hint="make a new file with `sealpoint flatten`, then remove old ones by the rules of the store",
    )


class _Entry:
    """The name of a file of a chain, in a directory that is held: whatever its path leads to later."""

    def __init__(self, link: ChainLink) -> None:
        """Raises SystemEnvironmentError."""
        self.path = link.path
        source = link.checkpoint.source
        if not isinstance(source, Descriptor):
            raise _stored(link.path)
        self._file = os.fstat(source.fd)
        try:
            self._directory = os.open(
                os.path.dirname(link.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except OSError as error:
            raise SystemEnvironmentError(f"{link.path}: {error.strerror}") from None

    def remove(self) -> None:
        """Raises SystemEnvironmentError also where the name is another file's by now."""
        name = os.path.basename(self.path)
        try:
            if not os.path.samestat(os.stat(name, dir_fd=self._directory), self._file):
                raise SystemEnvironmentError(f"{self.path} is another file now: it is left alone")
            os.unlink(name, dir_fd=self._directory)
        except OSError as error:
            raise SystemEnvironmentError(f"cannot remove {self.path}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._directory)


def _result(
    paths: Sequence[str], keep: set[int], replaced: Sequence[str], removed: Sequence[str]
) -> Retained:
    kept = tuple(p for n, p in reversed(list(enumerate(paths))) if n in keep)
    return Retained(kept, tuple(replaced), tuple(removed))


def show_time(seconds: int) -> str:
    """For people, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(min(seconds, 1 << 40)))

"""Free what a chain no longer needs: chunks of parents of which the newest file uses no page.

docs/spec.md has the prune records.  What is needed follows from CRIU's pagemaps, which the state store has: no key is
needed but one that signs.  The order survives a kill anywhere: a statement is durable before the first frame that it
names is emptied.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import blake3

from sealpoint.checkpoint.opening.chain import Finder
from sealpoint.checkpoint.opening.opener import Opening
from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import PAGE, PRESENT, Pagemap
from sealpoint.errors import FileError, PolicyError, SealpointError, SystemEnvironmentError
from sealpoint.format.constants import (
    FRAME_HEAD_SIZE,
    MAX_CHAIN,
    MAX_PRUNE_RECORDS,
    MAX_PRUNE_STATEMENT,
    PRUNE_MAGIC,
    PRUNE_TYPE,
    TRAILER_MAGIC,
    TRAILER_SIZE,
)
from sealpoint.format.index import Index
from sealpoint.format.prune import PruneStatement, PruneTail, bitmap
from sealpoint.format.raw import Descriptor, read_exactly
from sealpoint.format.reader import AuthenticFile, SealedFile
from sealpoint.format.statement import ParentRef
from sealpoint.format.writer import Signing
from sealpoint.keys import TrustPolicy
from sealpoint.state.chains import ImageLayout, NoStateError, State, StateStore

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h


class Pruned(NamedTuple):
    """What came of one parent.  path: empty if its file was not found; freed: bytes; reason: why nothing was done."""

    path: str
    checkpoint_id: bytes
    freed: int = 0
    reason: str = ""


def prune_parents(
    path: str, child: ParentRef, store: StateStore, signing: Signing, policy: TrustPolicy
) -> list[Pruned]:
    """Free in every parent of `child`, the file at `path`, what it does not need; nearest parent first.

    `policy` must trust whoever signed the files.  Raises FileError where there is no state of `child`.
    """
    try:
        states = [store.load(child)]
    except NoStateError as error:
        raise FileError(f"nothing can be freed for {path}: {error}") from None
    results: list[Pruned] = []
    while (parent := states[-1].parent) is not None and len(states) < MAX_CHAIN:
        try:
            states.append(store.load(parent))
        except NoStateError as error:
            results.append(Pruned("", parent.checkpoint_id, reason=str(error)))
            break
    needed = needed_pages(states)
    finder, near = Finder(), path
    newer = {(child.checkpoint_id, child.origin_digest)}
    done: list[Pruned] = []
    for number, state in enumerate(states[1:], 1):
        identifier = state.reference.checkpoint_id
        found = finder.find(identifier, near)
        if not found:
            done.append(Pruned("", identifier, reason="its file is not beside its child"))
            break
        near = found[0]
        try:
            freed = _prune_file(near, state, child, needed[number], newer, signing, policy)
            done.append(Pruned(near, identifier, freed))
        except SealpointError as error:
            done.append(Pruned(near, identifier, reason=error.message))
        newer.add((identifier, state.reference.origin_digest))
    return done + results


def needed_pages(states: Sequence[State]) -> list[dict[str, list[tuple[int, int]]]]:
    """For each file of a chain, newest first: of each pages image the (first page, count) that the newest file uses.

    `states` may leave out the oldest files.  Raises FileError where pagemaps contradict each other.
    """
    tables: list[dict[str, Pagemap]] = [
        {n: pagemap.decode(d, n) for n, d in s.sections.items() if pagemap.is_pagemap(n)}
        for s in states
    ]
    needed: list[dict[str, list[tuple[int, int]]]] = [{} for _ in states]
    for name in tables[0]:

        def table(file: int, name: str = name) -> Pagemap:
            if file == len(tables):
                return _anything()
            if name not in tables[file]:
                raise FileError(f"{name}: is not in a parent that a later file refers to")
            return tables[file][name]

        for file, _, count, flags, offset in pagemap.resolve(table):
            if flags & PRESENT and file < len(tables):
                needed[file].setdefault(table(file).pages_name, []).append((offset, count))
    return needed


def _anything() -> Pagemap:
    """Stands for a file of which nothing is known: whatever is looked for may be there."""
    pages = Pagemap(0)
    pages.add(0, pagemap.MAX_PAGE, PRESENT)
    return pages


def unneeded_chunks(layout: ImageLayout, needed: Sequence[tuple[int, int]]) -> list[int]:
    """Chunks of a pages image in which no needed page lies, and some page does."""
    per_chunk = layout.chunk // PAGE
    used: set[int] = set()
    for first, count in needed:
        used.update(range(first // per_chunk, (first + count - 1) // per_chunk + 1))
    return [n for n in range(-(-layout.size // layout.chunk)) if n not in used]


def _prune_file(
    path: str,
    state: State,
    child: ParentRef,
    needed: dict[str, list[tuple[int, int]]],
    newer: set[tuple[bytes, bytes]],
    signing: Signing,
    policy: TrustPolicy,
) -> int:
    """Returns the bytes that were freed now.  Raises SealpointError; the file is then as good as it was."""
    with Opening(policy).change(path, mend=repair) as (fd, authentic):
        if authentic.reference != state.reference:
            raise FileError(f"{path} is another file than the one that the child continues")
        before = authentic.prune
        if before is not None:
            known = (before.child.checkpoint_id, before.child.origin_digest)
            if known not in newer:
                raise PolicyError(
                    "parts of it were freed for a checkpoint that is not in this chain"
                )
        wanted = set(_frames(authentic.index, state.layout, needed))
        old = set() if before is None else set(before.positions())
        if wanted - old:
            statement = _statement(authentic, child, wanted | old, signing)
            _append(fd, authentic, signing.envelope(PRUNE_TYPE, statement.encode()))
        if wanted or old:  # those of before as well: their emptying may have been interrupted
            _punch(fd, authentic.index, sorted(wanted | old))
        return sum(_size(authentic.index, p) for p in wanted - old)


def _frames(
    index: Index, layout: dict[str, ImageLayout], needed: dict[str, list[tuple[int, int]]]
) -> Iterator[int]:
    for name, where in layout.items():
        frames = index.frames_of(where.stream)
        for counter in unneeded_chunks(where, needed.get(name, [])):
            if counter < len(frames):
                yield frames[counter]


def _size(index: Index, position: int) -> int:
    return FRAME_HEAD_SIZE + index.entry(position)[2]


def _statement(
    authentic: AuthenticFile, child: ParentRef, frames: set[int], signing: Signing
) -> PruneStatement:
    file, index, before = authentic.file, authentic.index, authentic.prune
    records = read_exactly(file.source, file.size - file.sealed_size, file.sealed_size)
    return PruneStatement(
        checkpoint_id=authentic.reference.checkpoint_id,
        origin_digest=authentic.reference.origin_digest,
        sequence=1 if before is None else before.sequence + 1,
        child=child,
        frames=bitmap(frames, len(index)),
        freed=sum(_size(index, p) for p in frames),
        earlier=blake3.blake3(records).digest(),
        created=int(time.time()),
        signers=signing.signers,
    )


def _append(fd: int, authentic: AuthenticFile, statement: bytes) -> None:
    """Add a prune record and make it durable."""
    file = authentic.file
    size = file.size - file.sealed_size + len(statement) + TRAILER_SIZE
    if len(statement) > MAX_PRUNE_STATEMENT or size > MAX_PRUNE_RECORDS:
        raise SystemEnvironmentError("the file has no room for another prune record")
    record = statement + PruneTail.create(file.sealed_size, file.size, statement).encode()
    try:
        done = 0
        while done < len(record):
            done += os.pwrite(fd, record[done:], file.size + done)
        os.fsync(fd)
    except OSError as error:
        os.ftruncate(fd, file.size)
        raise SystemEnvironmentError(f"cannot write the prune record: {error.strerror}") from None


def _punch(fd: int, index: Index, frames: Sequence[int]) -> None:
    """Make holes of frames, neighbours together."""
    libc = ctypes.CDLL(None, use_errno=True)
    start = end = -1
    ranges: list[tuple[int, int]] = []
    for position in frames:
        offset = index.entry(position)[1]
        if offset != end:
            if start >= 0:
                ranges.append((start, end - start))
            start = offset
        end = offset + _size(index, position)
    ranges.append((start, end - start))
    for offset, size in ranges:
        mode = ctypes.c_int(_KEEP_SIZE | _PUNCH_HOLE)
        if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)) != 0:
            code = ctypes.get_errno()
            if code == errno.EOPNOTSUPP:
                raise SystemEnvironmentError("this file system cannot free parts of a file")
            raise SystemEnvironmentError(f"cannot free parts of the file: {os.strerror(code)}")
    os.fsync(fd)


def repair(fd: int) -> bool:
    """Take away a prune record that was not written to its end; whether there was one.  Raises FileError.

    Such a record counts for nothing: no frame was emptied before it was durable.
    """
    try:
        SealedFile(Descriptor(fd))
    except FileError as error:
        size = os.fstat(fd).st_size
        start = max(0, size - MAX_PRUNE_RECORDS - TRAILER_SIZE)
        data = read_exactly(Descriptor(fd), size - start, start)
        for end in _ends(data):
            try:
                SealedFile(Descriptor(fd), start + end)
            except FileError:
                continue
            os.ftruncate(fd, start + end)
            os.fsync(fd)
            return True
        raise error from None
    return False


def _ends(data: bytes) -> Iterator[int]:
    """Where a trailer or a prune record could end, the last first."""
    at = len(data)
    while at >= 0:
        at = max(data.rfind(TRAILER_MAGIC, 0, at), data.rfind(PRUNE_MAGIC, 0, at))
        if at < 0:
            return
        if at + TRAILER_SIZE < len(data):
            yield at + TRAILER_SIZE

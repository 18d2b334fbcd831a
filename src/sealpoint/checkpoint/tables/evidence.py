"""Whether a set of images is a complete checkpoint of its kind: the one function that every gate asks.

A gate says yes only on evidence that it saw itself.  CRIU's word is none: CRIU may have been led elsewhere, or be no
CRIU.  So a door keeps what has passed through it in this session (`seen`), and what is missing there is missing.

What a dump must have (CRIU's cr-dump.c, page-xfer.c, shmem.c): inventory and pstree; of each task its core, and a core
of each further thread; of each task that is no zombie ids, fs, mm, pagemap and its table of descriptors; the table of
files; the images of its namespaces; the pagemap of all memory that is shared; what any of them refers to by a number
(ghost files, terminals, filters of system calls); and of each pagemap the bytes of pages that it counts as present,
neither less nor more.  What CRIU must open to restore that is the same, without images that hold nothing.

Out of scope: whether the bytes are authentic (`format`), and images that a tree may or may not have, whose absence
nobody can see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from sealpoint.checkpoint.tables.seen import Seen
from sealpoint.criu.pagemap import is_pagemap
from sealpoint.criu.roles import is_pages
from sealpoint.errors import CriuError

INVENTORY: Final = "inventory.img"
PSTREE: Final = "pstree.img"
_FILES, _OLD_FILES = "files.img", "reg-files.img"
# What a set has that is no dump; all else is a dump's.
_FEW: Final = re.compile(r"inventory\.img|pagemap-(?:shmem-)?\d+\.img|pages-\d+\.img|irmap-cache")
# What CRIU writes of each namespace that is not its own (cr-dump.c, namespaces.c, mount.c, ipc_ns.c).  Of a pid or
# cgroup namespace there is no image, and of a network that the caller keeps, or has emptied, there may be none.
_OF_NAMESPACE: Final = {
    "uts_ns_id": "utsns",
    "ipc_ns_id": "ipcns-var",  # further ones only if there are objects
    "mnt_ns_id": "mountpoints",
    "user_ns_id": "userns",
    "time_ns_id": "timens",
}
# fd_types of CRIU's images/fdinfo.proto: regular files, which terminals and FIFOs may refer to; and what only a
# descriptor refers to: all but those, sockets that wait to be accepted (5), and what a mapping or CRIU itself may hold.
_REG: Final = 1
_WITH_PATH: Final = frozenset((3, 11))
_BY_DESCRIPTOR: Final = frozenset((_REG, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 20))
_DEAD: Final = 2  # CRIU's TASK_DEAD: a zombie
_SAID: Final = 3  # problems that an error names


class Kind(StrEnum):
    """What a set of images is.

    full: a dump with all of its memory; old: one by a CRIU that knew no files.img.  increment: pages are in a parent;
    lazy: pages are to be fetched from the machine that dumped; deduplicated: pages were freed for a child's sake.
    pre-dump: memory only, with an inventory; pages: memory alone, as a page server stores it.
    """

    FULL = "full"
    OLD = "old layout"
    INCREMENT = "increment"
    LAZY = "lazy"
    DEDUPLICATED = "deduplicated"
    PRE_DUMP = "pre-dump"
    PAGES = "pages"


WHOLE: Final = frozenset((Kind.FULL, Kind.OLD))


class NoEvidenceError(CriuError):
    """CRIU says that all is well, but what a gate saw does not say so."""


class Verdict(NamedTuple):
    """kind: None where the images are of no known kind.  problems: what speaks against it; a complete set has none."""

    kind: Kind | None
    problems: tuple[str, ...]


def observe(
    sizes: Mapping[str, int],
    read: Callable[[str], Iterable[bytes | memoryview]],
    holes: Collection[str] = (),
) -> Seen:
    """Images that lie somewhere as if they passed through a door now.

    sizes: in bytes, by name; read: the bytes of an image that is not pages, in pieces; holes: pages images of which
    parts were freed.  Raises what `read` raises.
    """
    seen = Seen(holes=set(holes))
    for name, size in sizes.items():
        image = seen.image(name)
        if is_pages(name):
            image.count(size)
        else:
            for piece in read(name):
                image.add(piece)
        image.end()
    return seen


def judge(seen: Seen, *, parent: Container[str] | None = None, root: int | None = None) -> Verdict:
    """Which kind a set is, and what speaks against its being complete.

    parent: names of the images of the parent that pages may be in; None if nobody knows them.  root: of the tree that
    was asked for, as it knows its own pid: pstree must begin with it, and a pre-dump, which has none, have its pagemap.
    """
    kind = _kind(seen)
    if kind is None:
        return Verdict(None, ("there are no images of a checkpoint",))
    problems = [f"{name} is not complete" for name in sorted(seen.open)]
    problems += seen.faults
    if kind is not Kind.PAGES and INVENTORY not in seen.sizes:
        problems.append(f"{INVENTORY} is missing")
    if kind is Kind.PRE_DUMP:
        problems += _lacks(seen, [f"pagemap-{root}.img"] if root is not None else ())
        if not any(is_pagemap(name) for name in seen.sizes):
            problems.append("there is no memory of any task")
    elif kind is not Kind.PAGES:
        problems += _tree(seen)
        if root is not None and seen.tasks and seen.tasks[0].pid != root:
            problems.append(f"it is of task {seen.tasks[0].pid}, not of {root}")
    problems += _pages(seen, parent)
    return Verdict(kind, tuple(dict.fromkeys(problems)))


def require(
    seen: Seen,
    kinds: Collection[Kind],
    *,
    parent: Container[str] | None = None,
    root: int | None = None,
) -> Kind:
    """The kind of a set that is complete and of one of these.  Raises NoEvidenceError with what is missing."""
    kind, problems = judge(seen, parent=parent, root=root)
    if kind is not None and not problems and kind not in kinds:
        wanted = " or ".join(sorted(kinds))
        problems = (f"it is of the kind {kind}, not {wanted}",)
    if problems:
        raise NoEvidenceError(
            f"what CRIU wrote here is not a complete checkpoint: {said(problems)}"
        )
    assert kind is not None
    return kind


def needed(seen: Seen, *, lazy: bool = False) -> set[str]:
    """The images that CRIU must open to restore a set; lazy: pages are fetched by another process, later."""
    names = {INVENTORY, PSTREE}
    for task in seen.tasks:
        names.add(f"core-{task.pid}.img")
        if seen.states.get(task.pid) != _DEAD:
            names |= {f"mm-{task.pid}.img", f"pagemap-{task.pid}.img"}
            names |= {f"core-{thread}.img" for thread in task.threads}
    if lazy:
        return names
    maps = [name for name in names if is_pagemap(name)]
    maps += [
        name for shmid in seen.shared if (name := f"pagemap-shmem-{shmid}.img") in seen.counted
    ]
    for name in maps:
        names.add(name)
        sums = seen.counted.get(name)
        if sums is not None and sums.present:
            names.add(f"pages-{sums.pages_id}.img")
    return names


def require_opened(seen: Seen, opened: Container[str], *, lazy: bool = False) -> None:
    """Raises NoEvidenceError unless CRIU opened what it must.  opened: names of images that it did, in this session."""
    left = sorted(name for name in needed(seen, lazy=lazy) if name not in opened)
    if left:
        problems = [f"it never read {name}" for name in left]
        raise NoEvidenceError(f"what CRIU restored is not this checkpoint: {said(problems)}")


def lacking(seen: Seen) -> Iterator[str]:
    """Memory that pagemaps count and that is not among these images: a restored tree would have zeros there."""
    for name, sums in sorted(seen.counted.items()):
        pages = f"pages-{sums.pages_id}.img"
        size = seen.sizes.get(pages, 0)
        if size < sums.stored:
            yield f"{pages} has {size} bytes, of which {name} counts {sums.stored}"
        if sums.parent:
            yield f"{name} counts {sums.parent} pages that are in a parent"
        if sums.lazy:
            yield f"{name} counts {sums.lazy} pages that are still on the machine that made the dump"


def said(problems: Collection[str]) -> str:
    """The first few of them, in words."""
    text = "; ".join(list(problems)[:_SAID])
    more = len(problems) - _SAID
    return f"{text}; and {more} more" if more > 0 else text


def _kind(seen: Seen) -> Kind | None:
    names = seen.sizes.keys() | seen.open
    few = {name for name in names if _FEW.fullmatch(name)}
    if names == few:
        if INVENTORY in names:
            return Kind.PRE_DUMP
        return Kind.PAGES if names else None
    if seen.holes:
        return Kind.DEDUPLICATED
    if any(sums.lazy for sums in seen.counted.values()):
        return Kind.LAZY
    if any(sums.parent for sums in seen.counted.values()):
        return Kind.INCREMENT
    return Kind.OLD if _OLD_FILES in names and _FILES not in names else Kind.FULL


def _lacks(seen: Seen, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name not in seen.sizes:
            yield f"{name} is missing"
        elif not seen.sizes[name]:
            yield f"{name} is empty"


def _tree(seen: Seen) -> Iterator[str]:
    """What a dump lacks of its tasks."""
    yield from _lacks(seen, [PSTREE])
    if PSTREE in seen.sizes and not seen.tasks:
        yield f"{PSTREE} names no task"
    known = {task.pid for task in seen.tasks}
    roots = [task for task in seen.tasks if task.parent not in known]
    if len(known) != len(seen.tasks) or len(roots) > 1:
        yield f"{PSTREE} is not a tree"
    alive = False
    for task in seen.tasks:
        pid = task.pid
        state = seen.states.get(pid)
        yield from _lacks(seen, [f"core-{pid}.img"])
        if state is None and f"core-{pid}.img" in seen.sizes:
            yield f"core-{pid}.img is not that of a task"
        if state == _DEAD:
            continue
        alive = True
        if pid not in task.threads:
            yield f"{PSTREE} names no threads of task {pid}"
        yield from _lacks(seen, (f"core-{thread}.img" for thread in task.threads if thread != pid))
        yield from _lacks(seen, (f"{image}-{pid}.img" for image in ("ids", "fs", "mm", "pagemap")))
    if seen.tasks and not alive:
        yield "all tasks have ended"
    if alive and not seen.sizes.get(_FILES) and not seen.sizes.get(_OLD_FILES):
        yield f"{_FILES} is missing"
    yield from _descriptors(seen)
    shared = {f"pagemap-shmem-{shmid}.img": user for shmid, user in seen.shared.items()}
    for name, user in (*shared.items(), *seen.refers.items(), *_objects(seen)):
        for problem in _lacks(seen, [name]):
            yield f"{problem}, which {user} refers to"


def _descriptors(seen: Seen) -> Iterator[str]:
    """Tables of descriptors that are missing.

    CRIU writes none for a task that has no descriptors.  So one is missed only if files.img has a file to which nothing
    that is here refers: no descriptor, mapping, directory, nor packet that waits in a socket.
    """
    absent = [
        f"fdinfo-{ids.files_id}.img"
        for task in seen.tasks
        if (ids := seen.ids.get(task.pid)) is not None
        and seen.states.get(task.pid) != _DEAD
        and f"fdinfo-{ids.files_id}.img" not in seen.sizes
    ]
    if not absent or seen.own_ids is None:
        return
    kinds = _BY_DESCRIPTOR - ({_REG} if seen.files.keys() & _WITH_PATH else set())
    if any(seen.files.get(kind, set()) - seen.used for kind in kinds):
        yield f"{absent[0]} is missing, and {_FILES} has files that nothing else refers to"


def _objects(seen: Seen) -> Iterator[tuple[str, str]]:
    """Images of the namespaces that tasks are in, and the image that says so."""
    own = seen.own_ids
    if own is None:
        return
    for task in seen.tasks:
        ids = seen.ids.get(task.pid)
        if ids is None or seen.states.get(task.pid) == _DEAD:
            continue
        user = f"ids-{task.pid}.img"
        # Older versions of CRIU wrote those of the root only.
        kinds = _OF_NAMESPACE if task is seen.tasks[0] else ("mnt_ns_id",)
        for kind in kinds:
            number = getattr(ids, kind)
            if not ids.HasField(kind) or not own.HasField(kind):
                continue
            if kind == "time_ns_id" and number == getattr(own, kind):
                number = (
                    0  # the clocks of a tree are stored also where it has no namespace of its own
                )
            elif number == getattr(own, kind):
                continue
            yield f"{_OF_NAMESPACE[kind]}-{number}.img", user


def _pages(seen: Seen, parent: Container[str] | None) -> Iterator[str]:
    """Where pagemaps and pages images do not belong together."""
    counted: dict[str, str] = {}
    for name, sums in sorted(seen.counted.items()):
        pages = f"pages-{sums.pages_id}.img"
        if pages in counted:
            yield f"{name} and {counted[pages]} name the same pages"
        counted[pages] = name
        size = seen.sizes.get(pages)
        if size is None and sums.stored:
            yield f"{pages} is missing, of which {name} counts {sums.stored} bytes"
        elif size is not None and size != sums.stored:
            yield f"{pages} has {size} bytes, of which {name} counts {sums.stored}"
        if sums.nowhere:
            yield f"{name} counts {sums.nowhere} pages that are stored nowhere"
        if sums.parent and parent is not None and name not in parent:
            yield f"{name} counts {sums.parent} pages that should be in a parent, which has no such image"
    for name, size in sorted(seen.sizes.items()):
        if is_pages(name) and size and name not in counted:
            yield f"no pagemap counts the {size} bytes of {name}"

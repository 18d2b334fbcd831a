"""The process tree of a dump, as its images have it, checked: no task twice, no circle of parents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sealpoint import names
from sealpoint.checkpoint import summary
from sealpoint.errors import FileError, left_out
from sealpoint.inspect.image import first_record, read_records
from sealpoint.inspect.sealed import SealedSource
from sealpoint.inspect.source import Images

_MAX_TASKS: Final = 1 << 17
# COMPEL_TASK_* of compel/include/uapi/task-state.h.  `crit` itself has the last two the wrong way round.
STATES: Final = {1: "alive", 2: "dead", 3: "stopped", 6: "zombie"}


@dataclass(frozen=True, slots=True)
class TreeTask:
    """A process.  command: its name, "" where unknown; state: as in STATES, "" where that is withheld."""

    pid: int
    parent: int
    pgid: int
    sid: int
    threads: tuple[int, ...]
    command: str = ""
    state: str = ""


def read_tree(
    images: Images, problems: list[FileError] | None = None, *, commands: bool = True
) -> list[TreeTask]:
    """All tasks in the order of the image.

    commands: read names, too: from the core images or, where those are withheld, from the sealer's summary.
    problems: gets the errors of core images, whose tasks then have no name; without it such an error is raised.
    Raises FileError, IdentityError.
    """
    found: dict[int, TreeTask] = {}
    where = images.where("pstree.img")
    for n, entry in enumerate(read_records(images, "pstree.img")):
        pid = _id(entry, "pid")
        task = TreeTask(
            pid,
            entry.ppid,
            _id(entry, "pgid"),
            _id(entry, "sid"),
            tuple(entry.threads[:_MAX_TASKS]),
        )
        if len(entry.threads) > _MAX_TASKS:
            left_out(f"{where}: only the first {_MAX_TASKS} threads of process {pid} are shown")
        if pid in found or n >= _MAX_TASKS:
            raise FileError(f"{where}: task {pid} is there twice, or there are too many")
        found[pid] = task
    tree = list(found.values())
    return _with_commands(images, tree, problems) if commands else tree


def _id(entry: object, name: str) -> int:
    """`pid` and the like, or the first of `ns_pid`, which is there instead for nested namespaces."""
    if entry.HasField(name):  # type: ignore[attr-defined]
        return int(getattr(entry, name))
    nested = getattr(entry, f"ns_{name}", ())
    return int(nested[0]) if nested else 0


def _with_commands(
    images: Images, tree: list[TreeTask], problems: list[FileError] | None
) -> list[TreeTask]:
    if tree and images.withheld(f"core-{tree[0].pid}.img"):
        known = _from_summary(images)
        return [dataclasses.replace(t, command=known.get(t.pid, "")) for t in tree]
    named = []
    for task in tree:
        try:
            core = first_record(images, f"core-{task.pid}.img").tc
        except FileError as error:
            if problems is None:
                raise
            problems.append(error)
            named.append(task)
            continue
        named.append(
            dataclasses.replace(
                task,
                command=names.text(core.comm),
                state=STATES.get(core.task_state, str(core.task_state)),
            )
        )
    return named


def _from_summary(images: Images) -> dict[int, str]:
    if not isinstance(images.source, SealedSource):
        return {}
    data = images.source.summary()
    if data is None:
        return {}
    return {int(t["pid"]): t["command"] for t in summary.decode(data)["tasks"]}


def walk(tree: list[TreeTask], pid: int = 0) -> Iterator[tuple[TreeTask, int]]:
    """Each task and its depth, children after their parents; with `pid` that one and what descends from it.

    A task whose parent is not there is a root; so is one of a circle, at which the circle is cut.
    """
    children: dict[int, list[TreeTask]] = {}
    pids = {task.pid for task in tree}
    for task in tree:
        children.setdefault(task.parent, []).append(task)
    seen: set[int] = set()
    roots = [t for t in tree if t.parent not in pids or t.parent == t.pid]
    starts = [t for t in tree if t.pid == pid] if pid else [*roots, *tree]
    for root in starts:
        waiting = [(root, 0)]
        while waiting:
            task, depth = waiting.pop()
            if task.pid in seen:
                continue
            seen.add(task.pid)
            yield task, depth
            waiting += [(child, depth + 1) for child in reversed(children.get(task.pid, []))]

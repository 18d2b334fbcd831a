"""Everything that `inspect` and `diff` tell of one dump, as plain values in the shape of checkpointctl's JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sealpoint import names
from sealpoint.errors import FileError, UsageError, left_out
from sealpoint.inspect import container, descriptors, tasks
from sealpoint.inspect.container import Container
from sealpoint.inspect.image import read_records
from sealpoint.inspect.memory import AddressSpace
from sealpoint.inspect.sealed import SealedSource
from sealpoint.inspect.source import Images

# Bytes of arguments or environment.  The kernel allows 6 MiB of both together, but who sets them later may set more.
_MAX_ARGUMENTS: Final = 8 * 1024 * 1024
_MAX_DEPTH: Final = 200  # what lies deeper is shown there: JSON is not read deeper by everybody
_STATISTICS: Final = (
    "freezing_time",
    "frozen_time",
    "memdump_time",
    "memwrite_time",
    "pages_scanned",
    "pages_skipped_parent",
    "pages_written",
    "pages_lazy",
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What is wanted.  pid: of one process and its children only, 0 for all."""

    stats: bool = False
    mounts: bool = False
    ps_tree: bool = False
    ps_tree_cmd: bool = False
    ps_tree_env: bool = False
    files: bool = False
    sockets: bool = False
    metadata: bool = False
    pid: int = 0


class Inspection:
    """One dump.

    withheld: images that this identity cannot open and without which something is left out.
    problems: what is damaged or missing, and was left out, too.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self.withheld: list[str] = []
        self.problems: list[FileError] = []
        self.container: Container = container.describe(images)

    def collect(self, parts: Parts) -> dict[str, Any]:
        """Raises FileError, UsageError (no such process), IdentityError where what is wanted needs memory."""
        values = self._head()
        if parts.stats:
            values["statistics"] = self.statistics()
        if parts.metadata:
            values["metadata"] = self._metadata()
        tree = self._tree(parts) if self._wants_tasks(parts) else []
        if parts.ps_tree or parts.ps_tree_cmd or parts.ps_tree_env:
            values["process_tree"] = self.process_tree(
                tree, command_lines=parts.ps_tree_cmd, environment=parts.ps_tree_env
            )
        if parts.files or parts.sockets:
            self._add_files(values, tree, parts)
        if parts.mounts:
            found = self.container.mounts
            values["mounts"] = descriptors.mounts(self.images) if found is None else found
        return values

    def _add_files(self, values: dict[str, Any], tree: list[tasks.TreeTask], parts: Parts) -> None:
        table = descriptors.Descriptors(self.images)
        files: list[dict[str, Any]] = []
        sockets: list[dict[str, Any]] = []
        for task in tree:
            try:
                if parts.files:
                    files.append(_files(table, task))
                if parts.sockets:
                    found = list(table.sockets_of(task.pid, task.state))
                    sockets.append({"pid": task.pid, "open_sockets": found})
            except FileError as error:
                self.problems.append(error)
        values |= {"file_descriptors": files} if parts.files else {}
        values |= {"sockets": sockets} if parts.sockets else {}
        self.withheld += sorted(set(table.withheld))

    @staticmethod
    def _wants_tasks(parts: Parts) -> bool:
        return (
            parts.ps_tree or parts.ps_tree_cmd or parts.ps_tree_env or parts.files or parts.sockets
        )

    def _head(self) -> dict[str, Any]:
        told = self.container
        self.withheld += told.withheld
        values: dict[str, Any] = {
            "container_name": told.name,
            "image": told.image,
            "id": told.id,
            "runtime": told.runtime,
            "created": told.created,
            "checkpointed": told.checkpointed,
            "engine": told.engine,
            "ip": told.ip,
            "mac": told.mac,
            "checkpoint_size": sizes(self.images),
        }
        source = self.images.source
        if isinstance(source, SealedSource):
            origin = source.checkpoint.authentic.origin
            values["sealed"] = {
                "checkpoint": origin.checkpoint_id.hex(),
                "kind": origin.kind,
                "signed_by": [s.name for s in source.checkpoint.signers],
            }
        return {key: value for key, value in values.items() if value or key == "container_name"}

    def _metadata(self) -> dict[str, Any]:
        told = self.container
        values = {
            "pod_name": told.pod,
            "kubernetes_namespace": told.namespace,
            "annotations": told.annotations,
        }
        return {key: value for key, value in values.items() if value}

    def statistics(self) -> dict[str, int]:
        """CRIU's counters of the dump: times in microseconds."""
        base = self.images.prefix.removesuffix("checkpoint/")
        for images in (self.images, Images(self.images.source, base)):
            if images.exists("stats-dump"):
                for entry in read_records(images, "stats-dump"):
                    return {name: getattr(entry.dump, name) for name in _STATISTICS}
        return {}

    def _tree(self, parts: Parts) -> list[tasks.TreeTask]:
        tree = tasks.read_tree(self.images, self.problems)
        if not parts.pid:
            return tree
        below = [task for task, _ in tasks.walk(tree, parts.pid)]
        if not below:
            known = ", ".join(str(t.pid) for t in tree[:20])
            raise UsageError(
                f"{self.images.label} has no process {parts.pid}", hint=f"it has: {known}"
            )
        return below

    def process_tree(
        self, tree: list[tasks.TreeTask], *, command_lines: bool, environment: bool
    ) -> list[dict[str, Any]]:
        """The roots of the tree, each {"pid", "command", "task_state"?, "cmdline"?, "environment_variables"?,
        "children"?}.
        """
        roots: list[dict[str, Any]] = []
        path: list[dict[str, Any]] = []
        for task, depth in tasks.walk(tree):
            node: dict[str, Any] = {"pid": task.pid, "command": task.command}
            if task.state:
                node["task_state"] = task.state
            if (command_lines or environment) and task.state not in ("zombie", "dead"):
                try:
                    self._add_memory(
                        node, task.pid, command_lines=command_lines, environment=environment
                    )
                except FileError as error:
                    self.problems.append(error)
            del path[min(depth, _MAX_DEPTH) :]
            (path[-1].setdefault("children", []) if path else roots).append(node)
            path.append(node)
        return roots

    def _add_memory(
        self, node: dict[str, Any], pid: int, *, command_lines: bool, environment: bool
    ) -> None:
        space = AddressSpace.load(self.images, pid)
        if command_lines:
            words = strings(space, space.mm.mm_arg_start, space.mm.mm_arg_end)
            node["cmdline"] = " ".join(words)
        if environment:
            words = strings(space, space.mm.mm_env_start, space.mm.mm_env_end)
            node["environment_variables"] = dict(w.partition("=")[::2] for w in words if "=" in w)


def strings(space: AddressSpace, start: int, end: int) -> list[str]:
    """The strings between two addresses, each ended by a zero.  What is not there is said.  Raises FileError."""
    wanted = min(end - start, _MAX_ARGUMENTS)
    if wanted <= 0:
        return []
    data = space.peek(start, wanted)
    if wanted < end - start:
        left_out(
            f"process {space.pid}: only the first {wanted >> 20} MiB of the strings at {start:#x} are shown, of "
            f"{end - start} bytes"
        )
        data = data[: data.rfind(b"\0") + 1]
    elif len(data) < wanted:
        left_out(
            f"process {space.pid}: of the {wanted} bytes of strings at {start:#x}, only {len(data)} are stored"
        )
    return [names.text(word) for word in data.split(b"\0") if word]


def _files(table: descriptors.Descriptors, task: tasks.TreeTask) -> dict[str, Any]:
    return {
        "pid": task.pid,
        "open_files": [
            {"type": file.kind, "fd": f"{file.kind} {file.fd}".strip(), "path": file.path}
            for file in table.of(task.pid, task.state)
        ],
    }


def sizes(images: Images) -> dict[str, int]:
    """Bytes: {"total_size", "memory_pages_size", "root_fs_diff_size"?}, of withheld objects as far as it is known."""
    source = images.source
    total = sum(source.size(name) for name in source.names())
    pages = sum(images.size(name) for name in images.names() if name.startswith("pages-"))
    if isinstance(source, SealedSource):
        total += source.withheld_objects()[1]
        if not source.opened.has_memory:
            pages = _pages_by_summary(source)
    found = {"total_size": total, "memory_pages_size": pages}
    base = images.prefix.removesuffix("checkpoint/")
    if source.exists(base + "rootfs-diff.tar"):
        found["root_fs_diff_size"] = source.size(base + "rootfs-diff.tar")
    return found


def _pages_by_summary(source: SealedSource) -> int:
    from sealpoint.checkpoint import summary

    data = source.summary()
    return 0 if data is None else sum(int(t["memory"]) for t in summary.decode(data)["tasks"])


@dataclass(frozen=True, slots=True)
class TaskMemory:
    """Bytes of one process: mapped, and stored in a pages image; shared memory counts for each that has it mapped."""

    pid: int
    command: str
    mapped: int
    private: int
    shared: int


def memory_of(images: Images) -> Iterator[TaskMemory]:
    """Of every process.  Raises FileError, IdentityError."""
    for task in tasks.read_tree(images):
        if not images.exists(f"mm-{task.pid}.img") and not images.withheld(f"mm-{task.pid}.img"):
            continue  # a zombie has no memory
        space = AddressSpace.load(images, task.pid)
        shared = 0
        for mapping in space.mappings:
            if mapping.shared is not None:
                shared += sum(extent.size for extent in space.stored(mapping))
        mapped = sum(mapping.size for mapping in space.mappings)
        yield TaskMemory(task.pid, task.command, mapped, space.private.stored(), shared)

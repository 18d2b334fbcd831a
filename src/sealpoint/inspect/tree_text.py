"""Trees for a terminal: lines with branches, from nested (label, children)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

Node = tuple[str, Sequence[Any]]


def draw(node: Node) -> Iterator[str]:
    """The lines of a tree, its root first."""
    yield node[0]
    waiting = [(child, "", n == len(node[1]) - 1) for n, child in enumerate(node[1])][::-1]
    while waiting:
        (label, children), prefix, last = waiting.pop()
        yield f"{prefix}{'└── ' if last else '├── '}{label}"
        below = prefix + ("    " if last else "│   ")
        waiting += [(c, below, n == len(children) - 1) for n, c in enumerate(children)][::-1]


def inspection(values: dict[str, Any]) -> Node:
    """What Inspection.collect gives, as a tree."""
    nodes: list[Node] = []
    for key, label in (
        ("image", "Image"), ("id", "ID"), ("runtime", "Runtime"), ("created", "Created"),
        ("checkpointed", "Checkpointed"), ("engine", "Engine"), ("ip", "IP"), ("mac", "MAC"),
    ):  # fmt: skip
        if values.get(key):
            nodes.append((f"{label}: {values[key]}", ()))
    nodes += _sealed(values.get("sealed"))
    nodes.append(_sizes(values["checkpoint_size"]))
    if "statistics" in values:
        nodes.append(
            ("CRIU dump statistics", [_statistic(k, v) for k, v in values["statistics"].items()])
        )
    if "metadata" in values:
        nodes.append(_metadata(values["metadata"]))
    if "process_tree" in values:
        nodes.append(("Process tree", [_process(node) for node in values["process_tree"]]))
    if "file_descriptors" in values:
        nodes.append(("Open files", [_files(item) for item in values["file_descriptors"]]))
    if "sockets" in values:
        nodes.append(("Open sockets", [_sockets(item) for item in values["sockets"]]))
    if "mounts" in values:
        nodes.append(("Overview of mounts", [_mount(item) for item in values["mounts"]]))
    return values["container_name"] or "checkpoint", nodes


def size(value: int) -> str:
    """For people: 1.0 MiB."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{value} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _sealed(sealed: dict[str, Any] | None) -> list[Node]:
    if sealed is None:
        return []
    signers = ", ".join(sealed["signed_by"]) or "nobody"
    return [
        (
            f"Sealed: {sealed['kind']}, checkpoint {sealed['checkpoint']}",
            [(f"Signed by: {signers}", ())],
        )
    ]


def _sizes(values: dict[str, int]) -> Node:
    parts: list[Node] = [(f"Memory pages size: {size(values['memory_pages_size'])}", ())]
    if "root_fs_diff_size" in values:
        parts.append((f"Root FS diff size: {size(values['root_fs_diff_size'])}", ()))
    return f"Checkpoint size: {size(values['total_size'])}", parts


def _statistic(name: str, value: int) -> Node:
    words = name.replace("_", " ").capitalize()
    return (
        f"{words}: {value / 1000:.3f} ms" if name.endswith("_time") else f"{words}: {value}"
    ), ()


def _metadata(values: dict[str, Any]) -> Node:
    nodes: list[Node] = []
    for key, label in (("pod_name", "Pod name"), ("kubernetes_namespace", "Kubernetes namespace")):
        if key in values:
            nodes.append((f"{label}: {values[key]}", ()))
    if "annotations" in values:
        nodes.append(
            ("Annotations", [(f"{k}: {v}", ()) for k, v in sorted(values["annotations"].items())])
        )
    return "Metadata", nodes


def _process(root: dict[str, Any]) -> Node:
    # Without recursion: a hostile tree may be deeper than Python's stack.
    top: list[Node] = []
    waiting: list[tuple[dict[str, Any], list[Node]]] = [(root, top)]
    while waiting:
        task, siblings = waiting.pop()
        state = task.get("task_state", "")
        label = f"[{task['pid']}]  {task.get('cmdline') or task['command']}"
        children: list[Node] = []
        siblings.append((label if state in ("", "alive") else f"{label} ({state})", children))
        environment = task.get("environment_variables")
        if environment:
            children.append(
                ("Environment variables", [(f"{k}={v}", ()) for k, v in environment.items()])
            )
        waiting += [(child, children) for child in reversed(task.get("children", []))]
    return top[0]


def _files(item: dict[str, Any]) -> Node:
    return f"[{item['pid']}]", [
        (f"[{file['fd']}]  {file['path']}", ()) for file in item["open_files"]
    ]


def _sockets(item: dict[str, Any]) -> Node:
    return f"[{item['pid']}]", [(_socket(s), ()) for s in item["open_sockets"]]


def _socket(value: dict[str, Any]) -> str:
    data = value["data"]
    if "src" in data:
        ends = f"{data['src']}:{data['src_port']} -> {data['dst']}:{data['dst_port']}"
        text = f"{value['protocol']} ({data['state']})  {ends}"
    else:
        text = f"{value['protocol']} {data['type']}"
        text += f"  {data['address']}" if data.get("address") else ""
    return f"[{value['fd']}]  {text}  (send buffer {size(data['send_buf'])}, receive buffer {size(data['recv_buf'])})"


def _mount(item: dict[str, str]) -> Node:
    return f"Destination: {item['destination']}", [
        (f"Type: {item['type']}", ()),
        (f"Source: {item['source']}", ()),
    ]


def when(seconds: int) -> str:
    """A time for people; beyond the year 36812 whatever the number is."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(seconds, 1 << 40)))

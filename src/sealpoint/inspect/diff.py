"""What changed between two checkpoints: processes, and of those that are in both what is asked for.

Processes are matched by their PID, which they keep over a restore.  A PID that went to another program meanwhile shows
as a changed command.
"""

from __future__ import annotations

from typing import Any, Final

from sealpoint.inspect.inspection import Parts
from sealpoint.inspect.tree_text import Node

ADDED, REMOVED, MODIFIED, UNCHANGED = "added", "removed", "modified", "unchanged"
_MARKS: Final = {ADDED: "+", REMOVED: "-", MODIFIED: "~", UNCHANGED: " "}
_FIELDS: Final = ("command", "task_state", "cmdline")
_HEAD: Final = ("container_name", "image", "id", "runtime", "engine", "checkpoint_size")


def parts(*, files: bool, sockets: bool, command_lines: bool, environment: bool) -> Parts:
    """What of each checkpoint has to be collected."""
    return Parts(
        ps_tree=True,
        ps_tree_cmd=command_lines,
        ps_tree_env=environment,
        files=files,
        sockets=sockets,
    )


def compare(
    before: dict[str, Any], after: dict[str, Any], *, show_unchanged: bool = False
) -> dict[str, Any]:
    """{"checkpoint": [change...], "tasks": [{"id", "status", "changes": [{"category", "field", "before", "after"}]}]}.

    before, after: as Inspection.collect gives them, with the same parts.
    """
    head = [
        {"category": "checkpoint", "field": key, "before": before.get(key), "after": after.get(key)}
        for key in _HEAD
        if before.get(key) != after.get(key)
    ]
    first, second = _by_pid(before), _by_pid(after)
    tasks = []
    for pid in sorted(first.keys() | second.keys()):
        a, b = first.get(pid), second.get(pid)
        if a is None or b is None:
            node = b if a is None else a
            assert node is not None
            status = ADDED if a is None else REMOVED
            tasks.append({"id": pid, "command": node["command"], "status": status, "changes": []})
            continue
        changes = _changes(a, b)
        if changes or show_unchanged:
            status = MODIFIED if changes else UNCHANGED
            tasks.append({"id": pid, "command": b["command"], "status": status, "changes": changes})
    return {"checkpoint": head, "tasks": tasks}


def _by_pid(values: dict[str, Any]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    waiting = [(node, 0) for node in values.get("process_tree", [])]
    while waiting:
        node, parent = waiting.pop()
        task = {key: node[key] for key in _FIELDS if key in node}
        found[node["pid"]] = {**task, "parent": parent, "env": node.get("environment_variables")}
        waiting += [(child, node["pid"]) for child in node.get("children", [])]
    for item in values.get("file_descriptors", []):
        found.setdefault(item["pid"], {})["files"] = {
            f["fd"]: f["path"] for f in item["open_files"]
        }
    for item in values.get("sockets", []):
        found.setdefault(item["pid"], {})["sockets"] = {
            s["fd"]: _ends(s) for s in item["open_sockets"]
        }
    return found


def _ends(value: dict[str, Any]) -> str:
    data = {k: v for k, v in value["data"].items() if not k.endswith("_buf")}
    return " ".join([value["protocol"], *(f"{k}={v}" for k, v in data.items() if v != "")])


def _changes(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    found = [
        {"category": "process", "field": key, "before": a.get(key), "after": b.get(key)}
        for key in (*_FIELDS, "parent")
        if a.get(key) != b.get(key)
    ]
    for category in ("env", "files", "sockets"):
        first, second = a.get(category) or {}, b.get(category) or {}
        found += [
            {"category": category, "field": key, "before": first.get(key), "after": second.get(key)}
            for key in sorted(first.keys() | second.keys())
            if first.get(key) != second.get(key)
        ]
    return found


def tree(result: dict[str, Any], before: str, after: str) -> Node:
    """For a terminal: + is added, - removed, ~ changed."""
    nodes: list[Node] = [(_change(c), ()) for c in result["checkpoint"]]
    for task in result["tasks"]:
        label = f"{_MARKS[task['status']]} [{task['id']}]  {task['command']}"
        nodes.append((label, [(_change(c), ()) for c in task["changes"]]))
    return f"{before} -> {after}" + ("" if nodes else ": no difference"), nodes


def _change(change: dict[str, Any]) -> str:
    before, after = change["before"], change["after"]
    name = (
        change["field"]
        if change["category"] in ("process", "checkpoint")
        else f"{change['category']} {change['field']}"
    )
    if before is None:
        return f"+ {name}: {_shown(after)}"
    if after is None:
        return f"- {name}: {_shown(before)}"
    return f"~ {name}: {_shown(before)} -> {_shown(after)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number}" for key, number in value.items())
    return str(value)

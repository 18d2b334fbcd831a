"""The summary object: what a metadata recipient may know of the tasks although their images are of the memory role.

Written by the sealer while images pass by: pids, parents, command names, bytes of memory, and for an engine's archive
its name, the container's and the image's.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sealpoint import names
from sealpoint.criu import schema
from sealpoint.errors import FileError, left_out
from sealpoint.format import strictjson
from sealpoint.format.strictjson import Fields

_OBSERVED = re.compile(r"(?:checkpoint/)?(?:pstree|core-(\d+)|pagemap-(\d+))\.img", re.ASCII)
_PAGES = re.compile(r"(?:checkpoint/)?pages-(\d+)\.img", re.ASCII)
_MAX_TEXT = 256
_LONGEST_ESCAPE = 16  # characters that one may become: the four bytes of an invisible one
_MAX_TASKS = 1 << 16
_ENGINE = {  # member of the summary: key in the engine's config.dump or status.dump
    "container": "id",
    "name": "name",
    "image": "rootfsImageName",
    "runtime": "runtime",
}
_WHAT = "summary"


class Summary:
    """Collects from images as they are sealed.  An image that cannot be read leaves a gap, never an error."""

    def __init__(self) -> None:
        self._tree: list[tuple[int, int]] = []
        self._commands: dict[int, str] = {}
        self._pages_of: dict[int, int] = {}
        self._pages: dict[int, int] = {}
        self._engine: dict[str, str] = {}

    def observe(self, name: str, data: bytes) -> None:
        """A whole small image, or the beginning of a large one."""
        if name in ("config.dump", "status.dump"):
            self._observe_engine(data)
        match = _OBSERVED.fullmatch(name)
        if match is None:
            return
        try:
            self._observe_image(match, data)
        except FileError:
            pass  # the image is sealed as it is; only the summary knows less

    def pages(self, name: str, size: int) -> None:
        """Size of a pages image in bytes."""
        if match := _PAGES.fullmatch(name):
            self._pages[int(match[1])] = size

    def _observe_image(self, match: re.Match[str], data: bytes) -> None:
        if match[1]:
            for entry in schema.records(data, "core_entry", match[0]):
                self._commands[int(match[1])] = _stored(entry.tc.comm)
        elif match[2]:
            head = next(schema.records(data, "pagemap_head", match[0]), None)
            if head is not None:
                self._pages_of[int(match[2])] = head.pages_id
        else:
            for entry in schema.records(data, "pstree_entry", match[0]):
                if len(self._tree) < _MAX_TASKS:
                    self._tree.append((entry.pid, entry.ppid))

    def _observe_engine(self, data: bytes) -> None:
        try:
            config = json.loads(names.text(data))
        except (ValueError, RecursionError):
            return
        if not isinstance(config, dict):
            return
        for name, key in _ENGINE.items():
            value = config.get(key)
            if isinstance(value, str) and value:
                self._engine.setdefault(name, _stored(value))

    def encode(self) -> bytes:
        """The object's bytes: strict JSON, numbers as decimal strings."""
        tasks: list[dict[str, Any]] = [
            {
                "pid": str(pid),
                "parent": str(parent),
                "command": self._commands.get(pid, ""),
                "memory": str(self._pages.get(self._pages_of.get(pid, -1), 0)),
            }
            for pid, parent in self._tree
        ]
        container = {name: self._engine[name] for name in _ENGINE if name in self._engine}
        return strictjson.encode({"tasks": tasks, "container": container})


def _stored(name: str | bytes) -> str:
    """A name as the summary has it, which is text: printable, so that `names.unescape` gives its bytes back."""
    shown = names.printable(name[:_MAX_TEXT])
    return (
        shown if len(shown) <= _MAX_TEXT else names.printable(name[: _MAX_TEXT // _LONGEST_ESCAPE])
    )


def decode(data: bytes) -> dict[str, Any]:
    """The summary of a checkpoint: {"tasks": [{"pid", "parent", "command", "memory"}], "container": {...}}.

    Raises FileError.
    """
    fields = Fields(strictjson.decode(data, _WHAT), _WHAT)
    tasks = []
    for value in fields.array("tasks", limit=_MAX_TASKS):
        task = Fields(value, _WHAT)
        numbers = {key: str(task.u64(key)) for key in ("pid", "parent")}
        command = names.unescape(task.text("command", limit=_MAX_TEXT))
        tasks.append({**numbers, "command": command, "memory": str(task.u64("memory"))})
        task.done()
    if len(tasks) == _MAX_TASKS:
        left_out(f"the summary of the processes ends after {_MAX_TASKS}: there may be more")
    container = fields.fields("container")
    engine = {
        name: names.unescape(container.text(name, limit=_MAX_TEXT))
        for name in _ENGINE
        if container.has(name)
    }
    container.done()
    fields.done()
    return {"tasks": tasks, "container": engine}

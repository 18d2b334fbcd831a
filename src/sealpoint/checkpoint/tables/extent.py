"""How large the sealed file of a tree can become, told before the tree is frozen for it.

The receiver of a migration makes room for so much.  Counted is what CRIU writes: the pages of private mappings that
are in memory or swapped out, and what shared memory has allocated.  The tree runs on meanwhile, so there is a reserve.
"""

from __future__ import annotations

import os
import re
from typing import Final

from sealpoint import process

_BASE: Final = (
    16 << 20
)  # bytes for all that is not memory: images, headers, what pipes and sockets hold
_PER_TASK: Final = 1 << 20
_SHARE: Final = 16  # a sixteenth more, for what the tree takes meanwhile
_COUNTED: Final = (b"Rss:", b"Swap:", b"Private_Hugetlb:", b"Shared_Hugetlb:")
_MAPPING: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ...(s|p) ")


def bound(pid: int) -> int:
    """Bytes that a sealed file of the tree will not exceed, unless the tree grows fast."""
    shared: dict[tuple[int, int], int] = {}
    size = _BASE
    for task in [pid, *process.descendants(pid)]:
        size += _PER_TASK + _private(task, shared)
    size += sum(shared.values())
    return size + size // _SHARE


def _private(pid: int, shared: dict[tuple[int, int], int]) -> int:
    size, is_shared = 0, False
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            for line in file:
                if found := _MAPPING.match(line):
                    is_shared = found[3] == b"s"
                    if is_shared:
                        area = f"{int(found[1], 16):x}-{int(found[2], 16):x}"
                        _note_shared(pid, area, shared)
                elif not is_shared and line.startswith(_COUNTED):
                    size += int(line.split()[1]) * 1024
    except OSError:
        pass  # it has ended
    return size


def _note_shared(pid: int, area: str, shared: dict[tuple[int, int], int]) -> None:
    try:
        status = os.stat(f"/proc/{pid}/map_files/{area}")
    except OSError:
        return
    # What several tasks share is written once.  Of files on a disk nothing is written, but that is not told apart here.
    if status.st_nlink == 0:
        shared[status.st_dev, status.st_ino] = status.st_blocks * 512

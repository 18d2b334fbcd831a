"""Small checkpoints made by hand: images of tasks whose memory is given page by page."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from sealpoint.criu import schema
from sealpoint.inspect import memory, messages as known_messages
from sealpoint.inspect.finding import open_source
from sealpoint.inspect.memory import PAGE, AddressSpace
from sealpoint.inspect.source import Access, images

MAGIC = 0x54564319
PRESENT, PARENT, LAZY = 4, 1, 2


def image(*messages, kind: str = "") -> bytes:
    """An image file of already filled messages; kind: its type as `crit` names it."""
    magic = known_messages.table()["magics"][kind] if kind else 0
    parts = [struct.pack("<II", MAGIC, magic)]
    for each in messages:
        data = each.SerializeToString()
        parts.append(struct.pack("<I", len(data)) + data)
    return b"".join(parts)


def message(name: str, /, **values):
    return schema.message(name)(**values)


def vma(start: int, pages: int, status: int = memory.ANON_PRIVATE, **values):
    given = {"prot": 3, "flags": 0x22, "pgoff": 0, "shmid": 0} | values
    return message(
        "vma_entry", start=start, end=start + pages * PAGE, status=memory.REGULAR | status, **given
    )


@dataclass
class Made:
    """Images by name.  `task(...)` adds one; `runs` are (address, flags, pages of data or a number of pages)."""

    files: dict[str, bytes] = field(default_factory=dict)
    pages: int = 0

    def pagemap(self, stem: str, runs, *, old: bool = False) -> None:
        self.pages += 1
        entries, data = [], bytearray()
        for address, flags, content in runs:
            count = content if isinstance(content, int) else len(content) // PAGE
            if flags & PRESENT:
                data += content
            size = {"compat_nr_pages": count} if old else {"compat_nr_pages": 0, "nr_pages": count}
            entries.append(message("pagemap_entry", vaddr=address, flags=flags, **size))
        head = message("pagemap_head", pages_id=self.pages)
        self.files[f"pagemap-{stem}.img"] = image(head, *entries)
        self.files[f"pages-{self.pages}.img"] = bytes(data)

    def task(self, pid: int, vmas, runs, *, old: bool = False, **mm) -> Made:
        self.files[f"mm-{pid}.img"] = image(message("mm_entry", vmas=vmas, **mm))
        self.pagemap(str(pid), runs, old=old)
        return self

    def write(self, directory) -> Path:
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (path / name).write_bytes(data)
        return path


def space(directory, pid: int = 1) -> AddressSpace:
    """Of plain images; the descriptors are closed with the process."""
    source = open_source(str(directory), Access.of([], None)).source
    return AddressSpace.load(images(source), pid)


def page(text: bytes = b"", at: int = 0, fill: bytes = b".") -> bytes:
    """A page with some text in it."""
    return (fill * at + text + fill * PAGE)[:PAGE]

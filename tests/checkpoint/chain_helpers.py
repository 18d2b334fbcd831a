"""Chains as CRIU's pre-dumps make them, without CRIU: an address space whose pages change from step to step."""

from __future__ import annotations

import random
from pathlib import Path

from sealpoint.checkpoint.opening.access import wrap_for
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import PAGE, PARENT, PRESENT, Pagemap
from sealpoint.format.constants import Suite
from sealpoint.format.statement import ParentRef
from sealpoint.format.writer import SealedWriter
from sealpoint.state.chains import State
from sealpoint.store.output import OutputFile
from tests.checkpoint.checkpoint_helpers import Keys

NAME = "pagemap-1.img"
PAGES = "pages-1.img"


class Memory:
    """Pages by number, with gaps; `dirty` are those that changed since the last step."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.pages: dict[int, bytes] = {}
        self.dirty: set[int] = set()
        self.write(range(16, 16 + count))

    def write(self, pages) -> None:
        for page in pages:
            self.pages[page] = self.random.randbytes(64) * (PAGE // 64)
            self.dirty.add(page)

    def unmap(self, pages) -> None:
        for page in pages:
            del self.pages[page]
            self.dirty.discard(page)

    def whole(self) -> bytes:
        return b"".join(self.pages[p] for p in sorted(self.pages))

    def images(self, *, increment: bool) -> dict[str, bytes]:
        table, data = Pagemap(1), []
        for page in sorted(self.pages):
            present = page in self.dirty or not increment
            table.add(page, 1, PRESENT if present else PARENT)
            if present:
                data.append(self.pages[page])
        self.dirty.clear()
        return {NAME: pagemap.encode(table), PAGES: b"".join(data)}


class Steps:
    """Sealed files on top of one another, each in a directory of its own with CRIU's link to its parent."""

    def __init__(self, directory: Path, keys: Keys, memory: Memory, *, flat: bool = False) -> None:
        self.directory, self.keys, self.memory, self.flat = directory, keys, memory, flat
        self.files: list[Path] = []
        self.states: list[State] = []

    def add(self, *, dump: bool = False, workload: str = "", **changes) -> Path:
        number = len(self.files) + 1
        parent = self.states[-1] if self.states else None
        images = {"inventory.img": b"inventory %d" % number}
        images |= self.memory.images(increment=parent is not None)
        if dump:
            images |= {"pstree.img": b"tree", "core-1.img": b"registers"}
        if self.flat:
            path = self.directory / f"{number}.sealed"
        else:
            path = self.directory / f"{number}" / "inventory.img"
            path.parent.mkdir(parents=True)
            if parent:
                (path.parent / "parent").symlink_to(f"../{number - 1}")
        finish = {"workload": workload}
        if parent:
            chain = (parent.chain[0], parent.chain[1] + 1)
            finish |= {"parent": parent.reference, "chain": chain}
        self.states.append(seal_images(self.keys, path, images, **(finish | changes)))
        self.files.append(path)
        return path


def seal_images(keys: Keys, path: Path, images: dict[str, bytes], **finish) -> State:
    """Seal images and return the state that the dump side keeps of them."""
    with OutputFile(str(path), force=True) as out:
        writer = SealedWriter(
            out, suite=Suite.AES_256_GCM, wrap=wrap_for([keys.recipient]), signing=keys.signing
        )
        builder = CheckpointBuilder(writer, compression="none")
        for name, data in images.items():
            if name.startswith("pages-") or len(data) > 60_000:
                large = builder.large(name)
                large.write(data)
                large.finish()
            else:
                builder.add(name, data)
        origin = builder.finish(**finish)
        out.commit()
    return State(
        ParentRef(builder.checkpoint_id, origin),
        finish.get("chain") or (builder.checkpoint_id, 0),
        finish.get("parent"),
        layout=builder.layout(),
        sections={n: d for n, d in images.items() if n in ("inventory.img", NAME)},
    )

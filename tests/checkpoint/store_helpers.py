"""Chunk stores, and images whose pages look like those of processes, in a few words."""

from __future__ import annotations

import random
from pathlib import Path

from sealpoint.checkpoint.history.merge import merge
from sealpoint.checkpoint.opening.chain import Chain
from sealpoint.checkpoint.opening.flat import Flat
from sealpoint.checkpoint.sealing.chunking import ChunkAdder
from sealpoint.chunks.directory import ChunkDirectory
from sealpoint.criu.pagemap import PAGE
from sealpoint.format.constants import Suite
from sealpoint.format.stored import Tenant
from sealpoint.store.output import OutputFile
from tests.checkpoint.chain_helpers import seal_images
from tests.checkpoint.checkpoint_helpers import Keys

KEY = bytes(range(32))


def pages(seed: int, count: int) -> bytes:
    """Pages that compress well and differ from one another."""
    source = random.Random(seed)
    return b"".join(source.randbytes(64) * (PAGE // 64) for _ in range(count))


def noise(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count * PAGE)


class Store:
    """A store of one tenant, and sealed files that refer to it."""

    def __init__(self, path: Path, keys: Keys, key: bytes = KEY) -> None:
        self.path, self.keys, self.tenant = path, keys, Tenant(key)
        if not path.exists():
            ChunkDirectory.make(str(path), self.tenant.identifier)
        self.adder: ChunkAdder | None = None

    def add(self, name: str, images: dict[str, bytes], **options) -> Path:
        """Seal images elsewhere, and add them."""
        plain = self.path.parent / f"plain-{name}.sealed"
        if not plain.exists():
            seal_images(self.keys, plain, {"inventory.img": b"inventory", **images})
        return self.add_file(plain, name, **options)

    def add_file(self, plain: Path, name: str, *, compression: str = "auto", **options) -> Path:
        target = self.path / f"{name}.sealed"
        with (
            ChunkDirectory(str(self.path)) as directory,
            ChunkAdder(
                directory, self.tenant, suite=Suite.AES_256_GCM, compression=compression
            ) as self.adder,
            Chain.open(str(plain), self.keys.policy) as chain,
            OutputFile(str(target)) as out,
        ):
            merge(
                chain.unlock([self.keys.identity]),
                out,
                self.keys.sealing(compression=compression),
                store=self.adder,
                **options,
            )
        return target

    def read(self, path: Path, **options) -> dict[str, bytes]:
        return read(self.keys, path, **options)

    def chunks(self) -> list[Path]:
        return sorted(p for p in (self.path / "chunks").glob("??/*") if not p.name.startswith("."))


def read(keys: Keys, path: Path, **options) -> dict[str, bytes]:
    with Chain.open(str(path), keys.policy, **options) as chain:
        flat = Flat(chain.unlock([keys.identity]))
        return {
            name: b"".join(bytes(piece) for piece in flat.read(image))
            for name, image in flat.images.items()
        }

"""Encrypted dumps as dictionaries of bytes, the vectors among them."""

from __future__ import annotations

import base64
import json
import os
import zlib
from pathlib import Path

from sealpoint.criusec.dump import EncryptedDump
from sealpoint.errors import FileError

TESTS = Path(__file__).resolve().parents[1]
VECTORS = TESTS / "vectors" / "criusec"


class MemoryFiles:
    """See sealpoint.criusec.dump.Files."""

    label = "dump"

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def names(self) -> list[str]:
        return list(self.files)

    def exists(self, name: str) -> bool:
        return name in self.files

    def size(self, name: str) -> int:
        if name not in self.files:
            raise FileError(f"no {name}")
        return len(self.files[name])

    def pread(self, name: str, offset: int, size: int) -> bytes:
        assert size >= 0
        assert offset >= 0
        return self.files[name][offset : offset + size]


def open_dump(files: dict[str, bytes], identity) -> EncryptedDump:
    return EncryptedDump(MemoryFiles(files), "", lambda: [identity])


def decrypt(files: dict[str, bytes], identity) -> dict[str, bytes]:
    """Everything, checked: what `sealpoint open` writes."""
    dump = open_dump(files, identity)
    plain = {name: dump.read(name) for name in dump.names()}
    dump.check_pages()
    return plain


def load_vectors() -> dict[str, dict]:
    return {p.stem: json.loads(p.read_text()) for p in sorted(VECTORS.glob("*.json"))}


def unpack(vector: dict) -> dict[str, bytes]:
    """The files of a vector."""
    if "files" in vector:
        return {n: zlib.decompress(base64.b64decode(d)) for n, d in vector["files"].items()}
    files = unpack(json.loads((VECTORS / f"{vector['base']}.json").read_text()))
    for name in vector["removed"]:
        del files[name]
    for name, edits in vector["edits"].items():
        old = files[name]
        for at, length, new in edits:
            old = old[:at] + bytes.fromhex(new) + old[at + length :]
        files[name] = old
    return files


def write(files: dict[str, bytes], directory) -> str:
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        Path(directory, name).write_bytes(data)
    return str(directory)


def copy_key(source, directory) -> str:
    path = Path(directory, "key.pem")
    path.touch(mode=0o600)
    path.write_bytes(Path(source).read_bytes())
    return str(path)


def fixtures() -> Path | None:
    """Real encrypted dumps, beside the checkout or where SEALPOINT_FIXTURES says."""
    beside = TESTS.parents[1] / "shared" / "fixtures"
    path = Path(os.environ.get("SEALPOINT_FIXTURES") or beside) / "criusec"
    return path if path.is_dir() else None

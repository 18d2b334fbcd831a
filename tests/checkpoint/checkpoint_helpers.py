"""Keys, sealing and opening in a few words, and tar archives as Python's tarfile makes and reads them."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import os
import struct
import tarfile
from pathlib import Path

import zstandard

from sealpoint.checkpoint.opening import extract
from sealpoint.checkpoint.opening.access import CheckedFile, signing_by, wrap_for
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.checkpoint.sealing.existing import seal
from sealpoint.checkpoint.sealing.sealer import Sealing
from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import PAGE, PARENT, PRESENT, Pagemap
from sealpoint.format.constants import Suite
from sealpoint.format.writer import SealedWriter
from sealpoint.keys import load_identity, load_recipient, load_signer, load_trust
from sealpoint.keys.generate import generate, generate_signer
from sealpoint.progress import silent
from sealpoint.store.output import OutputFile


class Keys:
    """An X25519 identity (the quickest) and a signer in a directory."""

    def __init__(self, directory) -> None:
        self.directory = str(directory)
        self.fingerprint = generate("x25519", self.directory).fingerprint
        self.key_id = generate_signer(self.directory).fingerprint
        self.identity_path = f"{self.directory}/identity.key"
        self.recipient_path = f"{self.directory}/recipient.pub"
        self.signer_path = f"{self.directory}/signer.key"
        self.trust_path = f"{self.directory}/signer.pub"

    @functools.cached_property
    def identity(self):
        return load_identity(self.identity_path)

    @functools.cached_property
    def recipient(self):
        return load_recipient(self.recipient_path)

    @functools.cached_property
    def signer(self):
        return load_signer(self.signer_path)

    @property
    def signing(self):
        return signing_by(self.signer)

    def sealing(self, metadata=(), **options):
        return Sealing([self.recipient], self.signer, [k.recipient for k in metadata], **options)

    @functools.cached_property
    def policy(self):
        return load_trust([self.trust_path])


def a_pre_dump(memory: bytes, parent: int = 0) -> dict[str, bytes]:
    """The smallest whole set of images: of one task, with `memory` in it; `parent`: so many pages are in a parent."""
    table = Pagemap(1)
    data = memory.ljust(-(-len(memory) // PAGE) * PAGE, b"\0")
    table.add(16, len(data) // PAGE, PRESENT)
    if parent:
        table.add(1024, parent, PARENT)
    entry = b"\x08\x02"  # version 2
    return {
        "inventory.img": struct.pack("<II", 0x58313116, len(entry)) + entry,
        "pagemap-1.img": pagemap.encode(table),
        "pages-1.img": data,
    }


def seal_path(keys: Keys, source, target, *, metadata=(), as_files=True, **options):
    """What most tests seal is no checkpoint of CRIU's."""
    with OutputFile(str(target), force=True) as out:
        return seal(str(source), out, keys.sealing(metadata, **options), as_files=as_files)


def seal_objects(keys: Keys, target, objects, *, metadata=(), **finish) -> None:
    """What a legitimate sealer who means harm can make: objects as {name: (bytes, attributes)}."""
    with OutputFile(str(target), force=True) as out:
        wrap = wrap_for([keys.recipient], [k.recipient for k in metadata])
        writer = SealedWriter(out, suite=Suite.AES_256_GCM, wrap=wrap, signing=keys.signing)
        builder = CheckpointBuilder(writer, compression="none")
        for name, (data, attributes) in objects.items():
            builder.add(name, data, attributes)
        builder.finish(**finish)
        out.commit()


@contextlib.contextmanager
def opened(keys: Keys, path):
    with CheckedFile.open(str(path), keys.policy) as checkpoint:
        yield checkpoint.unlock([keys.identity])


def open_to(keys: Keys, sealed, target, *, only=(), force=False) -> str:
    """As `sealpoint open`; the kind of output follows from the name."""
    with opened(keys, sealed) as checkpoint:
        entries = extract.select(checkpoint, tuple(only))
        kind = (
            extract.extract_tar
            if extract.is_archive_name(str(target))
            else extract.extract_directory
        )
        kind(checkpoint, entries, str(target), silent, force=force)
    return str(target)


def attributes(kind: str = "file", **values) -> dict:
    base = {"type": kind, "mode": "420", "uid": "0", "gid": "0", "mtime": "0"}
    return base | {key: str(v) if isinstance(v, int) else v for key, v in values.items()}


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **values):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def make_tar(*members, format_=tarfile.PAX_FORMAT, **options) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_, **options) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read_tar(data: bytes) -> dict[str, tuple]:
    """Everything that counts of every member, in order, by name."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    elif data[:4] == b"\x28\xb5\x2f\xfd":
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            name = info.name.removeprefix("./")
            if name == ".":
                continue
            assert name not in found
            xattrs = {k: v for k, v in info.pax_headers.items() if k.startswith("SCHILY.xattr.")}
            file = tar.extractfile(info) if info.isreg() else None
            found[name] = (
                info.type.replace(tarfile.AREGTYPE, tarfile.REGTYPE),
                info.mode,
                (info.uid, info.gid, info.uname, info.gname),
                info.pax_headers.get("mtime") or str(int(info.mtime)),
                info.linkname,
                (info.devmajor, info.devminor) if info.isdev() else None,
                xattrs,
                file.read() if file else b"",
            )
    return found


def listing(directory) -> set[str]:
    return {str(p.relative_to(directory)) for p in Path(directory).rglob("*")}


def fixtures() -> Path | None:
    """Real archives of engines, beside the checkout or where SEALPOINT_FIXTURES says."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures"
    path = Path(os.environ.get("SEALPOINT_FIXTURES") or beside) / "engines"
    return path if path.is_dir() else None

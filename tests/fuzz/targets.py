"""What is fuzzed: every reader of what others made.  A target takes bytes; all it may raise is a SealpointError.

`fuzz.py` runs one under atheris, test_fuzz.py each of them briefly.  Corpora are made by `seeds`, and what a long run
found worth keeping is in corpus/TARGET/.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import struct
import tarfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import lz4.block
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealpoint.checkpoint.tables import chunk_table, summary, tar
from sealpoint.checkpoint.tables.delta import PageRuns
from sealpoint.criusec import grammar
from sealpoint.criusec.decode import scan
from sealpoint.criusec.encode import Encoder
from sealpoint.errors import SealpointError
from sealpoint.format import stored
from sealpoint.format.constants import Codec, Role, Suite
from sealpoint.format.index import Reference
from sealpoint.inspect import (
    container,
    coredump,
    hexdump,
    messages,
    report,
    report_page as report_sections,
    scanner,
    search,
)
from sealpoint.inspect.archive import ArchiveSource
from sealpoint.inspect.explore import Explorer
from sealpoint.inspect.image import write_json
from sealpoint.inspect.inspection import Inspection, Parts, memory_of
from sealpoint.inspect.memory import AddressSpace, pids
from sealpoint.inspect.recode import Recoder
from sealpoint.inspect.source import Images, image_sets, images
from sealpoint.keys import load_identity
from tests.criusec import criusec_helpers
from tests.inspect import images_by_hand as hand, small_dump

HERE = Path(__file__).resolve().parent
FAST, SLOW = scanner.Scanner(), scanner.Scanner(scanner.slow_triggers())
SECRETS = (
    b"-----BEGIN RSA PRIVATE KEY-----\n" + b"QUJD" * 40 + b"\n",
    bytes.fromhex("302e020100300506032b657004220420") + bytes(range(32)),
    bytes.fromhex("30770201010420")
    + bytes(32)
    + bytes.fromhex("a00a06082a8648ce3d030107")
    + bytes(100),
    b"openssh-key-v1\0" + (b"\0\0\0\4none" * 2) + bytes(4) + b"\0\0\0\1" + (b"\0\0\0\2ab" * 2),
    b" eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIiwibiI6MX0." + b"c2lnbmF0dXJl" * 3,
    b'{"db_password": "x7Kq9-aB3dE6"} postgres://app:x7Kq9aB3@db/app',
)

Target = Callable[[bytes], None]
TREE = small_dump.a_tree()
NAMES = sorted(TREE)
PARTS = Parts(
    stats=True, mounts=True, ps_tree=True, ps_tree_cmd=True, ps_tree_env=True, files=True, sockets=True, metadata=True
)  # fmt: skip


class MemorySource:
    """See Source: objects in a dictionary."""

    label = "fuzzed"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def names(self) -> list[str]:
        return list(self.objects)

    def exists(self, name: str) -> bool:
        return name in self.objects

    def withheld(self, name: str) -> bool:
        return False

    def size(self, name: str) -> int:
        return len(self._get(name))

    def role(self, name: str) -> Role:
        return Role.MEMORY

    def _get(self, name: str) -> bytes:
        if name not in self.objects:
            from sealpoint.errors import FileError

            raise FileError(f"no {name}")
        return self.objects[name]

    def read(self, name: str, limit: int = 1 << 28) -> bytes:
        return self._get(name)

    def pread(self, name: str, offset: int, size: int) -> bytes:
        return self._get(name)[offset : offset + size]

    def chunks(self, name: str, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        data = self._get(name)[offset:] if size is None else self.pread(name, offset, size)
        for at in range(0, len(data), 1000):
            yield memoryview(data)[at : at + 1000]

    def parent(self, prefix: str) -> None:
        return None

    def close(self) -> None:
        pass


def image(data: bytes) -> None:
    """One image: shown in every form, and what can be shown can be made again."""
    text = hand.as_json(data)
    hand.as_json(data, pretty=True)
    hand.as_json(data, pretty=True, nopl=True)
    out = bytearray()
    write_json(json.loads(text), out.extend, "again")


def json_image(data: bytes) -> None:
    """JSON that shall become an image."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    write_json(value, lambda _: None, "edited")


def dump(data: bytes) -> None:
    """A whole dump, one image of which (by the first byte) is what the fuzzer says."""
    if not data:
        return
    name = NAMES[data[0] % len(NAMES)]
    source = MemorySource({**TREE, name: data[1:]})
    found = images(source)
    problems = []
    for what in ("ps", "fds", "mems", "rss"):
        with contextlib.suppress(SealpointError):
            list(Explorer(found).lines(what))
    with contextlib.suppress(SealpointError):
        inspection = Inspection(found)
        json.dumps(inspection.collect(PARTS))
        problems = inspection.problems
    with contextlib.suppress(SealpointError):
        list(memory_of(found))
    assert all(isinstance(p, SealpointError) for p in problems)


def memory(data: bytes) -> None:
    """mm, pagemap and pages of one task: lengths of the first two, then all three."""
    if len(data) < 4:
        return
    first, second = struct.unpack("<HH", data[:4])
    data = data[4:]
    parts = {
        "mm-10.img": data[:first],
        "pagemap-10.img": data[first : first + second],
        "pages-10.img": data[first + second :],
    }
    found = images(MemorySource({**TREE, **parts}))
    space = AddressSpace.load(found, 10)
    for _, _line in zip(range(2000), hexdump.lines(space), strict=False):
        pass
    for _ in search.search(space, search.literal(b"se"), context=20):
        pass
    pids(found)


def report_page(data: bytes) -> None:
    """As `dump`, made a page of."""
    if data:
        source = MemorySource({**TREE, NAMES[data[0] % len(NAMES)]: data[1:]})
        report_sections.render(report.collect(images(source)))


class _Nowhere:
    """An output of no use, with a descriptor."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("fuzz")

    def write(self, *buffers: bytes | memoryview) -> None:
        os.writev(self.fd, buffers)


def core(data: bytes) -> None:
    """The same, made a core file of."""
    if data:
        source = MemorySource({**TREE, NAMES[data[0] % len(NAMES)]: data[1:]})
        out = _Nowhere()
        try:
            coredump.write_core(images(source), 10, out)
        finally:
            os.close(out.fd)


def secrets(data: bytes) -> None:
    """Memory that is looked through for secrets: both ways of looking find the same."""
    view = memoryview(data)
    for hit in FAST.scan(view):
        assert 0 <= hit.start < hit.end <= len(data)
    SLOW.scan(view)


def archive(data: bytes) -> None:
    """An engine's archive, plain or compressed."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        source = ArchiveSource(fd, "fuzzed")
    except BaseException:
        os.close(fd)
        raise
    try:
        for name in source.names():
            source.pread(name, 1, 100)
            list(source.chunks(name, 0, 1 << 20))
        for found in image_sets(source):
            with contextlib.suppress(SealpointError):
                found.parent()
        Recoder().run(source)
    finally:
        source.close()


def documents(data: bytes) -> None:
    """What an engine says of a container, and the sealer's summary."""
    for name in ("config.dump", "spec.dump", "status.dump", "network.status"):
        found = container.describe(Images(MemorySource({name: data})))
        json.dumps({key: getattr(found, key) for key in found.__slots__})
    summary.decode(data)


def tar_members(data: bytes) -> None:
    """The reader of archives that are to be sealed."""
    reader = tar.TarReader(io.BytesIO(data))
    buffer = memoryview(bytearray(4096))
    for _ in reader:
        while reader.readinto(buffer):
            pass


class _Unlocked:
    """In place of sealpoint.criusec.cipher.Messages: all is authentic, so that what lies behind is reached."""

    def open(self, ciphertext: bytes, tag: bytes, nonce: bytes) -> bytes:
        assert (len(tag), len(nonce)) == (16, 12)
        return bytes(ciphertext)

    def seal(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        return bytes(data), bytes(16), bytes(12)


def criusec(data: bytes) -> None:
    """A CRIUsec dump, one file of which (by the first byte) is what the fuzzer says, with and without its tags."""
    if not data:
        return
    files, identity, keys = _criusec()
    names = sorted(files)
    name = names[data[0] % len(names)]
    for unlocked in (False, True):
        changed = criusec_helpers.open_dump(files | {name: data[1:]}, identity)
        if name != "cipher.img":  # RSA takes its time
            changed.__dict__["keys"] = keys
        if unlocked:
            changed.__dict__["_messages"] = _Unlocked()
        with contextlib.suppress(SealpointError):
            if name != "cipher.img":
                plain = changed.open(name)
                whole = b"".join(bytes(piece) for piece in plain.chunks())
                assert len(whole) == plain.size
                assert plain.pread(plain.size // 2, 100) == whole[plain.size // 2 :][:100]
        with contextlib.suppress(SealpointError):
            changed.check_pages()


def criusec_writer(data: bytes) -> None:
    """A plain image that shall be encrypted: what can be, comes back."""
    if not data:
        return
    files, _, _ = _criusec()
    names = [n for n in sorted(files) if n != "cipher.img" and not n.startswith("pages-")]
    name, data = names[data[0] % len(names)], data[1:]
    layout = grammar.layout_of(name, data)
    encoder = Encoder(lambda at, size: data[at : at + size], len(data), _Unlocked(), name)
    if layout is grammar.FieldLayout.CLEAR:
        assert b"".join(encoder.clear()) == data
        return
    sealed = b"".join(getattr(encoder, layout.value)())
    pread = lambda at, size: sealed[at : at + size]  # noqa: E731
    plain = scan(pread, len(sealed), layout, _Unlocked(), name, dict)
    assert plain.pread(0, plain.size) == data


def chunk_table_object(data: bytes) -> None:
    """The table of a file that refers to a chunk store: it has one spelling."""
    assert chunk_table.decode(data).encode() == data


def stored_chunk(data: bytes) -> None:
    """The file of a stored chunk, whose hash a hostile signer has signed."""
    reference = Reference(data[32:64].ljust(32, b"\0"), blake3(data).digest(), len(data))
    size = int.from_bytes(data[12:16], "little") % (1 << 21)
    out = memoryview(bytearray(size))
    chunk = stored.StoredChunk(reference, bytes(32), size)
    stored.open_into(chunk, data[16:32], memoryview(data), out)


@functools.cache
def _criusec():
    files = criusec_helpers.unpack(criusec_helpers.load_vectors()["whole"])
    identity = load_identity(str(criusec_helpers.VECTORS / "key.pem"))
    return files, identity, criusec_helpers.open_dump(files, identity).keys


TARGETS: dict[str, Target] = {
    t.__name__: t
    for t in (
        *(image, json_image, dump, memory, report_page, core, secrets),
        *(archive, documents, tar_members, criusec, criusec_writer),
        *(chunk_table_object, stored_chunk),
    )
}


def seeds(name: str) -> Iterator[bytes]:
    """Inputs to begin with."""
    kinds = sorted(messages.table()["images"])
    if name == "image":
        yield from (hand.image(kind, seed) for kind in kinds for seed in range(2))
    elif name in ("criusec", "criusec_writer"):
        files, identity, _ = _criusec()
        plain = name == "criusec_writer"
        names = [n for n in sorted(files) if not plain or (n != "cipher.img" and n[:6] != "pages-")]
        opened = criusec_helpers.open_dump(files, identity)
        for n, file in enumerate(names):
            yield bytes([n]) + (opened.read(file) if plain else files[file])
    elif name == "json_image":
        yield from (hand.as_json(hand.image(kind), pretty=kind < "M").encode() for kind in kinds)
    elif name == "secrets":
        yield from SECRETS
    elif name in ("dump", "report_page", "core"):
        yield from (bytes([n]) + TREE[image_name] for n, image_name in enumerate(NAMES))
    elif name == "chunk_table_object":
        runs = PageRuns()
        for first, count in ((None, 2), (0, 3), (1, 1)):
            runs.add(first, count)
        table = chunk_table.ChunkTable(bytes(16), array("I", (2, 1)), bytearray(64))
        table.images["pages-1.img"] = runs
        yield table.encode()
    elif name == "stored_chunk":
        head = stored.Head(Suite.AES_256_GCM, Codec.LZ4, 4096, bytes(16), bytes(32), b"", b"")
        cipher = AESGCM(bytes(32))
        for coded in (lz4.block.compress(b"text " * 819 + b".", store_size=False), b"no LZ4"):
            yield head.fixed() + bytes(80) + cipher.encrypt(bytes(12), coded, head.fixed())
    elif name == "memory":
        mm, pagemap = TREE["mm-10.img"], TREE["pagemap-10.img"]
        yield struct.pack("<HH", len(mm), len(pagemap)) + mm + pagemap + small_dump.pages()
    elif name in ("archive", "tar_members"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as made:
            for member in ("checkpoint/pstree.img", "checkpoint/core-10.img", "config.dump"):
                data = small_dump.a_container()[member]
                info = tarfile.TarInfo(member)
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("checkpoint/parent")
            link.type, link.linkname = tarfile.SYMTYPE, "../pre-checkpoint"
            made.addfile(link)
        yield out.getvalue()
        if name == "archive":
            import gzip

            yield gzip.compress(out.getvalue(), mtime=0)
            yield zstandard.compress(out.getvalue())
    else:
        for document in ("config.dump", "spec.dump", "network.status"):
            yield small_dump.a_container()[document]
        yield summary.Summary().encode()

"""A sealed file that refers to a chunk store, and what outsiders, and signers who mean harm, can do to either.

For test vectors: what is made of the same file comes out the same each time.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from typing import Any

from blake3 import blake3

from sealpoint.checkpoint.tables.chunk_table import TABLE_NAME, ChunkTable
from sealpoint.checkpoint.tables.delta import PageRuns
from sealpoint.format import chunks as format_chunks, stored
from sealpoint.format.codec import Coder
from sealpoint.format.constants import Codec, Role, Suite
from sealpoint.format.stored import Tenant
from tests.forge import SIGNER, Forge, Sealed, build_sample

TENANT = Tenant(hashlib.sha256(b"a tenant").digest())
TEXT = (b"text " * 1639)[:8192]  # two pages
NOISE = hashlib.shake_256(b"pages").digest(4096)
ZEROS = bytes(4096)
PAGES = "pages-1.img"
WHOLE = ZEROS + TEXT + NOISE + TEXT[4096:]

Chunks = dict[bytes, bytes | None]


def sample(**options: Any) -> tuple[Sealed, Chunks]:
    """pages-1.img: a page of its own, and four of two stored chunks."""
    made = [
        stored.seal(TENANT, TENANT.digest(data), memoryview(data), Coder("auto"), Suite.AES_256_GCM)
        for data in (TEXT, NOISE)
    ]
    runs = PageRuns()
    for first, count in ((None, 1), (0, 3), (1, 1)):
        runs.add(first, count)
    keys = bytearray(b"".join(chunk.key for _, chunk in made))
    table = ChunkTable(TENANT.identifier, array("I", (2, 1)), keys, {PAGES: runs})
    objects = {"inventory.img": b"inventory", "core-1.img": b"a register"}
    sealed = build_sample(
        suite=Suite.AES_256_GCM,
        objects={**objects, PAGES: ZEROS, TABLE_NAME: table.encode()},
        references=[chunk.reference for _, chunk in made],
        **options,
    )
    sealed.contents = {**objects, PAGES: WHOLE}
    return sealed, {chunk.reference.identifier: data for data, chunk in made}


def flipped(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def store_faults(chunks: Chunks) -> Iterator[tuple[str, Chunks]]:
    """What who can write to the store can do."""
    (text, noise), (one, two) = chunks, chunks.values()
    assert one is not None
    assert two is not None
    yield "head damaged", {text: flipped(one, 11)}
    yield "wrapped key damaged", {text: flipped(one, 100)}
    yield "ciphertext damaged", {noise: flipped(two, -1)}
    yield "cut", {noise: two[:-1]}
    yield "extended", {noise: two + b"\0"}
    yield "missing", {text: None}
    yield "swapped", {text: two, noise: one}
    again, _ = fresh(TEXT, b"another key of the chunk")
    yield "made anew by the tenant", {text: again}
    other, _ = fresh(TEXT, b"another tenant", Tenant(hashlib.sha256(b"another").digest()), text)
    yield "of another tenant", {text: other}


def fresh(
    plain: bytes, seed: bytes, tenant: Tenant = TENANT, identifier: bytes = b""
) -> tuple[bytes, bytes]:
    """A chunk under keys that are the same each time; its file and key."""
    digest = tenant.digest(plain)
    identifier = identifier or tenant.chunk_id(digest)
    key, salt = hashlib.sha256(seed).digest(), hashlib.sha256(seed + b" salt").digest()
    suite = Suite.AES_256_GCM
    fixed = stored.Head(
        suite, Codec.RAW, len(plain), tenant.identifier, identifier, b"", b""
    ).fixed()
    cipher = format_chunks.aead(suite, tenant.wrap_key(salt, suite, digest))
    wrapped = cipher.encrypt(bytes(12), key, fixed + salt)
    body = format_chunks.aead(suite, key).encrypt(bytes(12), plain, fixed)
    return fixed + salt + wrapped + body, key


def index_faults(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What who can write the sealed file can do to its references."""
    at = Forge(data).trailer.index_offset
    forge = Forge(data)
    size = len(forge.references)
    start = at + len(forge.stored_index) - size
    for name, offset in (("id", 0), ("hash", 40), ("length", 64), ("reserved", 70)):
        yield f"{name} of a reference damaged", flipped(data, start + offset)
    forge.references = forge.references[:72]
    yield "a reference dropped", forge.build()
    forge = Forge(data)
    forge.references = forge.references[72:] + forge.references[:72]
    yield "references swapped", forge.build()
    forge = Forge(data)
    forge.references += forge.references[:72]
    yield "a reference added", forge.build()


def signed_faults(data: bytes, roots: Any, chunks: Chunks) -> Iterator[tuple[str, bytes, Chunks]]:
    """What a signer who means harm can seal: (name, file, chunks)."""

    def references(change) -> bytes:
        forge = Forge(data, roots)
        forge.references = change(forge.references)
        return forge.resign(SIGNER).build()

    one = next(iter(chunks))
    yield "a reference twice", references(lambda r: r[:72] * 2), {}
    yield "a reference of length 0", references(lambda r: r[:64] + bytes(8) + r[72:]), {}
    huge = (1 << 31).to_bytes(4, "little")
    yield "a reference of length 2 GiB", references(lambda r: r[:64] + huge + r[68:]), {}
    yield "a reserved byte set", references(lambda r: r[:71] + b"\1" + r[72:]), {}
    yield "references in another order", references(lambda r: r[72:] + r[:72]), {}
    yield "a reference fewer than the table has", references(lambda r: r[:72]), {}
    yield "a reference more than the table has", references(lambda r: r + b"\7" * 64 + r[64:72]), {}
    yield "no reference, and a table", references(lambda r: b""), {}
    for name, value in (("hidden", None), ("zero", "0"), ("one more", "3"), ("huge", str(1 << 40))):
        forge = Forge(data, roots)
        payload = forge.payload()
        payload["index"].pop("references")
        payload["index"] |= {} if value is None else {"references": value}
        forge.set_payload(payload, SIGNER)
        yield f"number of references {name}", forge.build(), {}
    chunk, key = fresh(TEXT, b"a signer's", Tenant(hashlib.sha256(b"another").digest()), one)
    reference = one + blake3(chunk).digest() + len(chunk).to_bytes(4, "little") + bytes(4)
    forge = table_edit(Forge(data, roots), lambda t: t[:36] + key + t[68:])
    forge.references = reference + forge.references[72:]
    yield "a chunk of another tenant", forge.resign(SIGNER).build(), {one: chunk}
    at = 8 + 16 + 4 + 2 * 4 + 2 * 32 + 4 + 2 + len(PAGES) + 8
    for name, begin, new in (
        ("another version", 7, b"\2"),
        ("another tenant", 8, b"\0"),
        ("a chunk fewer", 24, b"\1"),
        ("a huge number of chunks", 24, b"\xff" * 4),
        ("a chunk of no page", 28, bytes(4)),
        ("a chunk of other length", 28, b"\3"),
        ("a chunk of 257 pages", 28, b"\1\1"),
        ("another key", 36, b"no key at all"),
        ("another image", at - 8 - 5, b"2"),
        ("an image that holds no pages", at - 8 - len(PAGES), b"files-9.img"),
        ("a huge number of runs", at - 8, b"\xff" * 8),
        ("a run of no page", at + 24, bytes(8)),
        ("a run beyond the chunks", at + 24, b"\4"),
        ("more own pages than there are", at + 8, b"\2"),
        ("a huge run", at + 24, b"\xff" * 7),
    ):
        edited = table_edit(
            Forge(data, roots), lambda t, b=begin, n=new: t[:b] + n + t[b + len(n) :]
        )
        yield f"table: {name}", edited.resign(SIGNER).build(), {}


def table_edit(forge: Forge, change) -> Forge:
    """Another chunk table of the same length, which lies in the pack of memory objects."""
    objects = forge.manifest(Role.MEMORY)["objects"]
    entry = next(o for o in objects if o["name"] == TABLE_NAME)
    number, offset, size = (int(entry[k]) for k in ("stream", "offset", "size"))
    (position,) = forge.positions(number)
    cipher = format_chunks.aead(forge.preamble.suite, forge._key(Role.MEMORY, number))
    frame = forge.frames[position][1]
    nonce, aad = format_chunks.nonce(0, True), format_chunks.aad(Codec.RAW, len(frame) - 16)
    plain = cipher.decrypt(nonce, frame, aad)
    table = change(plain[offset : offset + size])
    assert len(table) == size
    plain = plain[:offset] + table + plain[offset + size :]
    forge.frames[position] = (
        number,
        forge.seal_chunk(Role.MEMORY, number, 0, plain, last=True),
    )
    return forge

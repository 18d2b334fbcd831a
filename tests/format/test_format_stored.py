"""Stored chunks: the file of one, and who can make what of it."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings, strategies as st

from sealpoint.errors import FileError
from sealpoint.format import stored
from sealpoint.format.chunks import aead
from sealpoint.format.codec import Coder
from sealpoint.format.constants import (
    MAX_STORED,
    PAGE_SIZE,
    STORED_HEAD_SIZE,
    Codec,
    Suite,
)
from sealpoint.format.index import Index, IndexBuilder, Reference
from sealpoint.format.stored import Head, StoredChunk, Tenant

TENANT = Tenant(b"k" * 32)
OTHER = Tenant(b"o" * 32)
TEXT = b"text " * 820
PLAIN = (TEXT[:PAGE_SIZE], hashlib.shake_256(b"noise").digest(2 * PAGE_SIZE), bytes(PAGE_SIZE))


def sealed(plain: bytes, policy: str = "auto", suite: Suite = Suite.AES_256_GCM, tenant=TENANT):
    return stored.seal(tenant, tenant.digest(plain), memoryview(plain), Coder(policy), suite)


def opened(chunk: StoredChunk, data: bytes, tenant: bytes = TENANT.identifier) -> bytes:
    out = bytearray(chunk.size)
    stored.open_into(chunk, tenant, memoryview(data), memoryview(out))
    return bytes(out)


def refitted(chunk: StoredChunk, data: bytes) -> StoredChunk:
    """As a signer would refer to other bytes."""
    reference = Reference(chunk.reference.identifier, blake3(data).digest(), len(data))
    return dataclasses.replace(chunk, reference=reference)


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("policy", ["auto", "none", "lz4", "zstd"])
@pytest.mark.parametrize("plain", PLAIN, ids=["text", "noise", "zeros"])
def test_a_chunk_opens_for_who_refers_to_it_and_for_its_tenant(plain, policy, suite):
    data, chunk = sealed(plain, policy, suite)
    assert opened(chunk, data) == plain
    assert stored.unwrap(TENANT, TENANT.digest(plain), data, memoryview(plain)) == chunk
    assert chunk.key not in data
    assert plain[:64] not in data or not any(plain)


def test_the_same_pages_make_the_same_id_and_different_ciphertexts():
    one, two = sealed(TEXT[:PAGE_SIZE]), sealed(TEXT[:PAGE_SIZE])
    assert one[1].reference.identifier == two[1].reference.identifier
    assert one[1].key != two[1].key
    assert one[0][64:] != two[0][64:]
    shared = sum(a == b for a, b in zip(one[0][64:], two[0][64:], strict=True))
    assert shared < len(one[0]) / 16
    foreign = sealed(TEXT[:PAGE_SIZE], tenant=OTHER)
    assert foreign[1].reference.identifier != one[1].reference.identifier


def test_ids_and_keys_are_those_of_the_specification():
    """From the formulas of docs/spec.md, section 16, by hand."""
    import hmac

    def hkdf(key: bytes, salt: bytes, *fields: bytes) -> bytes:
        parts = (b"sealpoint/v1", *fields)
        info = b"".join(len(p).to_bytes(2, "little") + p for p in parts)
        inner = hmac.digest(salt or bytes(32), key, "sha256")
        return hmac.digest(inner, info + b"\x01", "sha256")

    key, plain = b"k" * 32, PLAIN[1]
    assert TENANT.identifier == hkdf(key, b"", b"store-tenant")[:16]
    assert TENANT.cut_key == hkdf(key, b"", b"store-cut")
    digest = blake3(plain, key=hkdf(key, b"", b"store-digest")).digest()
    identifier = blake3(digest, key=hkdf(key, b"", b"store-name")).digest()
    assert TENANT.digest(plain) == digest
    assert TENANT.chunk_id(digest) == identifier
    data, chunk = sealed(plain, "none")
    assert data[:16] == b"\x89SEALCK\n\x02\x00\x01\x00" + len(plain).to_bytes(4, "little")
    assert data[16:64] == TENANT.identifier + identifier
    wrap = hkdf(digest, data[64:96], b"store-lock", b"\x01", TENANT.identifier, identifier)
    assert aead(Suite.AES_256_GCM, wrap).decrypt(bytes(12), data[96:144], data[:96]) == chunk.key
    body = aead(Suite.AES_256_GCM, chunk.key).decrypt(bytes(12), data[144:], data[:64])
    assert body == plain


def test_who_has_the_tenant_key_and_not_the_pages_cannot_open_a_chunk():
    """Whatever follows from the key and from all that is public opens nothing; guessing the pages does."""
    plain = PLAIN[1]
    data, chunk = sealed(plain)
    key, head = b"k" * 32, Head.decode(data)
    near = plain[:-1] + bytes([plain[-1] ^ 1])
    secrets = [
        key,
        head.identifier,
        head.tenant,
        TENANT.digest(near),
        TENANT.digest(head.identifier),
    ]
    secrets += [vars(TENANT)[n] for n in vars(TENANT)]
    for secret in secrets:
        for purpose in ("store-wrap", "store-lock"):
            fields = (bytes([head.suite]), head.tenant, head.identifier)
            guessed = stored._derive(secret, purpose, head.salt, *fields)
            with pytest.raises(InvalidTag):
                aead(head.suite, guessed).decrypt(bytes(12), head.wrapped, data[:96])
    with pytest.raises(FileError):
        stored.unwrap(TENANT, TENANT.digest(near), data, memoryview(near))
    assert stored.unwrap(TENANT, TENANT.digest(plain), data, memoryview(plain)) == chunk


def test_a_chunk_of_version_1_is_read_and_not_referred_to_anew():
    plain, key, salt = PLAIN[1], b"c" * 32, b"s" * 32
    identifier = blake3(plain, key=stored._derive(b"k" * 32, "store-id")).digest()
    head = Head(
        Suite.AES_256_GCM, Codec.RAW, len(plain), TENANT.identifier, identifier, b"", b"", 1
    )
    wrap = stored._derive(b"k" * 32, "store-wrap", salt, b"\x01", TENANT.identifier, identifier)
    wrapped = aead(head.suite, wrap).encrypt(bytes(12), key, head.fixed() + salt)
    body = aead(head.suite, key).encrypt(bytes(12), plain, head.fixed())
    data = head.fixed() + salt + wrapped + body
    chunk = StoredChunk(Reference(identifier, blake3(data).digest(), len(data)), key, len(plain))
    assert opened(chunk, data) == plain
    with pytest.raises(FileError, match="older version"):
        stored.unwrap(TENANT, TENANT.digest(plain), data, memoryview(plain))


@pytest.mark.parametrize("at", [*range(0, STORED_HEAD_SIZE, 5), STORED_HEAD_SIZE, -1])
def test_a_changed_byte_is_noticed_by_the_hash_and_by_the_tenant(at):
    data, chunk = sealed(TEXT[:PAGE_SIZE])
    changed = bytearray(data)
    changed[at] ^= 1
    with pytest.raises(FileError):
        opened(chunk, bytes(changed))
    with pytest.raises(FileError):
        stored.unwrap(
            TENANT, TENANT.digest(TEXT[:PAGE_SIZE]), bytes(changed), memoryview(TEXT[:4096])
        )


def test_a_chunk_that_is_not_what_the_table_says_is_refused_whoever_signed_it():
    data, chunk = sealed(PLAIN[1])
    other, foreign = sealed(PLAIN[0]), sealed(PLAIN[1], tenant=OTHER)
    with pytest.raises(FileError, match="another one"):
        opened(chunk, data, OTHER.identifier)
    with pytest.raises(FileError, match="another one"):
        opened(refitted(chunk, foreign[0]), foreign[0])
    with pytest.raises(FileError, match="another one"):
        opened(dataclasses.replace(refitted(chunk, other[0]), size=PAGE_SIZE), other[0])
    with pytest.raises(FileError, match="another one"):
        opened(dataclasses.replace(chunk, size=PAGE_SIZE), data)
    with pytest.raises(FileError, match="tampered"):
        opened(dataclasses.replace(chunk, key=other[1].key), data)


def test_a_chunk_that_a_holder_of_its_key_encrypted_anew_is_not_the_one_that_was_signed():
    """Everybody who could open one file that refers to it has the key: tags are no evidence of origin, the hash is."""
    data, chunk = sealed(PLAIN[1], "none")
    fixed, body = bytes(data[:64]), bytes(data[:STORED_HEAD_SIZE])
    for plain in (PLAIN[1], bytes(reversed(PLAIN[1]))):
        forged = body + aead(Suite.AES_256_GCM, chunk.key).encrypt(bytes(12), plain, fixed)
        assert len(forged) == len(data)
        assert (
            opened(refitted(chunk, forged), forged) == plain
        )  # only the signed hash is against it
        if forged != data:
            with pytest.raises(FileError, match="tampered"):
                opened(chunk, forged)


def test_a_chunk_that_does_not_hold_what_its_id_says_is_not_referred_to():
    """Who holds the tenant key can make such a chunk, and store it first."""
    plain, lie = memoryview(PLAIN[1]), memoryview(PLAIN[1][:-1] + b"!")
    identifier = TENANT.digest(plain)
    data, _ = stored.seal(TENANT, identifier, lie, Coder("auto"), Suite.AES_256_GCM)
    with pytest.raises(FileError, match="does not hold"):
        stored.unwrap(TENANT, identifier, data, plain)
    with pytest.raises(FileError, match="does not hold"):
        short, _ = stored.seal(TENANT, identifier, plain[:4096], Coder("auto"), Suite.AES_256_GCM)
        stored.unwrap(TENANT, identifier, short, plain)


@pytest.mark.parametrize(
    ("at", "value", "size"),
    [
        (8, 0, 2),
        (8, 3, 2),
        (10, 0, 1),
        (10, 3, 1),
        (11, 4, 1),
        (12, 0, 4),
        (12, 4097, 4),
        (12, MAX_STORED + PAGE_SIZE, 4),
        (12, 0xFFFFF000, 4),
    ],
)
def test_a_head_that_claims_what_cannot_be_is_refused_before_anything_is_allocated(at, value, size):
    data, _ = sealed(TEXT[:PAGE_SIZE], "lz4")
    hostile = data[:at] + value.to_bytes(size, "little") + data[at + size :]
    with pytest.raises(FileError):
        Head.decode(hostile)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 63), st.binary(min_size=1, max_size=12))
def test_noise_is_no_chunk(noise, at, piece):
    data, chunk = sealed(TEXT[:PAGE_SIZE])
    # What follows the first 64 bytes wraps the key for the tenant: the chunk's hash alone covers it here.
    piece = piece[: 64 - at]
    for hostile in (noise, data[:at] + piece + data[at + len(piece) :]):
        if hostile == data:
            continue
        with pytest.raises(FileError):
            opened(refitted(chunk, hostile), hostile)


def test_a_decompression_bomb_is_refused():
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(64 * 1024 * 1024))
    plain = TEXT[:PAGE_SIZE]
    identifier = TENANT.chunk_id(plain)
    head = Head(Suite.AES_256_GCM, Codec.ZSTD, PAGE_SIZE, TENANT.identifier, identifier, b"", b"")
    key = bytes(32)
    body = aead(Suite.AES_256_GCM, key).encrypt(bytes(12), bomb[:4000], head.fixed())
    data = head.fixed() + bytes(80) + body
    chunk = StoredChunk(Reference(identifier, blake3(data).digest(), len(data)), key, PAGE_SIZE)
    with pytest.raises(FileError, match="length that it claims"):
        opened(chunk, data)


def references(*made: Reference) -> bytes:
    builder = IndexBuilder()
    builder.append(3, 16, bytes(32))
    for reference in made:
        builder.refer(reference)
    return builder.encode()


def test_references_stand_behind_the_entries_and_count_for_the_root():
    one, two = Reference(b"1" * 32, b"h" * 32, 200), Reference(b"2" * 32, b"h" * 32, 160)
    index = Index(references(one, two), 0, 24, references=2)
    assert (index.references, index.reference(0), index.reference(1)) == (2, one, two)
    assert len(index) == 1
    assert index.root != Index(references(two, one), 0, 24, references=2).root


@pytest.mark.parametrize(
    ("data", "count", "words"),
    [
        (references(*[Reference(b"1" * 32, b"h" * 32, 200)] * 2), 2, "twice"),
        (references(Reference(b"1" * 32, b"h" * 32, 159)), 1, "impossible"),
        (references(Reference(b"1" * 32, b"h" * 32, (1 << 20) + 161)), 1, "impossible"),
        (references(Reference(b"1" * 32, b"h" * 32, 200))[:-1] + b"\1", 1, "impossible"),
        (references(Reference(b"1" * 32, b"h" * 32, 200)), 2, "impossible"),
        (references(Reference(b"1" * 32, b"h" * 32, 200)), 0, "impossible"),
    ],
)
def test_references_that_cannot_be_are_refused(data, count, words):
    with pytest.raises(FileError, match=words):
        Index(data, 0, 24, references=count)

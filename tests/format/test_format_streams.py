"""Chunk streams: counters, nonces, the last chunk, forks."""

from __future__ import annotations

import os
import warnings

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from sealpoint.errors import FileError, SealpointError
from sealpoint.format import chunks, derive
from sealpoint.format.chunks import ChunkOpener, ChunkSealer
from sealpoint.format.codec import Coder
from sealpoint.format.constants import MAX_CHUNKS_PER_KEY, Codec, Role, Suite
from sealpoint.format.derive import RootKeys
from sealpoint.format.manifest import Entry, Manifest
from sealpoint.format.preamble import Preamble
from sealpoint.format.writer import SealedWriter
from tests.forge import SIGNER, Buffer, Forge, append, build_sample, sample, toy_wrap


def writer():
    return SealedWriter(Buffer(), suite=Suite.AES_256_GCM, wrap=toy_wrap, signing=SIGNER.signing)


@pytest.mark.parametrize("suite", Suite)
def test_no_nonce_is_used_twice_under_a_key_in_a_whole_file(suite, monkeypatch):
    seen = []
    real = chunks.aead

    def spy(which, key):
        cipher = real(which, key)

        class Spy:
            def encrypt_into(self, nonce, data, aad, out):
                seen.append((key, bytes(nonce)))
                return cipher.encrypt_into(nonce, data, aad, out)

        return Spy()

    monkeypatch.setattr(chunks, "aead", spy)
    made = build_sample(suite=suite)
    frames = len(Forge(made.data).frames)
    assert len(seen) == frames
    assert len(set(seen)) == frames
    assert len({key for key, _ in seen}) == 7  # five streams and two manifests


def test_keys_differ_by_root_number_role_suite_id_and_salt():
    base = Preamble(Suite.AES_256_GCM, 8192, bytes(16), bytes(32))
    preambles = [
        base,
        Preamble(Suite.CHACHA20_POLY1305, 8192, bytes(16), bytes(32)),
        Preamble(Suite.AES_256_GCM, 8192, b"\1" * 16, bytes(32)),
        Preamble(Suite.AES_256_GCM, 8192, bytes(16), b"\1" * 32),
    ]
    keys = [
        derive.object_key(root, preamble, number, role)
        for root in (bytes(32), b"\1" * 32)
        for preamble in preambles
        for number in (1, 2, 256)
        for role in Role
    ]
    keys += [derive.commitment(bytes(32), p, role) for p in preambles for role in Role]
    keys += [derive.derive(bytes(32), p, "header-mac") for p in preambles]
    assert len(set(keys)) == len(keys)


def test_key_derivation_is_that_of_the_specification():
    """Written out by hand, with hmac alone."""
    import hmac

    preamble = Preamble(Suite.CHACHA20_POLY1305, 8192, bytes(range(16)), bytes(range(32)))
    info = b"".join(
        len(f).to_bytes(2, "little") + f
        for f in (
            b"sealpoint/v1", b"object", b"\2", bytes(range(16)), (7).to_bytes(8, "little"), b"\2",
        )
    )  # fmt: skip
    extracted = hmac.digest(bytes(range(32)), b"k" * 32, "sha256")
    expected = hmac.digest(extracted, info + b"\1", "sha256")
    assert derive.object_key(b"k" * 32, preamble, 7, Role.MEMORY) == expected


@pytest.mark.parametrize(("suite", "cipher"), [(1, AESGCM), (2, ChaCha20Poly1305)])
def test_chunks_are_plain_aead_with_the_nonce_and_aad_of_the_specification(suite, cipher):
    sealer = ChunkSealer(Suite(suite), b"k" * 32)
    out = memoryview(bytearray(64))
    sealer.next_nonce(last=False)
    size = sealer.seal_into(out, sealer.next_nonce(last=True), b"data", Codec.RAW, 4)
    nonce = bytes(10) + b"\1" + b"\1"
    aad = b"\0" + (4).to_bytes(8, "little")
    assert cipher(b"k" * 32).decrypt(nonce, bytes(out[:size]), aad) == b"data"


@pytest.mark.parametrize(
    "change", [{"counter": 1}, {"last": False}, {"codec": Codec.LZ4}, {"plain_size": 5}]
)
def test_a_chunk_opens_only_at_its_place_and_as_what_it_is(change):
    sealer = ChunkSealer(Suite.AES_256_GCM, b"k" * 32)
    out = memoryview(bytearray(64))
    size = sealer.seal_into(out, sealer.next_nonce(last=True), b"data", Codec.RAW, 4)
    opener, plain = ChunkOpener(Suite.AES_256_GCM, b"k" * 32), memoryview(bytearray(4))
    arguments = {"counter": 0, "codec": Codec.RAW, "plain_size": 4, "last": True}

    def attempt(counter, codec, plain_size, last):
        return opener.open_into(plain, counter, out[:size], codec, plain_size, last=last)

    assert attempt(**arguments) == 4
    with pytest.raises(FileError, match="not authentic"):
        attempt(**(arguments | change))


def test_a_counter_is_gone_even_if_its_encryption_failed():
    stream = writer().stream(Role.MEMORY, 4096)
    chunk = stream.begin_chunk(4096, last=False)
    with pytest.raises(ValueError):
        stream.seal(chunk, memoryview(bytes(4096)), Coder("none"), memoryview(bytearray(10)))
    with pytest.raises(SealpointError):
        stream.seal(chunk, memoryview(bytes(4096)), Coder("none"), memoryview(bytearray(9000)))
    assert stream.begin_chunk(4096, last=False).counter == 1


def test_a_chunk_is_sealed_only_once():
    stream = writer().stream(Role.MEMORY, 4096)
    chunk = stream.begin_chunk(3, last=True)
    out = memoryview(bytearray(4200))
    stream.seal(chunk, memoryview(b"abc"), Coder("none"), out)
    with pytest.raises(SealpointError, match="only once"):
        stream.seal(chunk, memoryview(b"xyz"), Coder("none"), out)


def test_nothing_follows_the_last_chunk():
    stream = writer().stream(Role.MEMORY, 4096)
    stream.begin_chunk(0, last=True)
    with pytest.raises(SealpointError):
        stream.begin_chunk(4096, last=False)


@pytest.mark.parametrize(("size", "last"), [(4096, True), (4095, False), (0, False), (4097, False)])
def test_every_chunk_but_the_last_is_full_and_the_last_is_not(size, last):
    with pytest.raises(ValueError):
        writer().stream(Role.MEMORY, 4096).begin_chunk(size, last=last)


def test_a_key_seals_no_more_chunks_than_its_limit():
    sealer = ChunkSealer(Suite.AES_256_GCM, bytes(32))
    sealer._counter = MAX_CHUNKS_PER_KEY - 1
    sealer.next_nonce(last=False)
    with pytest.raises(SealpointError):
        sealer.next_nonce(last=False)


def test_a_forked_process_cannot_go_on_with_a_stream():
    stream = writer().stream(Role.MEMORY, 4096)
    stream.begin_chunk(4096, last=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            stream.begin_chunk(4096, last=False)
        except SealpointError:
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    stream.begin_chunk(4096, last=False)


def test_chunks_are_appended_in_order():
    w = writer()
    stream = w.stream(Role.MEMORY, 4096)
    made = []
    for _ in range(2):
        chunk = stream.begin_chunk(4096, last=False)
        stream.seal(chunk, memoryview(bytes(4096)), Coder("none"), memoryview(bytearray(9000)))
        made.append(chunk)
    with pytest.raises(ValueError):
        w.append(made[1])
    with pytest.raises(ValueError):
        w.append(stream.begin_chunk(4096, last=False))  # not sealed


def finishable(w):
    stream = w.stream(Role.METADATA, 4096)
    append(w, stream, b"x", last=True, policy="none")
    table = Manifest(Role.METADATA)
    table.streams = [stream.entry()]
    table.entries = [Entry(w.number(), "inventory.img", Role.METADATA, 1, stream.entry())]
    return table, Manifest(Role.MEMORY)


def test_a_writer_does_not_finish_what_a_reader_would_refuse():
    for spoil in (
        lambda m, w: m.entries.clear(),
        lambda m, w: m.streams.clear(),
        lambda m, w: m.entries.append(m.entries[0]),
        lambda m, w: m.memory.update({9: 9}),
        lambda m, w: m.properties.update({"half": "\udcff"}),
        lambda m, w: append(w, w.stream(Role.MEMORY, 4096), b"", last=True, policy="none"),
        lambda m, w: w.stream(Role.MEMORY, 4096).begin_chunk(4096, last=False),
    ):
        w = writer()
        metadata, memory = finishable(w)
        spoil(metadata, w)
        with pytest.raises(SealpointError):
            w.finish(metadata, memory, tool="t")


def test_nothing_is_written_after_the_end_or_after_a_failure():
    w = writer()
    w.finish(*finishable(w), tool="t")
    with pytest.raises(SealpointError):
        w.finish(Manifest(Role.METADATA), Manifest(Role.MEMORY), tool="t")

    w = writer()
    tables = finishable(w)
    w._out.write = lambda *_: (_ for _ in ()).throw(OSError("no space"))
    with pytest.raises(OSError):
        w.finish(*tables, tool="t")
    del w._out.write
    with pytest.raises(SealpointError):
        w.finish(*tables, tool="t")


def test_two_files_of_the_same_data_have_nothing_in_common():
    a, b = sample(), build_sample(suite=Suite.AES_256_GCM)
    assert a.roots != b.roots
    mine = {c[:16] for _, c in Forge(a.data).frames if len(c) > 16}
    assert not mine & {c[:16] for _, c in Forge(b.data).frames}


def test_roots_do_not_show_in_a_representation():
    assert "aaaa" not in repr(RootKeys(b"aaaa" * 8, b"aaaa" * 8))


def test_a_statement_that_no_reader_accepts_is_never_written():
    beyond = {
        "workload": "w" * 4097,
        "tool": "t" * 257,
        "captured": 2**40,
        "kind": "other",
        "chain": (b"c" * 16, 2**64),
    }
    for name, value in beyond.items():
        w = writer()
        with pytest.raises(SealpointError):
            w.finish(*finishable(w), **({"tool": "t"} | {name: value}))
    w = writer()
    w.finish(*finishable(w), tool="t" * 256, workload="w" * 4096)

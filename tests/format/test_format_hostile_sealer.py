"""A file that is properly signed by a trusted sealer who is hostile, or has a bug: still our errors, still bounded."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
import zstandard

from sealpoint.errors import FileError, SealpointError
from sealpoint.format import manifest, strictjson
from sealpoint.format.codec import decode_into
from sealpoint.format.constants import MAX_FRAMES, MAX_STREAMS, Codec, Role, Suite
from sealpoint.format.derive import RootKeys
from sealpoint.format.index import Index
from sealpoint.format.slot import decode_slot
from sealpoint.format.statement import Origin
from tests.faults import MEMORY, METADATA, ORIGIN
from tests.forge import SIGNER, Forge, build_sample, read_all, sample


def with_manifest(role, change):
    """The sample with a manifest edited, everything re-derived and signed by the true sealer."""
    sealed = sample()
    forge = Forge(sealed.data, sealed.roots)
    table = forge.manifest(role)
    made = change(table)
    forge.set_manifest(role, made if isinstance(made, bytes) else table)
    return forge.resign(SIGNER).build()


@pytest.mark.parametrize("name", MEMORY)
def test_a_signed_memory_manifest_with_a_fault_is_refused(name):
    data = with_manifest(Role.MEMORY, MEMORY[name])
    with pytest.raises(FileError):
        read_all(data, sample().roots)


@pytest.mark.parametrize("name", METADATA)
def test_a_signed_metadata_manifest_with_a_fault_is_refused(name):
    data = with_manifest(Role.METADATA, METADATA[name])
    with pytest.raises(FileError):
        read_all(data, sample().roots)


def test_a_metadata_recipient_notices_faults_of_its_own_manifest():
    for name in list(METADATA)[:5]:
        data = with_manifest(Role.METADATA, METADATA[name])
        with pytest.raises(FileError):
            read_all(data, RootKeys(sample().roots.metadata, None))


@pytest.mark.parametrize("name", ORIGIN)
def test_a_signed_origin_with_a_fault_is_refused(name):
    sealed = sample()
    forge = Forge(sealed.data)
    forge.set_payload(forge.payload() | ORIGIN[name], SIGNER)
    with pytest.raises(FileError):
        read_all(forge.build(), sealed.roots)


def test_members_of_a_signed_origin_in_another_order_are_refused():
    sealed = sample()
    forge = Forge(sealed.data)
    forge.set_payload(dict(sorted(forge.payload().items())), SIGNER)
    with pytest.raises(FileError, match="canonical"):
        read_all(forge.build(), sealed.roots)


@pytest.mark.parametrize("kind", ["increment", "derived", "derived increment"])
def test_increments_and_derived_files_can_be_written_and_read(kind):
    from sealpoint.format.statement import ParentRef

    ref = ParentRef(b"p" * 16, b"o" * 32)
    more = {"kind": kind.split()[0]}
    if "increment" in kind:
        more |= {"parent": ref, "chain": (b"r" * 16, 3)}
    if "derived" in kind:
        more["derived_from"] = ref
    sealed = build_sample(suite=Suite.AES_256_GCM, **more)
    assert read_all(sealed.data, sealed.roots) == sealed.contents
    origin = Origin.decode(Forge(sealed.data).envelope().payload)
    assert (origin.parent is not None) == ("increment" in kind)


def test_other_roots_than_the_committed_ones_are_refused():
    sealed = sample()
    for wrong in (
        RootKeys(bytes(32), sealed.roots.memory),
        RootKeys(sealed.roots.metadata, bytes(32)),
        RootKeys(sealed.roots.memory, sealed.roots.metadata),
    ):
        with pytest.raises(FileError, match="keys that are not those"):
            read_all(sealed.data, wrong)


def test_frames_that_no_manifest_lists_are_refused():
    sealed = sample()
    forge = Forge(sealed.data, sealed.roots)
    forge.frames.append((77, forge.seal_chunk(Role.MEMORY, 77, 0, b"hidden", last=True)))
    with pytest.raises(FileError, match="no manifest lists"):
        read_all(forge.resign(SIGNER).build(), sealed.roots)


def peak(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refuses(parse, data):
    def attempt():
        with pytest.raises(SealpointError):
            parse(data)

    return attempt


def test_absurd_lengths_allocate_nothing():
    sealed = sample()
    head = Forge(sealed.data).slots[0]
    absurd = b"\xff" * 4
    slots = [head[:4] + absurd + head[8:], head[:16] + absurd + head[20:]]
    for raw in slots:
        assert peak(refuses(decode_slot, raw)) < 1 << 20
    for at in range(8, 48, 8):
        for value in (0, 1 << 20, 1 << 40, (1 << 64) - 1):
            data = sealed.data[: at - 64] + value.to_bytes(8, "little") + sealed.data[at - 56 :]
            if data != sealed.data:
                assert peak(refuses(lambda d: read_all(d, None), data)) < 1 << 20


def test_an_index_of_very_many_objects_is_refused(monkeypatch):
    assert MAX_STREAMS == 2 * (1 << 18) + 2
    monkeypatch.setattr("sealpoint.format.index.MAX_STREAMS", 1000)
    entry = (16).to_bytes(4, "little") + bytes(32)
    data = b"".join(n.to_bytes(4, "little") + entry for n in range(1001))
    Index(data[:-40], 0, 24 * 1000)
    with pytest.raises(FileError, match="more than 1000 objects"):
        Index(data, 0, 24 * 1001)


def test_an_index_is_never_longer_than_its_limit():
    with pytest.raises(FileError):
        Index(bytes(40 * (MAX_FRAMES + 1)), 0, 24 * (MAX_FRAMES + 1))


@pytest.mark.parametrize("text", [b"[]", b"{}", b'""'])
def test_json_of_very_many_values_is_refused_before_it_is_parsed(text):
    data = b'{"a":[' + (text + b",") * 6_999_999 + text + b"]}"
    assert peak(refuses(lambda d: strictjson.decode(d, "x"), data)) < 4 * len(data)


@pytest.mark.parametrize("which", [Codec.LZ4, Codec.ZSTD, Codec.ZERO, Codec.RAW])
def test_a_bomb_never_gets_more_room_than_its_chunk(which):
    import lz4.block

    plain = bytes(64 << 20)
    coded = {
        Codec.LZ4: lambda: lz4.block.compress(plain, store_size=False),
        Codec.ZSTD: lambda: zstandard.compress(plain),
        Codec.ZERO: lambda: b"x",
        Codec.RAW: lambda: b"x" * 5000,
    }[which]()
    out = memoryview(bytearray(4096))

    def attempt():
        with pytest.raises(FileError):
            decode_into(out, which, memoryview(coded))

    assert peak(attempt) < 1 << 20


@pytest.mark.parametrize(
    "coded",
    [
        zstandard.compress(bytes(4096)) + b"more",
        zstandard.compress(bytes(4096)) * 2,
        zstandard.compress(bytes(4095)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(4096)),
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.compress(bytes(4096)),
        zlib.compress(bytes(4096)),
        b"",
    ],
    ids=["bytes after", "two frames", "shorter", "no size", "skippable", "zlib", "empty"],
)
def test_a_zstd_chunk_is_one_frame_of_the_right_size(coded):
    with pytest.raises(FileError):
        decode_into(memoryview(bytearray(4096)), Codec.ZSTD, memoryview(coded))


def test_a_manifest_that_no_reader_would_take_is_not_written():
    table = manifest.Manifest(Role.MEMORY)
    table.properties = {str(n): "x" * 4096 for n in range(1 << 14)}
    with pytest.raises(FileError, match="more objects"):
        manifest.encode(table)

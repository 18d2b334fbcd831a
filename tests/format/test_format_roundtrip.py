"""What is sealed is read back, whatever it is: contents, codecs, sizes, names, parts of objects."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.errors import FileError, IdentityError, UsageError
from sealpoint.format.codec import POLICIES, Coder, decode_into, is_zero
from sealpoint.format.constants import MAX_CHUNK, Codec, Role, Suite
from sealpoint.format.derive import RootKeys
from sealpoint.format.opened import OpenFile, Scratch
from sealpoint.format.raw import Descriptor
from sealpoint.format.reader import SealedFile
from sealpoint.format.writer import Signing
from tests.forge import SIGNER, Forge, Sealed, build_sample, read_all, sample, toy_wrap, trusting

sizes = st.sampled_from([0, 1, 4095, 4096, 4097, 8191, 8192, 12288])
fillings = st.sampled_from([b"\0", b"a", b"text ", bytes(range(256))])
contents = st.builds(lambda n, f: (f * (n // len(f) + 1))[:n], sizes, fillings) | st.binary(
    max_size=5000
)
object_sets = st.dictionaries(
    st.sampled_from(
        ["inventory.img", "pstree.img", "core-1.img", "pages-1.img", "pages-2.img", "é/ü", "x y"]
    ),
    contents,
    min_size=1,
)


@given(object_sets, st.sampled_from(Suite))
@settings(max_examples=60)
def test_any_objects_come_back_as_they_were(objects, suite):
    small_enough = {n: d for n, d in objects.items() if n.startswith("pages-") or len(d) < 4000}
    if not small_enough:
        return
    sealed = build_sample(suite=suite, objects=small_enough)
    assert read_all(sealed.data, sealed.roots) == small_enough


@pytest.fixture
def opened():
    sealed = sample()
    fd = os.memfd_create("x")
    os.write(fd, sealed.data)
    authentic = SealedFile(Descriptor(fd)).authenticate(trusting(SIGNER.key_id))
    yield sealed, OpenFile.unlock(authentic, lambda preamble, slot: sealed.roots)
    os.close(fd)


def test_the_sample_uses_every_codec(opened):
    used = set().union(*(s.codecs for s in opened[1].streams()))
    assert used == set(Codec)


@given(start=st.integers(0, 13000), size=st.none() | st.integers(0, 13000))
def test_any_part_of_an_object_can_be_read(opened, start, size):
    sealed, reader = opened
    for name in ("pages-1.img", "core-1.img", "empty.img"):
        expected = sealed.contents[name][start:]
        expected = expected if size is None else expected[:size]
        found = bytearray()
        for piece in reader.read(reader.entry(name), start=start, size=size):
            found += piece
        assert found == expected


def test_readers_that_share_buffers_do_not_see_each_other_s_data(opened):
    sealed, reader = opened
    scratch = Scratch()
    slow = reader.read(reader.entry("pages-2.img"), scratch)
    got = [bytes(next(slow))]
    for name in ("core-1.img", "pages-1.img", "inventory.img"):
        data = b"".join(bytes(p) for p in reader.read(reader.entry(name), scratch))
        assert data == sealed.contents[name]
    got += [bytes(p) for p in slow]
    assert b"".join(got) == sealed.contents["pages-2.img"]
    again = b"".join(bytes(p) for p in reader.read(reader.entry("pages-2.img"), scratch))
    assert again == sealed.contents["pages-2.img"]


def test_an_object_of_several_chunks_is_read_whole(opened):
    sealed, reader = opened
    entry = reader.entry("pages-1.img")
    assert reader.read_bytes(entry) == sealed.contents["pages-1.img"]
    with pytest.raises(FileError, match="larger"):
        reader.read_bytes(entry, limit=100)


def test_an_object_that_does_not_exist_is_named(opened):
    with pytest.raises(FileError, match="'nothing'"):
        opened[1].entry("nothing")


def test_a_frame_that_changes_after_all_was_verified_is_noticed(opened):
    _sealed, reader = opened
    reader.verify_all()
    fd = reader.authentic.file.source.fd
    at = reader.authentic.index.entry(0)[1] + 20
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1]), at)
    with pytest.raises(FileError, match="changed after sealing"):
        reader.read_bytes(reader.entry("pages-1.img"))


def test_a_file_that_shrinks_after_all_was_verified_is_noticed(opened):
    _, reader = opened
    os.ftruncate(reader.authentic.file.source.fd, 50_000)
    with pytest.raises(FileError):
        reader.verify_all()


def test_a_metadata_recipient_reads_metadata_and_nothing_else():
    sealed = sample()
    found = read_all(sealed.data, RootKeys(sealed.roots.metadata, None))
    assert set(found) == {"inventory.img", "pstree.img", "sealpoint-summary.json"}
    with pytest.raises(IdentityError, match="only the metadata"):
        RootKeys(sealed.roots.metadata, None).root(Role.MEMORY)


def test_an_unsigned_file_is_read_where_that_is_allowed():
    made = build_sample(suite=Suite.AES_256_GCM, signer=None)
    assert read_all(made.data, made.roots, trust=()) == made.contents


def test_a_signer_who_signs_by_another_key_than_announced_is_caught_when_sealing():
    from sealpoint.errors import SealpointError

    broken = Signing(SIGNER.sign, ("00" * 32,))
    with pytest.raises(SealpointError):
        broken.envelope("type", b"payload")


def test_other_software_can_verify_our_signatures():
    """With securesystemslib's DSSE, which knows nothing of us."""
    dsse = pytest.importorskip("securesystemslib.dsse")
    keys = pytest.importorskip("securesystemslib.signer")
    import json

    from cryptography.hazmat.primitives.serialization import load_der_public_key

    stored = json.loads(Forge(sample().data).origin)
    for s in stored["signatures"]:
        s.pop("publicKey")
    envelope = dsse.Envelope.from_dict(stored)
    public = load_der_public_key(SIGNER.spki)
    key = keys.SSlibKey.from_crypto(public, keyid=SIGNER.key_id)
    assert SIGNER.key_id in envelope.verify([key], 1)


def test_a_large_manifest_takes_several_chunks():
    objects = {f"core-{n}.img": b"x" for n in range(900)}
    sealed = build_sample(suite=Suite.AES_256_GCM, objects=objects)
    assert len(Forge(sealed.data).positions(2)) > 1
    assert read_all(sealed.data, sealed.roots) == objects


@given(contents, st.sampled_from(POLICIES))
def test_every_policy_decodes_to_what_it_encoded(data, policy):
    codec, coded = Coder(policy).encode(memoryview(data))
    out = memoryview(bytearray(len(data)))
    decode_into(out, codec, memoryview(coded))
    assert out == data
    assert (len(coded) < len(data)) == (codec is not Codec.RAW)


def test_policies_do_what_they_are_called():
    text, zeros, noise = b"text " * 1000, bytes(5000), os.urandom(5000)
    table = {
        ("none", text): Codec.RAW, ("none", zeros): Codec.RAW, ("none", noise): Codec.RAW,
        ("auto", text): Codec.LZ4, ("auto", zeros): Codec.ZERO, ("auto", noise): Codec.RAW,
        ("lz4", text): Codec.LZ4, ("lz4", zeros): Codec.ZERO, ("lz4", noise): Codec.RAW,
        ("zstd", text): Codec.ZSTD, ("zstd", zeros): Codec.ZERO, ("zstd", noise): Codec.RAW,
    }  # fmt: skip
    for (policy, data), expected in table.items():
        assert Coder(policy).encode(memoryview(data))[0] is expected
    for policy in POLICIES:
        assert Coder(policy).encode(memoryview(b""))[0] is Codec.RAW
    with pytest.raises(UsageError):
        Coder("brotli")


def test_auto_samples_large_chunks_and_leaves_noise_alone():
    noise = os.urandom(1 << 20)
    assert Coder("auto").encode(memoryview(noise))[0] is Codec.RAW
    assert Coder("auto").encode(memoryview(b"text " * 200_000))[0] is Codec.LZ4


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_only_zeros_are_zero(size, at):
    data = bytearray(size)
    assert is_zero(memoryview(data)) == (size > 0)
    if at < size:
        data[at] = 1
        assert not is_zero(memoryview(data))


def test_buffers_of_zeros_do_not_pile_up():
    from sealpoint.format import codec

    for n in range(20):
        is_zero(memoryview(bytes(1000 + n)))
    assert codec._zeros.cache_info().currsize * MAX_CHUNK <= 32 << 20


def test_a_slot_grows_for_many_recipients():
    from sealpoint.format.constants import Roots, StanzaKind
    from sealpoint.format.stanza import Stanza

    def many(preamble, roots):
        return [
            Stanza(StanzaKind.HYBRID, Roots.BOTH, bytes([n]) * 32, bytes(1200)) for n in range(64)
        ]

    made = build_sample(suite=Suite.AES_256_GCM, wrap=many)
    assert Forge(made.data).preamble.slot_size > 64 * 1236
    assert isinstance(made, Sealed)
    assert read_all(made.data, made.roots) == made.contents
    assert (
        Forge(build_sample(suite=Suite.AES_256_GCM, wrap=toy_wrap).data).preamble.slot_size == 24576
    )

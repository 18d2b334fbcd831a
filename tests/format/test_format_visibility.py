"""The table "who sees what" of the specification, held against real bytes."""

from __future__ import annotations

import base64
import itertools
import os
import zlib

import pytest

from sealpoint.format.constants import Role, Suite
from sealpoint.format.derive import RootKeys
from sealpoint.format.opened import OpenFile
from sealpoint.format.raw import Descriptor
from sealpoint.format.reader import SealedFile
from tests.forge import METADATA_NAMES, Forge, build_sample, sample, trusting

SECRETS = {
    "inventory.img": b"inventory of the tasks",
    "pstree.img": b"process-tree-of-payroll",
    "core-4711.img": b"register with a password",
    "pages-1.img": b"correct horse battery staple " * 300,
    "pages-2.img": bytes(9000),
    "etc/shadow-of-tenant": b"root:$6$hash",
}


def spellings(data: bytes):
    """As it is, in hex, and in base64 at each of the three offsets."""
    yield data
    yield data.hex().encode()
    for n in range(3):
        yield base64.b64encode(bytes(n) + data)[4 * bool(n) : -4]


def visible(haystack: bytes, needle: bytes) -> bool:
    return any(s and s in haystack for s in spellings(needle))


@pytest.fixture(scope="module", params=Suite)
def sealed(request):
    return build_sample(suite=request.param, objects=SECRETS)


def test_an_outsider_sees_no_name_and_no_content(sealed):
    names = [name.encode() for name in SECRETS]
    for needle in itertools.chain(names, (d[:24] for d in SECRETS.values() if any(d))):
        assert not visible(sealed.data, needle), needle


def test_an_outsider_sees_neither_roots_nor_keys(sealed):
    for root in (sealed.roots.metadata, sealed.roots.memory):
        assert not visible(sealed.data, root)


def test_ciphertext_does_not_compress(sealed):
    forge = Forge(sealed.data)
    joined = b"".join(c for _, c in forge.frames)
    assert len(zlib.compress(joined, 9)) >= len(joined)


def test_equal_chunks_have_different_ciphertexts():
    same = {"pages-1.img": os.urandom(4096) * 3, "pages-2.img": b""}
    frames = Forge(build_sample(suite=Suite.AES_256_GCM, objects=same).data).frames
    large = [c for _, c in frames if len(c) == 4112]
    assert len({c[:4096] for c in large}) == len(large)


def test_sizes_of_small_objects_do_not_show():
    """Two checkpoints that differ in number and sizes of small objects alone look the same from outside."""
    few = {"core-1.img": b"x" * 10, "inventory.img": b"y"}
    many = {f"core-{n}.img": b"x" * n for n in range(10)} | {"inventory.img": b"y" * 200}
    shapes = []
    for objects in (few, many):
        forge = Forge(build_sample(suite=Suite.AES_256_GCM, objects=objects).data)
        shapes.append([(n, len(c)) for n, c in forge.frames])
    assert shapes[0] == shapes[1]


def test_manifests_are_padded():
    for objects in (
        {"inventory.img": b""},
        dict.fromkeys(map("core-{}.img".format, range(99)), b""),
    ):
        forge = Forge(build_sample(suite=Suite.AES_256_GCM, objects=objects).data)
        for number in (1, 2):
            size = sum(len(forge.frames[p][1]) - 16 for p in forge.positions(number))
            assert size % 4096 == 0


def test_an_outsider_does_see_the_sizes_of_memory_streams_as_the_specification_admits():
    forge = Forge(sample().data)
    stored = sorted(
        sum(len(forge.frames[p][1]) - 16 for p in forge.positions(n))
        for n in {n for n, _ in forge.frames} - {1, 2}
    )
    assert 4096 < stored[-1] < 12388  # pages-1.img, compressed in part


def test_a_gate_sees_signer_and_recipients_and_checks_every_byte(sealed):
    authentic = opened(sealed)
    authentic.check_frames()
    assert authentic.origin.signers == (sealed.signer.key_id,)
    assert len(authentic.envelope.recipients[Role.METADATA]) == 2
    assert len(authentic.envelope.recipients[Role.MEMORY]) == 1
    public = repr((authentic.origin, authentic.envelope)).encode()
    for name in SECRETS:
        assert name.encode() not in public


def test_a_metadata_recipient_learns_of_memory_objects_number_and_size_only(sealed):
    reader = OpenFile.unlock(
        opened(sealed), lambda preamble, slot: RootKeys(sealed.roots.metadata, None)
    )
    known = repr((reader.manifests, reader.entries)).encode()
    memory = {n: d for n, d in SECRETS.items() if n not in METADATA_NAMES}
    for name, data in memory.items():
        assert name.encode() not in known
        assert not any(data) or data[:24] not in known
    table = reader.manifests[Role.METADATA]
    assert sorted(table.memory.values()) == sorted(map(len, memory.values()))
    assert set(reader.entries) == set(METADATA_NAMES) & set(SECRETS)
    plain = Forge(sealed.data, sealed.roots).manifest_bytes(Role.METADATA)
    for name in memory:
        assert not visible(plain, name.encode())


def opened(sealed):
    fd = os.memfd_create("x")
    try:
        os.write(fd, sealed.data)
        authentic = SealedFile(Descriptor(fd)).authenticate(trusting(sealed.signer.key_id))
        authentic.check_frames()
    except BaseException:
        os.close(fd)
        raise
    _open.append(fd)
    return authentic


_open: list[int] = []


@pytest.fixture(autouse=True)
def closes():
    yield
    while _open:
        os.close(_open.pop())

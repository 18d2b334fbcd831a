"""Checkpoints in a store: opened by the one way of opening, with their parents, and rekeyed."""

from __future__ import annotations

import os

import pytest

from sealpoint.checkpoint.history.rekey import RekeyRequest, rekey
from sealpoint.checkpoint.opening.opener import OpenedCheckpoint
from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.inspect import listing
from sealpoint.store import properties
from sealpoint.store.uploading import StoreDestination, Writing
from tests.checkpoint.chain_helpers import Memory, Steps, seal_images
from tests.checkpoint.checkpoint_helpers import Keys
from tests.store import memory_store

MIB = 1 << 20


@pytest.fixture
def world(monkeypatch):
    return memory_store.install(monkeypatch)


def upload(path, url):
    """As it is, byte for byte."""
    with StoreDestination(url).open(Writing()) as out, open(path, "rb") as file:
        while piece := file.read(MIB):
            out.write(piece)
        out.commit()


def opened(url, keys, **how):
    return OpenedCheckpoint.open(url, trust=keys.policy, identities=[keys.identity], **how)


def test_a_file_in_a_store_is_the_same_as_on_a_disk(world, keys, tmp_path):
    images = {"inventory.img": b"inventory", "pages-1.img": os.urandom(5 * MIB)}
    seal_images(keys, tmp_path / "a.sealed", images)
    upload(tmp_path / "a.sealed", "mem://here/a")
    assert world.files["mem://here/a"].data == (tmp_path / "a.sealed").read_bytes()
    with opened("mem://here/a", keys) as checkpoint:
        assert {n: checkpoint.images[n].read() for n in images} == images
        checkpoint.verify()
    assert world.open == 0


def test_whoever_changes_a_byte_in_the_store_is_found_out(world, keys, tmp_path):
    seal_images(
        keys, tmp_path / "a.sealed", {"inventory.img": b"i", "pages-1.img": os.urandom(MIB)}
    )
    upload(tmp_path / "a.sealed", "mem://here/a")
    stored = world.files["mem://here/a"]
    for at in (0, len(stored.body) // 2, len(stored.body) - 1):
        body = stored.body
        stored.body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        with pytest.raises(FileError), opened("mem://here/a", keys) as checkpoint:
            checkpoint.verify()
        stored.body = body
    assert world.open == 0


def test_small_images_of_a_large_checkpoint_cost_few_requests(world, keys, tmp_path):
    images = {"inventory.img": b"inventory"}
    images |= {f"core-{n}.img": os.urandom(3000) for n in range(200)}
    images["pages-1.img"] = os.urandom(96 * MIB) + bytes(512 * MIB)
    images |= {f"mm-{n}.img": os.urandom(500) for n in range(200)}
    seal_images(keys, tmp_path / "a.sealed", images)
    upload(tmp_path / "a.sealed", "mem://here/a")
    with opened("mem://here/a", keys) as checkpoint:
        for name in images.keys() - {"pages-1.img"}:
            assert checkpoint.images[name].read() == images[name]
    assert len(world.reads) < 10
    assert sum(size for _, size in world.reads) < 5 * MIB


def test_parents_are_found_beside_a_remote_increment_and_by_parents(world, keys, tmp_path):
    memory = Memory(300)
    steps = Steps(tmp_path, keys, memory, flat=True)
    for _ in range(3):
        steps.add()
        memory.write(range(20, 60))
    for number, path in enumerate(steps.files):
        upload(path, f"mem://here/{number}")
    assert world.files["mem://here/1"].properties[properties.PARENT]
    # A file that another program put there has no properties, and something else is no sealed file.
    world.files["mem://here/0"].properties = {}
    world.files["mem://here/other"] = memory_store.Stored(b"", b"something else", {})
    with opened("mem://here/2", keys) as checkpoint:
        assert len(checkpoint.links) == 3
        checkpoint.verify()
    # What the store says is not believed.
    for stored in world.files.values():
        stored.properties = {properties.ID: "00" * 16}
    with pytest.raises(FileError, match="parent"):
        opened("mem://here/2", keys)
    world.files["mem://there/x"] = world.files.pop("mem://here/1")
    world.files["mem://there/x"].properties = {}
    world.files["mem://there/y"] = world.files.pop("mem://here/0")
    world.files["mem://there/y"].properties = {}
    with opened("mem://here/2", keys, parents=["mem://there/"]) as checkpoint:
        assert len(checkpoint.links) == 3
    assert world.open == 0


def test_rekey_moves_the_head_alone(world, keys, tmp_path):
    other = Keys(tmp_path / "other")
    seal_images(
        keys, tmp_path / "a.sealed", {"inventory.img": b"i", "pages-1.img": os.urandom(MIB)}
    )
    upload(tmp_path / "a.sealed", "mem://here/a")
    stored = world.files["mem://here/a"]
    body, head = stored.body, stored.head
    request = RekeyRequest([keys.identity], keys.signing, keys.policy, add=[other.recipient])
    result = rekey("mem://here/a", request)
    assert result.sequence == 2
    assert stored.body is body
    assert len(stored.head) == len(head)
    assert stored.properties[properties.SEQUENCE] == "2"
    assert other.fingerprint in stored.properties[properties.RECIPIENTS]
    with OpenedCheckpoint.open(
        "mem://here/a", trust=keys.policy, identities=[other.identity]
    ) as checkpoint:
        checkpoint.verify()
    # The same as a local rekey leaves: one slot, the other idle.
    assert rekey("mem://here/a", request._replace(add=(), remove=[other.fingerprint])).sequence == 3
    with pytest.raises(UsageError, match="nothing to change"):
        rekey("mem://here/a", request._replace(add=()))
    assert world.open == 0


def test_of_two_who_rekey_at_the_same_time_one_fails(world, keys, tmp_path):
    other, third = Keys(tmp_path / "other"), Keys(tmp_path / "third")
    seal_images(keys, tmp_path / "a.sealed", {"inventory.img": b"i"})
    upload(tmp_path / "a.sealed", "mem://here/a")
    request = RekeyRequest([keys.identity], keys.signing, keys.policy, add=[other.recipient])
    raced = []

    class Racing:
        key_id = keys.signer.key_id

        def sign(self, pae):
            if not raced:
                raced.append(1)
                rekey("mem://here/a", request._replace(add=[third.recipient]))
            return keys.signer.sign(pae)

    signing = request.signing._replace(sign=lambda pae: (Racing().sign(pae),))
    with pytest.raises(SystemEnvironmentError, match="faster"):
        rekey("mem://here/a", request._replace(signing=signing))
    told = world.files["mem://here/a"].properties[properties.RECIPIENTS]
    assert third.fingerprint in told
    assert other.fingerprint not in told


def test_list_shows_what_the_store_says(world, keys, tmp_path):
    seal_images(keys, tmp_path / "a.sealed", {"inventory.img": b"i"}, captured=1_700_000_000)
    upload(tmp_path / "a.sealed", "mem://here/a")
    upload(tmp_path / "a.sealed", "mem://here/b")
    world.files["mem://here/b"].properties = {properties.CAPTURED: "9" * 40}
    found = listing.in_store("mem://here/")
    assert [(one.name, one.checkpointed) for one in found] == [
        ("mem://here/a", "2023-11-14 22:13:20 UTC"),
        ("mem://here/b", ""),
    ]
    assert found[0].size == (tmp_path / "a.sealed").stat().st_size

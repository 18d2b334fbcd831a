"""The one way to open a checkpoint: what it asks for, in which order, and that nobody goes round it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import sealpoint
from sealpoint.checkpoint.opening.opener import OpenedCheckpoint, Opening
from sealpoint.errors import FileError, IdentityError, PolicyError, UsageError
from sealpoint.format.raw import Descriptor
from sealpoint.keys import load_trust
from tests.checkpoint.chain_helpers import Memory, Steps, seal_images
from tests.checkpoint.checkpoint_helpers import Keys

SOURCE = Path(sealpoint.__file__).parent
# What only the opening does, and those others that have a reason.
ALONE = {
    "require_trust": set(),
    "CheckedFile.open": {
        "checkpoint/opening/chain.py",
        "checkpoint/opening/separate_pages.py",
    },  # parents, pages
    "CheckedFile.of": set(),
    "Chain": set(),
    "Chain.open": set(),
    "separate_pages.join": set(),
    "join": {"cli/open.py"},
    "Flat": {
        "checkpoint/history/merge.py",
        "checkpoint/live/restore.py",
    },  # of files that were opened already
    # What a page server, which has no key, sees of a file.
    "authenticate": {
        "checkpoint/opening/access.py",
        "checkpoint/opening/copying.py",  # once more, of a file that was opened: the bytes that it writes
        "checkpoint/opening/parts.py",
        "checkpoint/opening/separate_pages.py",
    },
    "unwrap_with": {
        "checkpoint/opening/access.py",
        "checkpoint/opening/parts.py",
        "checkpoint/history/rekey.py",
    },
    # Sealed files inside: the opening asks for them, and the sealer looks at what it binds.
    "parts.check": set(),
    "parts.look_through": set(),
    "parts.look": {"checkpoint/sealing/archive.py"},
}


@pytest.fixture
def file(tmp_path, keys):
    path = tmp_path / "a.sealed"
    seal_images(keys, path, {"inventory.img": b"inventory"})
    return str(path)


def called(node: ast.Call) -> str:
    name = node.func
    if isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name):
        return f"{name.value.id}.{name.attr}"
    return name.id if isinstance(name, ast.Name) else ""


def test_no_module_goes_round_the_opening():
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = str(path.relative_to(SOURCE))
        if name == "checkpoint/opening/opener.py":
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            what = called(node) if isinstance(node, ast.Call) else ""
            if name not in ALONE.get(what, {name}):
                found.append(f"{name}:{node.lineno} {what}")
    assert found == []


def unasked():
    raise AssertionError("the keys were asked for")


def test_without_trust_nothing_is_opened(file, keys):
    for trust in (
        (),
        load_trust([]),
        load_trust([], names_only=True),
        load_trust([], allow_expired=True),
    ):
        with pytest.raises(PolicyError, match="no trusted signer"):
            OpenedCheckpoint.open(file, trust=trust, identities=unasked)
    with OpenedCheckpoint.open(file, allow_unsigned=True) as checkpoint:
        assert checkpoint.origin.kind == "full"
    # A policy that only finds out who signed accepts everybody, whoever it names.
    naming = load_trust([keys.trust_path], names_only=True)
    with pytest.raises(PolicyError, match="no trusted signer"):
        Opening(naming).open(file)
    with Opening(naming, unproven=True).open(file) as checkpoint:
        assert checkpoint.signers[0].trusted


@pytest.mark.parametrize("take", [False, True])
def test_keys_are_asked_for_when_the_file_is_authentic_and_once(file, keys, tmp_path, take):
    asked = []

    def identities():
        asked.append(1)
        return [keys.identity]

    def opened(trust):
        opening = Opening(trust, identities)
        return opening.take(Descriptor(os.open(file, os.O_RDONLY))) if take else opening.open(file)

    stranger = Keys(tmp_path / "stranger")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PolicyError):
        opened(stranger.policy)
    with pytest.raises(PolicyError):
        opened(load_trust([]))
    assert asked == []
    with opened(keys.policy) as checkpoint:
        assert asked == []
        assert checkpoint.images["inventory.img"].read() == b"inventory"
        checkpoint.verify()
        assert checkpoint.flat is checkpoint.flat
    assert asked == [1]
    assert checkpoint.origin.kind == "full"  # public, and known after it is closed
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_identity_is_an_error_that_names_the_option(file, keys):
    with OpenedCheckpoint.open(file, trust=keys.policy) as checkpoint:
        with pytest.raises(UsageError, match="no identity"):
            checkpoint.files()


def test_metadata_alone_makes_no_other_file(tmp_path, keys):
    from tests.checkpoint.checkpoint_helpers import seal_objects

    analyst = Keys(tmp_path / "analyst")
    seal_objects(keys, tmp_path / "m", {"inventory.img": (b"x", None)}, metadata=[analyst])
    opened = OpenedCheckpoint.open(
        str(tmp_path / "m"), trust=keys.policy, identities=[analyst.identity]
    )
    with opened as checkpoint, pytest.raises(IdentityError, match="only metadata"):
        checkpoint.whole()


def test_an_image_is_read_up_to_a_limit(file, keys):
    with OpenedCheckpoint.open(file, trust=keys.policy, identities=[keys.identity]) as checkpoint:
        with pytest.raises(FileError, match="larger than 3 bytes"):
            checkpoint.images["inventory.img"].read(3)


@pytest.fixture
def steps(tmp_path, keys):
    memory = Memory(20)
    made = Steps(tmp_path, keys, memory, flat=True)
    for _ in range(3):
        made.add()
        memory.write([17])
    return made


def test_parents_are_opened_at_once_or_as_they_are_needed(steps, keys):
    last = str(steps.files[-1])
    with Opening(keys.policy).open(last) as checkpoint:
        assert len(checkpoint.links) == 3
    with Opening(keys.policy, alone=True).open(last) as checkpoint:
        assert len(checkpoint.links) == 1
    steps.files[0].unlink()
    with pytest.raises(FileError, match="is missing"):
        Opening(keys.policy).open(last)
    with Opening(keys.policy, lambda: [keys.identity], lenient=True).open(last) as checkpoint:
        assert checkpoint.extend()
        assert len(checkpoint.links) == 2
        with pytest.raises(FileError, match="is missing"):
            checkpoint.files()

"""Changing who can open a sealed file, and being killed while doing so."""

from __future__ import annotations

import os
import shutil

import pytest

from sealpoint.checkpoint.history.rekey import RekeyRequest, rekey
from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.errors import (
    FileError,
    IdentityError,
    PolicyError,
    SealpointError,
    SystemEnvironmentError,
    UsageError,
)
from sealpoint.format.constants import PREAMBLE_SIZE, Roots
from sealpoint.format.preamble import Preamble
from sealpoint.format.writer import UNSIGNED
from sealpoint.keys import load_trust, passphrase_recipient
from sealpoint.store import locks
from tests.checkpoint.checkpoint_helpers import Keys, attributes, listing, seal_objects, seal_path

OBJECTS = {
    "pstree.img": (b"tree", attributes()),
    "core-1.img": (b"core", attributes()),
    "pages-1.img": (os.urandom(50_000), attributes()),
}


@pytest.fixture
def file(keys, tmp_path):
    seal_objects(keys, tmp_path / "s", OBJECTS)
    return str(tmp_path / "s")


@pytest.fixture(scope="session")
def third(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("third"))


@pytest.fixture(scope="session")
def analyst(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("analyst"))


def change(keys, file, **options):
    """With the identity and signer of `keys`, and its trust."""
    values = {"identities": [keys.identity], "signing": keys.signing, "policy": keys.policy}
    return rekey(file, RekeyRequest(**(values | options)))


def can_open(who: Keys, file: str, policy) -> str:
    with CheckedFile.open(file, policy) as checkpoint:
        try:
            opened = checkpoint.unlock([who.identity])
        except IdentityError:
            return "nothing"
        return "memory" if opened.has_memory else "metadata"


def parts(file: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Preamble, both slots, everything else."""
    with open(file, "rb") as stream:
        data = stream.read()
    preamble = Preamble.decode(data[:PREAMBLE_SIZE])
    one, two = preamble.slot_offset(0), preamble.slot_offset(1)
    return (
        data[:one],
        data[one:two],
        data[two : preamble.frames_offset],
        data[preamble.frames_offset :],
    )


def test_an_added_recipient_can_open_and_the_old_one_still_can(keys, others, file):
    before = parts(file)
    result = change(keys, file, add=[others.recipient])
    assert result.sequence == 2
    assert {s.fingerprint.hex() for s in result.stanzas} == {keys.fingerprint, others.fingerprint}
    assert can_open(keys, file, keys.policy) == can_open(others, file, keys.policy) == "memory"
    after = parts(file)
    assert (before[0], before[3]) == (after[0], after[3])
    assert not any(after[1])
    assert not any(before[2])


def test_each_rekey_uses_the_other_slot_and_counts(keys, others, file):
    for number in range(2, 6):
        options = (
            {"add": [others.recipient]} if number % 2 == 0 else {"remove": [others.fingerprint]}
        )
        assert change(keys, file, **options).sequence == number
        idle = [not any(slot) for slot in parts(file)[1:3]]
        assert idle == [number % 2 == 0, number % 2 == 1]


def test_a_removed_recipient_can_open_no_more(keys, others, file):
    change(keys, file, add=[others.recipient])
    change(others, file, remove=[keys.fingerprint[:8]], signing=keys.signing, policy=keys.policy)
    assert can_open(keys, file, keys.policy) == "nothing"
    assert can_open(others, file, keys.policy) == "memory"


def test_a_metadata_recipient_sees_metadata_and_can_be_raised_to_memory(keys, analyst, file):
    change(keys, file, add_metadata=[analyst.recipient])
    assert can_open(analyst, file, keys.policy) == "metadata"
    change(keys, file, add=[analyst.recipient], remove=[analyst.fingerprint])
    assert can_open(analyst, file, keys.policy) == "memory"


def test_the_last_memory_recipient_cannot_be_removed(keys, analyst, file):
    change(keys, file, add_metadata=[analyst.recipient])
    before = parts(file)
    with pytest.raises(UsageError, match="nobody would be able to open the memory"):
        change(keys, file, remove=[keys.fingerprint])
    assert parts(file) == before


@pytest.mark.parametrize("kind", ["add", "add_metadata"])
def test_a_recipient_is_not_added_twice(keys, others, file, kind):
    before = parts(file)
    with pytest.raises(UsageError, match="already"):
        change(keys, file, **{kind: [keys.recipient]})
    with pytest.raises(UsageError, match="already"):
        change(keys, file, **{kind: [others.recipient, others.recipient]})
    assert parts(file) == before


def test_an_unknown_or_ambiguous_fingerprint_is_refused(keys, others, file, monkeypatch):
    with pytest.raises(UsageError, match="no recipient"):
        change(keys, file, remove=["0123456789"])
    change(keys, file, add=[others.recipient])
    with pytest.raises(UsageError, match="more than one"):
        change(keys, file, remove=[""])
    with pytest.raises(UsageError, match="no recipient"):
        change(keys, file, remove=[others.fingerprint, others.fingerprint])


def test_a_metadata_identity_changes_metadata_recipients_only(keys, others, analyst, third, file):
    change(keys, file, add=[Keys(f"{file}.keys").recipient], add_metadata=[analyst.recipient])
    by_analyst = {"identities": [analyst.identity]}
    before = parts(file)
    for wrong in (
        {"add": [others.recipient]},
        {"remove": [keys.fingerprint]},
        {"add": [others.recipient], "remove": [keys.fingerprint]},
    ):
        with pytest.raises(IdentityError, match="needs an identity that can open it"):
            change(keys, file, **by_analyst, **wrong)
    assert parts(file) == before
    change(keys, file, **by_analyst, add_metadata=[third.recipient])
    change(keys, file, **by_analyst, remove=[analyst.fingerprint])
    assert can_open(third, file, keys.policy) == "metadata"
    assert can_open(analyst, file, keys.policy) == "nothing"
    assert can_open(keys, file, keys.policy) == "memory"


def test_somebody_without_a_stanza_changes_nothing(keys, others, file):
    before = parts(file)
    with pytest.raises(IdentityError, match="not sealed to this identity"):
        change(others, file, add=[others.recipient], policy=keys.policy)
    assert parts(file) == before


def test_when_the_header_is_full_the_file_stays_as_it_is(keys, file):
    class Bulky:
        """As large as a stanza may be."""

        kind, name = keys.recipient.kind, "bulky"

        def __init__(self, number: int) -> None:
            self.fingerprint = bytes([number]) * 32

        def wrap(self, roots, context):
            from sealpoint.format.stanza import Stanza

            return Stanza(self.kind, Roots.BOTH, self.fingerprint, bytes(4096))

    before = parts(file)
    with pytest.raises(UsageError, match="room for") as caught:
        change(keys, file, add=[Bulky(n) for n in range(7)])
    assert "seal" in caught.value.hint
    with pytest.raises(UsageError, match="too many recipients"):
        change(keys, file, add=[Bulky(n) for n in range(100)])
    assert parts(file) == before
    change(keys, file, add=[Bulky(n) for n in range(3)])


def test_a_passphrase_stands_alone(keys, file):
    with pytest.raises(UsageError, match="passphrase cannot be combined"):
        change(keys, file, add=[passphrase_recipient(b"secret")])


def test_nothing_to_change_is_said(keys, file):
    with pytest.raises(UsageError, match="nothing to change"):
        change(keys, file)


def test_without_an_interruption_repair_changes_nothing(keys, file):
    before = parts(file)
    result = change(keys, file, repair=True)
    assert (result.repaired, result.sequence) == (False, 1)
    assert parts(file) == before


def test_a_second_rekey_at_the_same_time_is_refused(keys, others, file):
    fd = os.open(file, os.O_RDWR)
    with locks.writing(fd, file), pytest.raises(SystemEnvironmentError, match="another process"):
        change(keys, file, add=[others.recipient])
    os.close(fd)
    change(keys, file, add=[others.recipient])


def test_a_file_that_cannot_be_written_is_named(keys, others, tmp_path, file, monkeypatch):
    for path, error, words in (
        (tmp_path / "none", UsageError, "does not exist"),
        ("-", UsageError, "does not exist"),
        (tmp_path, UsageError, "is a directory"),
    ):
        with pytest.raises(error, match=words):
            change(keys, str(path), add=[others.recipient])
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileError, match="not a sealed checkpoint"):
        change(keys, str(tmp_path / "fifo"), add=[others.recipient])
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if path == file and flags & os.O_RDWR:
            raise OSError(30, "Read-only file system")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SystemEnvironmentError, match="Read-only"):
        change(keys, file, add=[others.recipient])


def test_an_untrusted_file_is_not_rekeyed(keys, others, file):
    before = parts(file)
    with pytest.raises(PolicyError):
        change(keys, file, add=[others.recipient], policy=others.policy)
    assert parts(file) == before


def test_another_signer_of_the_header_is_reported_and_counts(keys, others, file):
    assert not change(keys, file, add_metadata=[others.recipient]).other_signer
    result = change(keys, file, remove=[others.fingerprint], signing=others.signing)
    assert result.other_signer
    with pytest.raises(PolicyError):
        can_open(keys, file, keys.policy)
    both = load_trust([keys.trust_path, others.trust_path])
    assert can_open(keys, file, both) == "memory"


def test_an_unsigned_header_takes_who_believes_unsigned_files(keys, others, file):
    change(keys, file, add=[others.recipient], signing=UNSIGNED)
    with pytest.raises(PolicyError):
        can_open(keys, file, keys.policy)
    assert can_open(keys, file, load_trust([], allow_unsigned=True)) == "memory"


def test_an_older_header_that_was_put_back_beside_the_new_one_does_not_count(keys, others, file):
    change(keys, file, add=[others.recipient])
    preamble, _, new, rest = parts(file)
    old_file = file + ".old"
    shutil.copy(file, old_file)
    change(keys, file, remove=[others.fingerprint])
    current = parts(file)
    with open(file, "wb") as stream:
        stream.write(preamble + current[1] + new + rest)
    assert can_open(others, file, keys.policy) == "nothing"
    with CheckedFile.open(file, keys.policy) as checkpoint:
        assert checkpoint.authentic.interrupted
    with pytest.raises(UsageError, match="interrupted") as caught:
        change(keys, file, add=[others.recipient])
    assert "--repair" in caught.value.hint
    change(keys, file, repair=True)
    assert can_open(others, file, keys.policy) == "nothing"
    assert parts(file) == current


def test_an_older_header_beside_a_damaged_new_one_is_refused_not_taken(keys, others, file):
    old = parts(file)
    change(keys, file, add=[others.recipient])
    new = bytearray(parts(file)[2])
    new[100] ^= 1
    with open(file, "wb") as stream:
        stream.write(old[0] + old[1] + bytes(new) + old[3])
    with pytest.raises(FileError, match="interrupted rekey, or tampering") as caught:
        can_open(keys, file, keys.policy)
    assert "--repair" in caught.value.hint


def killed_at(file: str, number: int, part: float | None, run) -> bool:
    """Run in a child that is gone at the n-th write or sync, of which only a part was done.  False if it came through.

    What was written stays (the page cache survives a kill), so this is as bad as an interruption can be short of a
    power cut, for which the syncs are there.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    calls = 0
    pwrite, fsync = os.pwrite, os.fsync

    def count() -> bool:
        nonlocal calls
        calls += 1
        return calls == number

    def dying_pwrite(fd, data, offset):
        if count():
            if part is not None:
                pwrite(fd, data[: int(len(data) * part)], offset)
            os._exit(9)
        return pwrite(fd, data, offset)

    def dying_fsync(fd):
        if count():
            os._exit(9)
        fsync(fd)

    try:
        os.pwrite, os.fsync = dying_pwrite, dying_fsync
        run()
        os._exit(0)
    except SealpointError:
        os._exit(8)
    finally:
        os._exit(7)


PARTS = [None, 0.0001, 0.002, 0.005, 0.02, 0.05, 0.1, 0.5, 0.99, 1.0]


@pytest.mark.parametrize("part", PARTS)
def test_a_kill_between_any_two_writes_loses_nobody(keys, others, third, file, part):
    change(keys, file, add=[others.recipient])
    start, states = file + ".start", set()
    shutil.copy(file, start)
    before = parts(file)
    for number in range(1, 10):
        shutil.copy(start, file)
        options = {"add": [third.recipient], "remove": [others.fingerprint]}
        died = killed_at(file, number, part, lambda options=options: change(keys, file, **options))
        assert parts(file)[3] == before[3]
        try:
            who = [can_open(k, file, keys.policy) for k in (keys, others, third)]
        except FileError as error:
            states.add("refused" if "--repair" in error.hint else "lost")
        else:
            assert who in (["memory", "memory", "nothing"], ["memory", "nothing", "memory"])
            states.add("opens")
        if not died:
            break
        result = change(keys, file, repair=True)
        idle = [not any(slot) for slot in parts(file)[1:3]]
        assert sorted(idle) == [False, True]
        who = [can_open(k, file, keys.policy) for k in (keys, others, third)]
        assert who == [
            "memory",
            "memory" if result.sequence == 2 else "nothing",
            "memory" if result.sequence == 3 else "nothing",
        ]
    assert number == 5  # two writes, two syncs
    assert "opens" in states
    assert "lost" not in states
    if part in (0.002, 0.005, 0.02, 0.05):  # in the middle of what a slot holds
        assert "refused" in states


@pytest.mark.parametrize("part", PARTS)
def test_a_kill_during_the_repair_is_repaired_as_well(keys, others, file, part):
    for at in (1, 2, 3, 4):
        broken = file + f".{at}"
        for number in range(1, 10):
            shutil.copy(file, broken)
            assert killed_at(
                broken, at, 0.5, lambda f=broken: change(keys, f, add=[others.recipient])
            )
            died = killed_at(broken, number, part, lambda f=broken: change(keys, f, repair=True))
            if not died:
                break
            change(keys, broken, repair=True)
            assert can_open(keys, broken, keys.policy) == "memory"
        assert number <= 3


def test_a_change_together_with_the_repair_works(keys, others, third, file):
    assert killed_at(file, 3, 0.02, lambda: change(keys, file, add=[others.recipient]))
    result = change(keys, file, repair=True, add=[third.recipient])
    assert (result.repaired, result.sequence) == (True, 3)
    assert {can_open(k, file, keys.policy) for k in (keys, others, third)} == {"memory"}


def test_a_full_disk_or_a_write_error_says_how_to_go_on(keys, others, file, monkeypatch):
    monkeypatch.setattr(
        os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with pytest.raises(SystemEnvironmentError, match="Input/output error") as caught:
        change(keys, file, add=[others.recipient])
    assert "--repair" in caught.value.hint


def test_rekey_of_a_large_file_touches_little(keys, others, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "pages-1.img").write_bytes(os.urandom(30_000_000))
    seal_path(keys, tmp_path / "d", tmp_path / "s")
    written = 0
    real = os.pwrite

    def pwrite(fd, data, offset):
        nonlocal written
        written += len(data)
        return real(fd, data, offset)

    os.pwrite = pwrite
    try:
        change(keys, str(tmp_path / "s"), add=[others.recipient])
    finally:
        os.pwrite = real
    assert written < 60_000
    assert listing(tmp_path) == {"d", "d/pages-1.img", "s"}

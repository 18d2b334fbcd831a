"""A sealed file on its way into a store: visible at its end, and not before; what is given up leaves nothing."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest

from sealpoint.checkpoint.sealing.existing import seal
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.store import properties
from sealpoint.store.location import open_store
from sealpoint.store.uploading import RemoteOutput, StoreDestination, Writing
from tests.checkpoint.checkpoint_helpers import Keys, seal_path
from tests.store import memory_store

URL = "mem://here/file"


@pytest.fixture
def world(monkeypatch):
    world = memory_store.install(monkeypatch)
    world.part_size = 64 * 1024
    return world


@pytest.fixture
def keys(tmp_path):
    return Keys(tmp_path / "keys")


@pytest.fixture
def plain(tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / "pages-1.img").write_bytes(os.urandom(3_000_000))
    return directory


def put(keys, plain, **how):
    with StoreDestination(URL).open(Writing(**how)) as out:
        result = seal(str(plain), out, keys.sealing(), as_files=True)
    return out, result


def leaves_nothing(world):
    assert URL not in world.files
    assert world.parts == {}
    assert not [t for t in threading.enumerate() if t.name in ("upload", "commit", "abort")]


def test_head_and_body_are_the_file_and_the_properties_say_which_it_is(world, keys, plain):
    out, result = put(keys, plain)
    stored = world.files[URL]
    assert out.url == f"{URL}#1"
    assert len(stored.data) == result.file_size
    assert stored.properties[properties.ID] == result.checkpoint_id.hex()
    assert stored.properties[properties.ORIGIN_DIGEST] == result.origin_digest.hex()
    assert stored.properties[properties.RECIPIENTS] == keys.recipient.fingerprint.hex()
    assert stored.properties[properties.SIGNERS] == keys.key_id
    assert stored.properties[properties.SEQUENCE] == "1"
    assert properties.PARENT not in stored.properties
    assert world.parts == {}


@pytest.mark.parametrize("parallel", [1, 4])
def test_parts_are_sent_while_the_file_is_written_as_many_at_a_time_as_the_store_can(
    world, keys, plain, tmp_path, parallel
):
    seal_path(keys, plain, tmp_path / "sealed")
    data = (tmp_path / "sealed").read_bytes()
    world.parallel = parallel
    together = threading.Barrier(parallel)
    uploads = []

    def meet(upload, number):
        uploads.append(upload)
        if number < parallel:
            together.wait(60)  # breaks, if fewer are sent at a time

    world.before_send = meet
    with StoreDestination(URL).open(Writing()) as out:
        out.write(data[:2_000_000])
        out.sync()
        assert len(uploads[0].sent) > 3, "nothing was sent before the end"
        assert URL not in world.files
        out.write(data[2_000_000:])
        out.commit()
    assert world.files[URL].data == data
    assert uploads[0].most == parallel


@pytest.mark.parametrize("number", [0, 3])
def test_a_part_that_cannot_be_sent_ends_it_and_nothing_is_left(world, keys, plain, number):
    def fail(_, part):
        if part == number:
            raise SystemEnvironmentError("the store answers 500")

    world.before_send = fail
    with pytest.raises(SystemEnvironmentError, match="500"):
        put(keys, plain)
    leaves_nothing(world)


def test_a_commit_that_fails_leaves_nothing(world, keys, plain):
    def fail(_):
        raise SystemEnvironmentError("the store has another checksum")

    world.before_commit = fail
    for later in (False, True):
        with pytest.raises(SystemEnvironmentError, match="checksum"):
            put(keys, plain, later=later)
        leaves_nothing(world)


@pytest.mark.parametrize("where", ["before_send", "before_commit"])
def test_a_store_that_does_not_answer_is_waited_for_no_longer_than_was_said(
    world, keys, plain, where
):
    def hang(upload, *_):
        assert upload.given_up.wait(60), "nobody gave it up"

    setattr(world, where, hang)
    with pytest.raises(SystemEnvironmentError, match="did not acknowledge") as caught:
        put(keys, plain, timeout=0.2)
    assert "--commit-timeout" in caught.value.hint
    leaves_nothing(world)


def test_a_commit_that_succeeds_at_the_last_moment_counts(world, keys, plain, monkeypatch):
    late = threading.Event()
    world.before_commit = lambda _: late.wait(60)
    abort = memory_store.MemoryUpload.abort
    monkeypatch.setattr(memory_store.MemoryUpload, "abort", lambda _: late.set())
    out, _ = put(keys, plain, timeout=0.2)
    monkeypatch.setattr(memory_store.MemoryUpload, "abort", abort)
    assert out.committed
    assert URL in world.files


def test_a_commit_answers_only_when_the_store_has_it(world, keys, plain):
    world.before_commit = lambda _: time.sleep(0.3)
    with StoreDestination(URL).open(Writing()) as out:
        seal(str(plain), out, keys.sealing(), as_files=True)
        assert out.committed
        assert URL in world.files


def test_later_the_commit_answers_at_once_and_the_end_waits_for_the_store(world, keys, plain):
    answered = threading.Event()
    world.before_send = lambda *_: answered.wait(60)
    with StoreDestination(URL).open(Writing(later=True)) as out:
        seal(str(plain), out, keys.sealing(), as_files=True)
        assert out.committed
        assert URL not in world.files
        answered.set()
    assert URL in world.files


def test_what_is_given_up_leaves_nothing(world, keys, plain):
    with pytest.raises(KeyboardInterrupt), StoreDestination(URL).open(Writing(later=True)) as out:
        seal(str(plain), out, keys.sealing(), as_files=True)
        raise KeyboardInterrupt
    leaves_nothing(world)


def test_a_taken_name_is_refused_before_anything_is_written_and_with_force_replaced(
    world, keys, plain
):
    put(keys, plain)
    before = world.files[URL].data
    with pytest.raises(UsageError, match="exists already"):
        StoreDestination(URL).open(Writing())
    assert world.parts == {}
    put(keys, plain, force=True)
    assert world.files[URL].data != before


def test_a_store_that_cannot_create_only_is_refused_unless_that_is_meant(world, keys, plain):
    world.creates_only = False
    with pytest.raises(UsageError, match="create-only"):
        StoreDestination(URL).open(Writing())
    put(keys, plain, unconditional=True)
    assert URL in world.files


def test_the_spool_is_limited_and_holds_no_plaintext_under_no_name(world, keys, plain, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    with pytest.raises(SystemEnvironmentError, match="at most 1000000 bytes") as caught:
        put(keys, plain, spool=str(spool), limit=1_000_000)
    assert "--spool" in caught.value.hint
    leaves_nothing(world)
    (plain / "pages-1.img").write_bytes(b"a planted secret" + os.urandom(200_000))
    seen = []

    def look(_):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                link = os.readlink(f"/proc/self/fd/{number}")
                if link.startswith(str(spool)):
                    seen.append((link, os.pread(int(number), 1 << 24, 0)))

    world.before_commit = look
    put(keys, plain, spool=str(spool))
    assert len(seen) == 1
    assert seen[0][0].endswith("(deleted)")
    assert seen[0][1] == world.files[URL].data
    assert b"planted" not in seen[0][1]
    assert os.listdir(spool) == []


def test_a_spool_directory_that_is_not_there_is_named(world, tmp_path):
    with pytest.raises(SystemEnvironmentError, match="nowhere"):
        RemoteOutput(open_store(URL), Writing(spool=str(tmp_path / "nowhere")))
    assert world.parts == {}

"""The high-water mark: what is older than the newest known of its workload is not restored by mistake."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time

import pytest

from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.errors import PolicyError, SystemEnvironmentError
from sealpoint.state.newest import Mark, Newest
from tests.checkpoint.chain_helpers import seal_images


@pytest.fixture
def newest(tmp_path):
    return Newest(str(tmp_path / "state"))


@pytest.fixture
def origin(tmp_path, keys):
    def make(workload: str, captured: int):
        path = tmp_path / f"{captured}.sealed"
        seal_images(keys, path, {"inventory.img": b""}, workload=workload, captured=captured)
        with CheckedFile.open(str(path), keys.policy) as checkpoint:
            return checkpoint.authentic.origin

    return make


def mark(origin, sequence: int = 1) -> Mark:
    return Mark(origin.checkpoint_id, origin.captured, sequence)


def test_an_older_checkpoint_of_a_workload_is_refused(newest, origin):
    older, newer = origin("w", 100), origin("w", 200)
    newest.check(older, 1)
    newest.note("w", mark(newer))
    newest.check(newer, 1)
    with pytest.raises(PolicyError, match="it is older than checkpoint") as caught:
        newest.check(older, 1)
    assert newer.checkpoint_id.hex() in caught.value.message
    newest.check(origin("another", 50), 1)
    newest.check(origin("w", 300), 1)


def test_the_mark_only_rises(newest, origin):
    older, newer = origin("w", 100), origin("w", 200)
    newest.note("w", mark(newer))
    newest.note("w", mark(older))
    assert newest.of("w") == mark(newer)
    assert Newest(newest._directory.removesuffix("/newest")).of("w") == mark(newer)


def test_an_older_header_of_the_newest_is_refused(newest, origin):
    made = origin("w", 100)
    newest.note("w", mark(made, 3))
    newest.check(made, 3)
    newest.check(made, 4)
    with pytest.raises(PolicyError, match="an older copy was put back"):
        newest.check(made, 2)


def test_without_a_workload_nothing_is_remembered(newest, origin):
    newest.note("", mark(origin("", 200)))
    newest.check(origin("", 100), 1)
    assert not os.path.exists(newest._directory)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"checkpoint":"00"}'])
def test_a_damaged_mark_is_none(newest, origin, data):
    newest.note("w", mark(origin("w", 200)))
    (name,) = os.listdir(newest._directory)
    assert stat.S_IMODE(os.stat(f"{newest._directory}/{name}").st_mode) == 0o600
    assert "w" not in name[:1]
    with open(f"{newest._directory}/{name}", "wb") as file:
        file.write(data)
    assert newest.of("w") is None
    newest.check(origin("w", 100), 1)
    newest.note("w", mark(origin("w", 300)))
    assert newest.of("w").captured == 300


def test_a_place_that_cannot_be_written_is_said(tmp_path, origin):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemEnvironmentError, match="cannot remember"):
        Newest(str(tmp_path / "file")).note("w", mark(origin("w", 1)))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives files to others")
def test_marks_that_others_could_have_changed_are_an_error_not_a_yes(newest, origin, tmp_path):
    older, newer = origin("w", 100), origin("w", 200)
    newest.note("w", mark(newer))
    (tmp_path / "state").chmod(0o777)
    for checkpoint in (older, newer):
        with pytest.raises(SystemEnvironmentError, match="can be changed by others"):
            newest.check(checkpoint, 1)


# A step back that is wanted


@pytest.fixture
def stepped(newest, origin):
    """A workload of which a newer one is known than the one that is returned."""
    older = origin("w", 100)
    newest.note("w", mark(origin("w", 200)))
    return older


def logged(newest) -> list[dict]:
    with open(f"{newest._directory}/log") as file:
        return [json.loads(line) for line in file]


def test_an_older_checkpoint_is_allowed_once_and_both_are_logged(newest, stepped):
    until = newest.allow("w", 60)
    newest.check(stepped, 1)
    newest.check(stepped, 1)  # looking does not use it up
    assert "older than checkpoint" in newest.admit(stepped, 1)
    for again in (newest.check, newest.admit):
        with pytest.raises(PolicyError, match="it is older than checkpoint"):
            again(stepped, 1)
    allowed, took = logged(newest)
    assert (allowed["allowed"], allowed["until"]) == ("w", until)
    assert (took["took"], took["checkpoint"]) == ("w", stepped.checkpoint_id.hex())
    assert stat.S_IMODE(os.stat(f"{newest._directory}/log").st_mode) == 0o600


def test_what_is_not_older_uses_nothing_up(newest, stepped, origin):
    newest.allow("w", 60)
    assert newest.admit(origin("w", 300), 1) == ""
    assert newest.admit(origin("another", 1), 1) == ""
    assert newest.admit(stepped, 1)


def test_a_permission_ends_and_is_of_one_workload(newest, stepped, origin, monkeypatch):
    newest.note("v", mark(origin("v", 250)))
    newest.allow("v", 60)
    with pytest.raises(PolicyError):
        newest.admit(stepped, 1)
    newest.allow("w", 60)
    now = time.time()
    for later in (60, 3600, -3600):  # nor is it valid before it was given: a clock that was set
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        with pytest.raises(PolicyError):
            newest.admit(stepped, 1)
    monkeypatch.setattr(time, "time", lambda: now + 30)
    assert newest.admit(stepped, 1)


def test_a_workload_that_is_not_known_cannot_be_allowed_anything(newest):
    with pytest.raises(PolicyError, match="no checkpoint of workload 'typo' is known here"):
        newest.allow("typo", 60)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"from":"0","until":"99999999999","x":"1"}', b"\xff"]
)
def test_a_damaged_permission_allows_nothing(newest, stepped, data):
    newest.allow("w", 60)
    (name,) = [n for n in os.listdir(newest._directory) if n.endswith(".older")]
    with open(f"{newest._directory}/{name}", "wb") as file:
        file.write(data)
    with pytest.raises(PolicyError):
        newest.admit(stepped, 1)


def _admit(directory, older, start, passed):
    start.wait()
    try:
        passed.put(bool(Newest(directory).admit(older, 1)))
    except PolicyError:
        passed.put(False)


def test_of_many_at_once_one_passes(newest, stepped):
    newest.allow("w", 60)
    fork = multiprocessing.get_context("fork")
    start, passed = fork.Event(), fork.Queue()
    directory = newest._directory.removesuffix("/newest")
    others = [
        fork.Process(target=_admit, args=(directory, stepped, start, passed)) for _ in range(8)
    ]
    for other in others:
        other.start()
    start.set()
    results = [passed.get(timeout=30) for _ in others]
    for other in others:
        other.join()
    assert results.count(True) == 1


def _note(directory, captured, start):
    start.wait()
    Newest(directory).note("w", Mark(bytes(16), captured, 1))


def test_the_mark_only_rises_whoever_writes_last(newest):
    fork = multiprocessing.get_context("fork")
    directory = newest._directory.removesuffix("/newest")
    for _ in range(5):
        start = fork.Event()
        others = [
            fork.Process(target=_note, args=(directory, captured, start)) for captured in range(8)
        ]
        for other in others:
            other.start()
        start.set()
        for other in others:
            other.join()
        assert newest.of("w").captured == 7
        os.unlink(f"{newest._directory}/{newest._name('w')}")


def test_a_time_further_ahead_than_clocks_differ_moves_no_mark(newest):
    now = int(time.time())
    assert newest.note("w", Mark(bytes(16), now + 299, 1))
    assert not newest.note("w", Mark(bytes(16), now + 400, 1))
    assert newest.of("w").captured == now + 299

"""The high-water mark: what is older than the newest known of its workload is not restored by mistake."""

from __future__ import annotations

import os
import stat

import pytest
from chain_helpers import seal_images

from sealpoint.checkpoint.access import CheckedFile
from sealpoint.checkpoint.newest import Mark, Newest
from sealpoint.errors import PolicyError, SystemEnvironmentError


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

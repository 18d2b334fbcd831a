"""A sealed file that is durable here before a store has it, and what becomes of it there."""

from __future__ import annotations

import os
import stat

import pytest

from sealpoint.checkpoint.sealing.existing import seal
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.store.spooled import SpooledOutput, name_for
from sealpoint.store.uploading import Writing
from tests.checkpoint.checkpoint_helpers import Keys
from tests.store import memory_store

URL = "mem://here/apps/one"


@pytest.fixture
def world(monkeypatch):
    world = memory_store.install(monkeypatch)
    world.part_size = 64 * 1024
    return world


@pytest.fixture
def keys(tmp_path):
    return Keys(tmp_path / "keys")


@pytest.fixture
def spool(tmp_path):
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


@pytest.fixture
def write(keys, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "pages-1.img").write_bytes(os.urandom(700_000))
    return lambda out: seal(str(tmp_path / "images"), out, keys.sealing(), as_files=True)


def test_it_is_durable_under_a_name_and_then_in_the_store_alone(world, spool, write, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_mode) or real(fd))
    with SpooledOutput(URL, str(spool), Writing()) as out:
        assert os.listdir(spool) == []
        write(out)
        assert out.committed
        assert [stat.S_IFMT(mode) for mode in synced[-2:]] == [stat.S_IFREG, stat.S_IFDIR]
        assert os.listdir(spool) == [os.path.basename(out.path)]
        data = (spool / out.path).read_bytes()
        assert world.files == {}
        assert world.parts == {}
        out.upload()
    assert world.files[URL].data == data
    assert os.listdir(spool) == []


def test_what_was_not_committed_is_gone_and_nothing_was_sent(world, spool):
    with SpooledOutput(URL, str(spool), Writing()) as out:
        out.write(b"x" * 1000)
    assert os.listdir(spool) == []
    assert (world.files, world.parts) == ({}, {})


def test_an_upload_that_fails_leaves_the_file_and_says_how_to_go_on(world, spool, write):
    def fail(_upload, _number):
        raise SystemEnvironmentError("the store is gone")

    world.before_send = fail
    with SpooledOutput(URL, str(spool), Writing()) as out:
        write(out)
        with pytest.raises(SystemEnvironmentError, match="the store is gone") as caught:
            out.upload()
    assert f"stays in {out.path}" in caught.value.message
    assert f"sealpoint copy {out.path} {URL}" in caught.value.hint
    assert os.path.exists(out.path)
    assert (world.files, world.parts) == ({}, {})
    # A second one for the same place does not replace it.
    with pytest.raises(UsageError, match="exists: a checkpoint") as again:
        SpooledOutput(URL, str(spool), Writing(force=True))
    assert again.value.hint == caught.value.hint


def test_a_name_that_is_taken_meanwhile_stays_and_so_does_the_file(world, spool, write):
    with SpooledOutput(URL, str(spool), Writing()) as out:
        write(out)
        world.files[URL] = memory_store.Stored(b"head", b"body", {})
        with pytest.raises(UsageError, match="exists already"):
            out.upload()
    assert world.files[URL].data == b"headbody"
    assert os.path.exists(out.path)
    with pytest.raises(UsageError, match="exists already"):
        SpooledOutput(URL, str(spool), Writing())


def test_the_name_in_the_spool_is_that_of_the_url_and_fits(tmp_path):
    assert name_for(URL).startswith("mem_here_apps_one.")
    assert name_for(URL) == name_for(URL) != name_for("mem://here/apps_one")
    for url in ("mem://here/" + "x" * 900, "mem://here/../../etc/passwd", "mem://here/\n\udcff"):
        name = name_for(url)
        assert len(name) < 200
        assert "/" not in name
        assert name.isascii()
        assert name.isprintable()

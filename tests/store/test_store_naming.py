"""A commit that fails at any step: the name is that of the old file, or of the new one, whole.

The kernel refuses the calls (tests/failing.py); each row runs in a child of its own.
"""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from sealpoint.errors import SystemEnvironmentError
from sealpoint.store import naming
from sealpoint.store.output import OutputFile
from tests import failing

EXCHANGE, NOREPLACE = 2, 1
OLD, NEW = b"old", b"new"


@pytest.fixture(params=["disk", "memory"])
def where(request, tmp_path):
    if request.param == "disk":
        yield tmp_path / "d"
    else:
        if os.geteuid() != 0:
            pytest.skip("takes root")
        (tmp_path / "d").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "d"], check=True)
        yield tmp_path / "d"
        subprocess.run(["umount", tmp_path / "d"], check=True)


# name of the step: what fails, given the descriptors of the file and of its directory
STEPS = {
    "the file cannot be made durable": lambda f, d: [("fsync", errno.EIO, {"a0": f})],
    "its directory cannot be made durable": lambda f, d: [("fsync", errno.EIO, {"a0": d})],
    "nothing can be made durable": lambda f, d: [("fsync", errno.EIO, {})],
    "no name can be given": lambda f, d: [("linkat", errno.EIO, {})],
    "names cannot be exchanged for an error": lambda f, d: [("renameat2", errno.EIO, {"a4": EXCHANGE})],
    "the file system cannot exchange names": lambda f, d: [("renameat2", errno.EINVAL, {"a4": EXCHANGE})],
    "nor can it, and its directory cannot be made durable": lambda f, d: [
        ("renameat2", errno.EINVAL, {"a4": EXCHANGE}), ("fsync", errno.EIO, {"a0": d})],
    "nor can names be put back": lambda f, d: [
        ("fsync", errno.EIO, {"a0": d}), ("renameat2", errno.EIO, {"a4": 0})],
    "nothing can be removed": lambda f, d: [("unlinkat", errno.EIO, {})],
    "nothing can be removed, nor its directory made durable": lambda f, d: [
        ("unlinkat", errno.EIO, {}), ("fsync", errno.EIO, {"a0": d})],
}  # fmt: skip


def commit(path, *, force, step) -> None:
    try:
        with OutputFile(str(path), force=force) as out:
            out.write(NEW)
            for name, error, arguments in step(out.fd, out._place._directory):
                failing.install(name, error, **arguments)
            out.commit()
    except SystemEnvironmentError:
        assert not out.committed
        os._exit(3)
    assert out.committed


@pytest.mark.parametrize("old", [True, False], ids=["replaces", "is new"])
@pytest.mark.parametrize("step", STEPS)
def test_a_commit_that_fails_leaves_the_old_file_or_the_new_one_whole(where, step, old):
    where.mkdir(exist_ok=True)
    path = where / "f"
    if old:
        path.write_bytes(OLD)
    status = failing.in_child(lambda: commit(path, force=old, step=STEPS[step]))
    assert status in (0, 3)
    found = path.read_bytes() if path.exists() else None
    if status == 0:
        assert found == NEW
    elif old:
        assert found in (OLD, NEW)
        if found == NEW:  # names could not be put back: then the old file is not lost either
            others = [p for p in where.iterdir() if p != path]
            assert [p.read_bytes() for p in others] == [OLD]
    elif step != "nothing can be removed, nor its directory made durable":
        assert found is None
    if "removed" not in step and "put back" not in step:
        assert os.listdir(where) == (["f"] if path.exists() else [])


def test_a_directory_that_cannot_be_made_durable_leaves_the_old_file(where):
    where.mkdir(exist_ok=True)
    path = where / "f"
    for step in ("its directory cannot be made durable",
                 "nor can it, and its directory cannot be made durable"):  # fmt: skip
        path.write_bytes(OLD)
        assert failing.in_child(lambda s=step: commit(path, force=True, step=STEPS[s])) == 3
        assert path.read_bytes() == OLD
        assert os.listdir(where) == ["f"]


def test_the_error_says_where_the_old_file_is_if_it_cannot_have_its_name_back(
    tmp_path, monkeypatch
):
    (tmp_path / "f").write_bytes(OLD)
    with OutputFile(str(tmp_path / "f"), force=True) as out:
        out.write(NEW)
        real, directory = os.fsync, out._place._directory

        def fsync(fd):
            if fd == directory:
                monkeypatch.setattr(naming, "rename", refuse)
                raise OSError(errno.EIO, "Input/output error")
            real(fd)

        def refuse(*_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(naming.os, "fsync", fsync)
        with pytest.raises(SystemEnvironmentError) as caught:
            out.commit()
    (kept,) = [p for p in tmp_path.iterdir() if p.name != "f"]
    assert str(kept) in caught.value.message
    assert kept.read_bytes() == OLD
    assert (tmp_path / "f").read_bytes() == NEW


def test_a_directory_that_takes_the_name_meanwhile_is_not_replaced(tmp_path):
    with OutputFile(str(tmp_path / "f"), force=True) as out:
        out.write(NEW)
        (tmp_path / "f").mkdir()
        (tmp_path / "f" / "inside").write_bytes(OLD)
        with pytest.raises(SystemEnvironmentError, match="directory"):
            out.commit()
    assert (tmp_path / "f" / "inside").read_bytes() == OLD
    assert os.listdir(tmp_path) == ["f"]


def test_a_directory_that_is_exchanged_meanwhile_does_not_get_the_file(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "f").write_bytes(OLD)
    with OutputFile(str(tmp_path / "d" / "f"), force=True) as out:
        out.write(NEW)
        (tmp_path / "d").rename(tmp_path / "moved")
        (tmp_path / "d").symlink_to("elsewhere")
        out.commit()
    assert (tmp_path / "elsewhere" / "f").read_bytes() == OLD
    assert (tmp_path / "moved" / "f").read_bytes() == NEW


def test_a_file_that_somebody_else_put_there_since_is_neither_undone_nor_renamed(tmp_path):
    path = tmp_path / "f"
    with OutputFile(str(path)) as out:
        out.write(NEW)
        out.commit()
        (tmp_path / "g").write_bytes(OLD)
        (tmp_path / "g").rename(path)
        assert out.mark_failed() is None
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["f"]


def test_directories_are_made_private_at_every_level(tmp_path):
    old = os.umask(0)
    try:
        naming.make_directories(str(tmp_path / "a" / "b" / "c"))
    finally:
        os.umask(old)
    for level in ("a", "a/b", "a/b/c"):
        assert (tmp_path / level).stat().st_mode & 0o777 == 0o700

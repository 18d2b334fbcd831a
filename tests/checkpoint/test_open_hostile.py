"""Sealed files of a legitimate sealer who means harm, and failures in the middle: nothing outside, nothing half-way.

What the format itself refuses when it is written (names with `..`, files below links) is written here past its checks.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening import extract
from sealpoint.checkpoint.tables import tar
from sealpoint.errors import FileError, IdentityError, SystemEnvironmentError, UsageError
from sealpoint.format import manifest
from sealpoint.progress import silent
from sealpoint.store import output
from tests.checkpoint.checkpoint_helpers import (
    attributes,
    listing,
    open_to,
    opened,
    read_tar,
    seal_objects,
    seal_path,
)

root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


@pytest.fixture
def place(tmp_path):
    """A directory for the output, beside which nothing may appear."""
    (tmp_path / "place").mkdir()
    (tmp_path / "outside").mkdir()
    return tmp_path / "place"


def refuse(keys, place, objects, words, *, only=()):
    """Opening to a directory fails, and nothing is left anywhere."""
    sealed = place.parent / "sealed"
    seal_objects(keys, sealed, objects)
    before = listing(place.parent)
    with pytest.raises((FileError, SystemEnvironmentError, UsageError), match=words) as caught:
        open_to(keys, sealed, place / "o", only=only)
    assert listing(place.parent) == before
    return caught.value


def link(target: str, kind: str = "symlink"):
    return b"", attributes(kind, link=target)


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../../b", "a/./b", "a//b", "", ".", "..", "a/", "a\0b", "x" * 256]
)
def test_names_that_lead_out_are_refused_by_the_reader(keys, place, monkeypatch, name):
    sealed = place.parent / "sealed"
    with monkeypatch.context() as m:
        m.setattr(manifest, "check_name", lambda name: name)
        m.setattr("sealpoint.checkpoint.sealing.builder.check_name", lambda name: name)
        seal_objects(keys, sealed, {name: (b"evil", attributes()), "b": (b"", attributes())})
    for target in ("o", "o.tar"):
        with pytest.raises(FileError, match="relative path"):
            open_to(keys, sealed, place / target)
    assert listing(place.parent) == {"place", "outside", "sealed"}


def test_a_file_below_a_link_is_refused_by_the_reader(keys, place, monkeypatch):
    sealed = place.parent / "sealed"
    objects = {"d": link("../outside"), "d/evil": (b"evil", attributes())}
    with monkeypatch.context() as m:
        m.setattr(manifest.attributes, "is_directory", lambda value: True)
        seal_objects(keys, sealed, objects)
    with pytest.raises(FileError, match="below one that is not a directory"):
        open_to(keys, sealed, place / "o")
    assert listing(place.parent) == {"place", "outside", "sealed"}


def test_the_directory_writer_itself_follows_no_link(keys, place, monkeypatch):
    # A second line of defence, whatever the manifest's checks say.
    sealed = place.parent / "sealed"
    objects = {"d": link("e"), "d/evil": (b"evil", attributes())}
    monkeypatch.setattr(manifest.attributes, "is_directory", lambda value: True)
    seal_objects(keys, sealed, objects)
    with pytest.raises(FileError, match="contradict"):
        open_to(keys, sealed, place / "o")
    assert listing(place.parent) == {"place", "outside", "sealed"}


def test_a_directory_that_becomes_a_link_meanwhile_is_not_written_through(place):
    """Whoever can write where the files are made: another program of the same user, or a tree that was given to him."""
    outside = place.parent / "outside"
    before = listing(outside)

    def exchange():
        (made,) = (d for d in place.rglob("*") if d.name == "d")
        made.rmdir()
        made.symlink_to(outside)
        yield b"a"

    items = [
        extract.Item(tar.Member("d", "directory", mode=0o700)),
        extract.Item(tar.Member("a", size=1), exchange),
        extract.Item(tar.Member("d/evil", size=4), lambda: iter([b"evil"])),
    ]
    with pytest.raises(FileError, match="contradict"):
        extract.write_directory(items, str(place / "o"), silent, force=False)
    assert listing(outside) == before


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "//etc/passwd",
        "..",
        "../outside",
        "../../outside",
        "a/../../outside",
        "./../outside",
        "d/..",
        "d/../..",
    ],
)
def test_links_that_lead_out_are_refused(keys, place, target):
    error = refuse(keys, place, {"l": link(target), "d/x": (b"", attributes())}, "leads out")
    assert ".tar" in error.hint


def test_a_link_that_leads_out_by_way_of_another_link_is_refused(keys, place):
    # Read as text, dot/.. is the root itself; followed, it is the root's parent.
    refuse(keys, place, {"dot": link("."), "l": link("dot/..")}, "leads out")
    refuse(keys, place, {"a/b/up": link("../.."), "l": link("a/b/up/../outside/x")}, "leads out")


def test_links_that_stay_inside_are_made(keys, place):
    seal_objects(
        keys,
        place / "s",
        {
            "a/b/c": (b"data", attributes()),
            "a/b/up": link("../../top"),
            "a/parent": link("../a"),
            "top": link("./a//b/c"),
            "dangling": link("nowhere"),
            "h": link("a/b/c", "hardlink"),
            "h2": link("./h", "hardlink"),
        },
    )
    open_to(keys, place / "s", place / "o")
    assert (place / "o" / "a" / "b" / "up").read_bytes() == b"data"
    assert os.readlink(place / "o" / "dangling") == "nowhere"
    assert os.stat(place / "o" / "h2").st_ino == os.stat(place / "o" / "a" / "b" / "c").st_ino


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ({"h": link("/etc/passwd", "hardlink")}, "hard link to"),
        ({"h": link("../outside/x", "hardlink")}, "hard link to"),
        ({"h": link("nothing", "hardlink")}, "not there"),
        ({"h": link("h", "hardlink")}, "itself"),
        ({"h": link("i", "hardlink"), "i": link("h", "hardlink")}, "itself"),
        ({"h": link("d", "hardlink"), "d": (b"", attributes("directory"))}, "a directory"),
        ({"h": link("l", "hardlink"), "l": link("x")}, "a symlink"),
        ({"c": (b"", attributes("character", major=1, minor=3))}, "device"),
        ({"c": (b"", attributes("block", major=8, minor=0))}, "device"),
        ({"c": (b"", attributes("fifo"))}, "pipe"),
    ],
)
def test_other_tricks_are_refused(keys, place, objects, words):
    refuse(keys, place, objects, words)


def test_a_hard_link_whose_file_was_not_asked_for_is_refused_with_a_hint(keys, place):
    objects = {"a": (b"1", attributes()), "h": link("a", "hardlink")}
    error = refuse(keys, place, objects, "not there", only=["h"])
    assert "--only" in error.hint


def test_set_user_id_bits_are_dropped_and_nothing_is_executable_by_surprise(keys, place):
    objects = {
        "suid": (b"", attributes(mode=0o6755)),
        "d": (b"", attributes("directory", mode=0o7777)),
        "plain": (b"", None),
    }
    seal_objects(keys, place / "s", objects)
    open_to(keys, place / "s", place / "o")
    modes = {n: (place / "o" / n).stat().st_mode & 0o7777 for n in objects}
    assert modes == {"suid": 0o755, "d": 0o777, "plain": 0o600}


def test_impossible_owners_and_times_do_no_harm(keys, place):
    values = {"uid": 2**32 - 1, "gid": 2**32 - 1, "mtime": 2**64 - 1}
    seal_objects(keys, place / "s", {"a": (b"", attributes(**values)), "l": link("a")})
    open_to(keys, place / "s", place / "o")
    open_to(keys, place / "s", place / "o.tar")
    assert (place / "o" / "a").exists()


@root
def test_extended_attributes_stay_in_archives(keys, place):
    value = base64.b64encode(b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0").decode()
    objects = {"a": (b"", attributes(xattrs={"security.capability": value}))}
    seal_objects(keys, place / "s", objects)
    open_to(keys, place / "s", place / "o")
    assert os.listxattr(place / "o" / "a") == []
    open_to(keys, place / "s", place / "o.tar")
    assert read_tar((place / "o.tar").read_bytes())["a"][6]


def test_an_archive_gets_everything_as_it_was(keys, place):
    objects = {"l": link("/etc/passwd"), "c": (b"", attributes("fifo")), "x": (b"1", attributes())}
    seal_objects(keys, place / "s", objects)
    open_to(keys, place / "s", place / "o.tar")
    assert read_tar((place / "o.tar").read_bytes())["l"][4] == "/etc/passwd"


def zeros(keys, path, size: int) -> None:
    """A small sealed file that opens to `size` zero bytes."""
    with open(path.parent / "holes", "wb") as file:
        file.truncate(size)
    (path.parent / "d").mkdir()
    os.rename(path.parent / "holes", path.parent / "d" / "pages-1.img")
    seal_path(keys, path.parent / "d", path)
    os.unlink(path.parent / "d" / "pages-1.img")
    os.rmdir(path.parent / "d")


def test_what_opens_to_more_than_is_free_is_refused_before_anything_is_written(
    keys, place, monkeypatch
):
    zeros(keys, place / "s", 50_000_000)
    assert (place / "s").stat().st_size < 200_000
    usage = type(extract.shutil.disk_usage("/"))
    monkeypatch.setattr(extract.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 49_000_000))
    for target in ("o", "o.tar"):
        with pytest.raises(SystemEnvironmentError, match="50000000 bytes, but only 49000000"):
            open_to(keys, place / "s", place / target)
    assert listing(place) == {"s"}


@pytest.fixture
def tiny(tmp_path):
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("takes root")
    path = tmp_path / "tiny"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", path], capture_output=True
    )
    if done.returncode:
        pytest.skip("cannot mount here")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_leaves_nothing(keys, tmp_path, tiny, monkeypatch):
    source = tmp_path / "d"
    source.mkdir()
    (source / "pages-1.img").write_bytes(os.urandom(6_000_000))
    with pytest.raises(SystemEnvironmentError, match="no space left"):
        seal_path(keys, source, tiny / "sealed")
    assert listing(tiny) == set()
    seal_path(keys, source, tmp_path / "sealed")
    monkeypatch.setattr(extract, "_check_space", lambda *_: None)
    for target in ("o", "o.tar", "o.tar.gz", "o.tar.zst"):
        with pytest.raises(SystemEnvironmentError, match="no space left"):
            open_to(keys, tmp_path / "sealed", tiny / target)
        assert listing(tiny) == set()


def test_a_mount_point_is_filled_not_replaced(keys, tmp_path, tiny):
    seal_objects(keys, tmp_path / "s", {"a/b": (b"1", None)})
    open_to(keys, tmp_path / "s", tiny)
    assert listing(tiny) == {"a", "a/b"}
    assert os.path.ismount(tiny)


@pytest.mark.parametrize("target", ["o", "o.tar", "o.tar.zst"])
def test_a_chunk_that_was_changed_late_in_the_file_leaves_nothing(keys, place, target):
    objects = {f"core-{n}.img": (os.urandom(60_000), None) for n in range(40)}
    seal_objects(keys, place / "s", objects)
    data = bytearray((place / "s").read_bytes())
    with opened(keys, place / "s") as checkpoint:
        number = checkpoint.entry("core-39.img").stream.number
        index = checkpoint.authentic.index
        *_, late, _ = index.frames_of(number)
        offset = index.entry(late)[1]
    data[offset + 50] ^= 1
    (place / "s").write_bytes(data)
    with pytest.raises(FileError, match=r"frame|chunk"):
        open_to(keys, place / "s", place / target)
    assert listing(place) == {"s"}


def test_the_wrong_identity_makes_nothing_and_says_for_whom_it_is(keys, others, place):
    seal_objects(keys, place / "s", {"a": (b"1", None)})
    others.policy = keys.policy
    try:
        with pytest.raises(IdentityError, match=f"x25519 {keys.fingerprint[:16]}"):
            open_to(others, place / "s", place / "o")
    finally:
        del others.policy
    assert listing(place) == {"s"}


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL], ids=["fails", "is not known here"])
def test_a_failed_replacement_puts_the_old_directory_back(keys, place, monkeypatch, number):
    seal_objects(keys, place / "s", {"a": (b"1", None)})
    (place / "o").mkdir()
    (place / "o" / "old").touch()
    real = os.rename

    def rename(source, target):
        if str(source).endswith(".partial"):
            raise OSError(5, "Input/output error")
        real(source, target)

    def exchange(*_):
        raise OSError(number, "Input/output error")

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(extract, "exchange", exchange)
    with pytest.raises(SystemEnvironmentError, match="Input/output error"):
        open_to(keys, place / "s", place / "o", force=True)
    assert listing(place) == {"s", "o", "o/old"}


SLOW = """
import os, sys, time
sys.path[:0] = {path!r}
from tests.checkpoint.checkpoint_helpers import Keys
from sealpoint.checkpoint.opening import extract
real = extract._Contents.pieces
def pieces(self, entry):
    for piece in real(self, entry):
        yield piece
        if self._done > 500_000:
            print("now", flush=True)
            time.sleep(60)
extract._Contents.pieces = pieces
from sealpoint.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("target", ["o", "o.tar"])
def test_a_signal_in_the_middle_leaves_nothing_under_the_name(keys, place, number, target):
    seal_objects(
        keys, place / "s", {f"core-{n}.img": (os.urandom(60_000), None) for n in range(20)}
    )
    arguments = ["open", "s", "-o", target, "-i", keys.identity_path, "--trust", keys.trust_path]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(path=sys.path), *arguments],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "now\n"
    child.send_signal(number)
    _, messages = child.communicate(timeout=20)
    left = listing(place)
    if number == signal.SIGKILL:
        assert child.returncode == -number
        # An archive has no name before it is complete; a directory a hidden one that says what it is.
        assert target == "o" or left == {"s"}
        assert all(n == "s" or (n.startswith(".o.") and ".partial" in n) for n in left)
    else:
        assert child.returncode == 128 + number
        assert left == {"s"}
        assert "Traceback" not in messages
        assert messages.startswith("sealpoint: ")


def test_progress_is_reported_up_to_the_whole(keys, place):
    seal_objects(keys, place / "s", {"a": (bytes(70_000), None), "b": (b"1", None)})
    seen = []
    with opened(keys, place / "s") as checkpoint:
        entries = extract.select(checkpoint, ())
        extract.extract_tar(checkpoint, entries, str(place / "o.tar"), seen.append, force=False)
    assert (seen[-1].done, seen[-1].total) == (70_001, 70_001)
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_opening_does_not_block_others(keys, place):
    # The lock of a rekey is for writers; readers keep none.
    seal_objects(keys, place / "s", {"a": (b"1", None)})
    with opened(keys, place / "s"), open(place / "s", "r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(writer, fcntl.LOCK_UN)
        open_to(keys, place / "s", place / "o")


def test_without_unnamed_files_the_archive_appears_complete_all_the_same(keys, place, monkeypatch):
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(output.os, "open", refuse)
    seal_objects(keys, place / "s", {"a": (b"1", None)})
    open_to(keys, place / "s", place / "o.tar")
    assert listing(place) == {"s", "o.tar"}


def test_a_directory_that_is_not_there_is_not_made(keys, place):
    with pytest.raises(UsageError, match="no directory"):
        seal_objects(keys, place / "s", {"a": (b"1", None)})
        open_to(keys, place / "s", place / "none" / "o")


@root
def test_whoever_is_not_root_gets_and_removes_read_only_directories(keys, tmp_path):
    objects = {
        "d": (b"", attributes("directory", mode=0o500, uid=5)),
        "d/e": (b"", attributes("directory", mode=0)),
        "d/e/f": (b"1", attributes(mode=0o400)),
    }
    with tempfile.TemporaryDirectory() as name:
        seal_objects(keys, f"{name}/s", objects)
        place = Path(name)
        (place / "there").mkdir()
        for path in (place, place / "s", place / "there"):
            os.chown(path, 65534, 65534)
        keys.identity, keys.policy  # noqa: B018 - read while that is still allowed
        child = os.fork()
        if child == 0:
            try:
                os.setgid(65534)
                os.setuid(65534)
                for _ in range(2):
                    open_to(keys, place / "s", place / "o", force=True)
                open_to(keys, place / "s", place / "there")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        members = {"d", "d/e", "d/e/f"}
        found = {f"{top}/{m}" for top in ("o", "there") for m in members}
        assert listing(place) == found | {"s", "o", "there"}
        for top in ("o", "there"):
            assert (place / top / "d").stat().st_mode & 0o777 == 0o500
            assert (place / top / "d" / "e" / "f").stat().st_uid == 65534


@root
def test_a_failure_removes_read_only_directories_as_well(keys, place, monkeypatch):
    objects = {"d": (b"", attributes("directory", mode=0o500)), "d/f": (b"1", attributes())}
    seal_objects(keys, place / "s", objects)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(SystemEnvironmentError):
        open_to(keys, place / "s", place / "o")
    assert listing(place) == {"s"}

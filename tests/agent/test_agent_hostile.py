"""Files that are no good archives: none of them blocks the others, none is followed, all are told."""

from __future__ import annotations

import gzip
import os
import socket

import pytest

from sealpoint.errors import PolicyError, SystemEnvironmentError
from tests.agent.agent_helpers import (  # noqa: F401
    Node,
    archive,
    inside,
    keys,
    node,
    wait_for,
)
from tests.checkpoint.checkpoint_helpers import a_pre_dump, make_tar, member, seal_objects
from tests.cli.conftest import OBJECTS

GOOD = archive("good")


def _outside(node: Node):
    path = node.directory / "outside.tar"
    path.write_bytes(archive("outside"))
    return path


def _socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)  # a socket's path has 108 bytes
        try:
            listener.bind(path.name)
        finally:
            os.chdir(before)
            os.close(before)


def _sparse(path, head, size):
    path.write_bytes(head)
    os.truncate(path, size)


# name -> (how it is made at `path`, words of the reason)
HOSTILE = {
    "no archive": (lambda _, path: path.write_bytes(b"\x01\x02random" * 999), "neither a directory nor a tar"),
    "text": (lambda _, path: path.write_text("notes\n"), "neither a directory nor a tar"),
    "cut amid a member": (lambda _, path: path.write_bytes(GOOD[:700]), "cut short"),
    "without its end": (lambda _, path: path.write_bytes(GOOD.rstrip(b"\0")), "cut short"),
    "only one zero block": (
        lambda _, path: path.write_bytes(GOOD[: len(GOOD.rstrip(b"\0")) // 512 * 512 + 512]),
        "cut short",
    ),
    "rest of an older one": (
        lambda _, path: path.write_bytes(GOOD + b"x" * 512),
        "something follows the end",
    ),
    "compressed, cut": (lambda _, path: path.write_bytes(gzip.compress(GOOD)[:-20]), "damaged gzip"),
    "compressed nothing": (lambda _, path: path.write_bytes(gzip.compress(b"")), ""),
    "a name that is not UTF-8": (
        lambda _, path: path.write_bytes(GOOD.replace(b"spec.dump", b"spec\xff\xfe\xfd.x", 1)),
        "",
    ),
    "no images": (
        lambda _, path: path.write_bytes(make_tar(member("etc/passwd", b"root"))),
        "",
    ),
    "images that are not whole": (
        lambda _, path: path.write_bytes(
            make_tar(member("checkpoint/pages-1.img", a_pre_dump(b"x")["pages-1.img"]))
        ),
        "",
    ),
    "a member twice": (
        lambda _, path: path.write_bytes(make_tar(member("a", b"1"), member("a", b"2"))),
        "twice",
    ),
    "all zeros": (lambda _, path: path.write_bytes(bytes(65536)), "begins with zeros"),
    "a hole of many gigabytes": (lambda _, path: _sparse(path, b"", 1 << 38), "begins with zeros"),
    "larger than allowed": (lambda _, path: _sparse(path, GOOD, (1 << 40) + 1), "more than"),
    "a link to an archive": (
        lambda node, path: path.symlink_to(_outside(node)),
        "not a regular file",
    ),
    "a link to nothing": (lambda _, path: path.symlink_to("/nowhere"), "not a regular file"),
    "a second name": (lambda node, path: os.link(_outside(node), path), "another name"),
    "a pipe": (lambda _, path: os.mkfifo(path), "not a regular file"),
    "a socket": (lambda _, path: _socket(path), "not a regular file"),
    "a directory": (lambda _, path: path.mkdir(), "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_cannot_be_sealed_stays_as_it_is_is_told_and_blocks_nobody(node, kind):
    make, reason = HOSTILE[kind]
    bad = node.watched / "bad.tar"
    make(node, bad)
    before = os.lstat(bad)
    os.utime(bad, (1, 1), follow_symlinks=False)  # the first in the queue
    node.write("good.tar", archive("good"))
    done = node.once()
    assert (done.returncode, done.stdout) == (6, "1 archive sealed, 1 left in the clear\n")
    assert reason in done.stderr
    assert "bad.tar" in done.stderr
    assert node.markers() == ["good"]
    assert node.plain() == {"bad.tar"}
    assert node.waiting() == []
    after = os.lstat(bad)
    assert (after.st_ino, after.st_size, after.st_mode) == (
        before.st_ino,
        before.st_size,
        before.st_mode,
    )
    if (node.directory / "outside.tar").exists():
        assert (node.directory / "outside.tar").read_bytes() == archive("outside")


def test_a_refused_archive_is_taken_when_it_has_become_a_good_one(node):
    bad = node.write("a.tar", GOOD[:700])
    with node.agent():
        wait_for(lambda: "not sealed" in node.said(), "it is refused")
        with open(bad, "ab") as file:
            file.write(GOOD[700:])
        wait_for(lambda: node.sealed() and node.is_clean(), "it is sealed")
    assert node.markers() == ["good"]
    assert node.said().count("cut short") == 1  # said once, not at every look


def test_what_cannot_be_sealed_is_said_once_and_not_read_again(node):
    node.write("a.tar", GOOD[:700])
    with node.agent():
        wait_for(lambda: "not sealed" in node.said(), "it is refused")
        for number in range(3):  # each wakes the agent
            node.write(f"{number}.tar", archive(str(number)))
            wait_for(lambda number=number: len(node.sealed()) == number + 1, "another is sealed")
        wait_for(lambda: node.plain() == {"a.tar"}, "the others are removed")
    assert node.said().count("cut short") == 1


def test_a_sealed_file_is_left_where_it_is_and_is_nothing_in_the_clear(node, keys):
    seal_objects(keys, node.watched / "s.sealed", OBJECTS)
    done = node.once()
    assert (done.returncode, done.stdout) == (0, "0 archives sealed, 0 left in the clear\n")
    assert node.plain() == {"s.sealed"}


# --- The surroundings. ---


def test_a_directory_that_others_can_write_is_not_watched(node):
    node.write("a.tar", GOOD)
    node.watched.chmod(0o777)
    done = node.once()
    assert done.returncode == PolicyError.exit_code
    assert "is refused" in done.stderr
    assert node.plain() == {"a.tar"}


def test_a_directory_that_comes_later_is_watched_and_one_that_was_replaced_too(node):
    node.watched.rename(node.directory / "away")
    with node.agent():
        node.watched.mkdir()
        node.write("a.tar", archive("one"))
        wait_for(lambda: len(node.sealed()) == 1, "the new directory is watched")
        node.watched.rename(node.directory / "away2")
        node.watched.mkdir()
        node.write("b.tar", archive("two"))
        wait_for(lambda: len(node.sealed()) == 2, "the one in its place is watched")
    assert node.markers() == ["one", "two"]


@pytest.fixture
def small_disk(node):
    """The store on a file system of 3 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    with node.mounted(node.store, "size=3m"):
        yield node


def test_a_full_disk_leaves_the_archive_and_no_part_and_goes_on_when_there_is_room(small_disk):
    node = small_disk
    node.write("large.tar", archive("large", size=1_000_000))
    (node.store / "filler").write_bytes(os.urandom(2_500_000))
    with node.agent():
        wait_for(lambda: "space" in node.said(), "it is told")
        assert node.sealed() == []
        assert len(node.plain()) == 1
        os.unlink(node.store / "filler")
        wait_for(lambda: node.sealed() and node.is_clean(), "it is sealed")
    assert node.markers() == ["large"]


def test_space_that_runs_out_while_it_is_written_leaves_nothing(small_disk):
    node = small_disk
    noise = os.urandom(4_000_000)  # does not get smaller
    plain = make_tar(*[member(f"checkpoint/{n}", d) for n, d in a_pre_dump(noise).items()])
    node.write("large.tar.gz", gzip.compress(plain, 1))
    done = node.run(*node.options("--once"), "--min-free", "1")
    assert done.returncode == SystemEnvironmentError.exit_code
    assert os.listdir(node.store) == []
    assert len(node.plain()) == 1
    assert len(node.waiting()) == 1


def test_an_archive_that_would_leave_too_little_space_is_not_begun_and_smaller_ones_are(node):
    node.write("large.tar", archive("large", size=2_000_000))
    node.write("small.tar", archive("small"))
    free = os.statvfs(node.store).f_bavail * os.statvfs(node.store).f_frsize
    done = node.run(*node.options("--once"), "--min-free", str(free - 1_000_000))
    assert done.returncode == 6
    # Others use this disk, too: what matters is that none is begun that does not fit.
    assert "space is short" in done.stderr
    assert "large" not in node.markers()
    assert node.once().returncode == 0
    assert node.markers() == ["large", "small"]


def test_no_key_that_opens_anything_is_loaded(node):
    """The configuration names one that cannot be read, and nobody minds."""
    home = node.directory / "home" / "sealpoint"
    home.mkdir()
    (home / "config.toml").write_text('identities = ["/nonexistent/identity.key"]\n')
    node.write("a.tar", GOOD)
    assert node.once().returncode == 0
    assert node.is_clean()


def test_an_agent_that_would_not_sign_or_has_no_store_does_not_start(node):
    node.write("a.tar", GOOD)
    options = node.options("--once")
    unsigned = [o for o in options if o not in ("--sign", node.keys.signer_path)]
    assert node.run(*unsigned).returncode == 2
    homeless = [o for o in options if o not in ("--store", node.where)]
    assert node.run(*homeless).returncode == 2
    assert node.plain() == {"a.tar"}

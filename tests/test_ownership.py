"""Who else could change what root believes: each owner, mode, access list and link on the way to a file."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import tempfile
from pathlib import Path

import pytest

from sealpoint import ownership
from sealpoint.errors import PolicyError, SystemEnvironmentError

OTHER = 65534
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives files to others")
USER, GROUP_OWNER, GROUP, MASK, REST, OWNER = 2, 4, 8, 16, 32, 1


@pytest.fixture
def file(tmp_path):
    """In directories whose modes do not depend on who runs the tests."""
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    for directory in (tmp_path, tmp_path / "a", place):
        directory.chmod(0o755)
    made = place / "config.toml"
    made.write_text("believed")
    made.chmod(0o644)
    return made


def access_list(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    """entries: tag, permissions, id; the owner's, the owning group's and the others' are added."""
    everyone = [(OWNER, 6, 0xFFFFFFFF), *entries, (REST, 4, 0xFFFFFFFF)]
    if not any(tag == GROUP_OWNER for tag, *_ in everyone):
        everyone.append((GROUP_OWNER, 4, 0xFFFFFFFF))
    packed = [struct.pack("<HHI", *e) for e in sorted(everyone, key=lambda e: (e[0], e[2]))]
    return struct.pack("<I", version) + b"".join(packed)


def give_list(path: Path, *entries: tuple[int, int, int]) -> None:
    try:
        os.setxattr(path, "system.posix_acl_access", access_list(*entries))
    except OSError as error:
        pytest.skip(f"no access lists here: {error.strerror}")


def read(path: Path) -> str:
    with open(ownership.open_owned(str(path), "the configuration file")) as opened:
        return opened.read()


@ROOT
def test_what_is_roots_alone_is_believed(file):
    assert read(file) == "believed"
    assert ownership.problem_of(str(file)) is None


@ROOT
@pytest.mark.parametrize(
    ("what", "mode", "owner", "said"),
    [
        ("file", 0o644, OTHER, "belongs to user 65534"),
        ("file", 0o600, OTHER, "belongs to user 65534"),
        ("file", 0o664, 0, "can be changed by others (mode 0664): group 0"),
        ("file", 0o646, 0, "can be changed by others (mode 0646): everybody"),
        ("file", 0o666, 0, "can be changed by others (mode 0666): group 0 and everybody"),
        ("parent", 0o755, OTHER, "belongs to user 65534"),
        ("parent", 0o775, 0, "can be changed by others (mode 0775): group 0"),
        ("parent", 0o757, 0, "can be changed by others (mode 0757): everybody"),
        ("parent", 0o1777, OTHER, "belongs to user 65534"),
        ("grandparent", 0o755, OTHER, "belongs to user 65534"),
        ("grandparent", 0o777, 0, "everybody"),
        ("grandparent", 0o2775, 0, "group 0"),
    ],
)
def test_what_others_could_change_is_refused_and_named(file, what, mode, owner, said):
    place = {"file": file, "parent": file.parent, "grandparent": file.parent.parent}[what]
    os.chown(place, owner, 0)
    place.chmod(mode)
    with pytest.raises(PolicyError) as raised:
        read(file)
    assert said in raised.value.message
    assert str(file) in raised.value.message
    assert str(place) in raised.value.message + raised.value.hint
    assert ("chown root" if owner else "chmod go-w") in raised.value.hint


@ROOT
@pytest.mark.parametrize("what", ["parent", "grandparent"])
def test_a_sticky_directory_is_safe_for_what_root_owns_in_it(file, what):
    place = file.parent if what == "parent" else file.parent.parent
    place.chmod(0o1777)
    assert read(file) == "believed"
    os.chown(file if what == "parent" else file.parent, OTHER, 0)
    with pytest.raises(PolicyError, match="belongs to user 65534"):
        read(file)


@ROOT
@pytest.mark.parametrize("what", ["file", "parent"])
@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([(USER, 6, OTHER), (MASK, 7, 0xFFFFFFFF)], "user 65534"),
        ([(GROUP, 2, 100), (MASK, 7, 0xFFFFFFFF)], "group 100"),
        ([(GROUP_OWNER, 6, 0xFFFFFFFF), (USER, 4, OTHER), (MASK, 6, 0xFFFFFFFF)], "group 0"),
        # The mask takes the right away, and the mode shows it.
        ([(USER, 6, OTHER), (MASK, 5, 0xFFFFFFFF)], None),
        # The mode's group bits are the mask: nobody but root is let by it.
        ([(USER, 6, 0), (USER, 4, OTHER), (MASK, 7, 0xFFFFFFFF)], None),
        ([(GROUP, 5, 100), (MASK, 7, 0xFFFFFFFF)], None),
    ],
)
def test_access_lists_count(file, what, entries, said):
    place = file if what == "file" else file.parent
    give_list(place, *entries)
    if said is None:
        assert read(file) == "believed"
        return
    with pytest.raises(
        PolicyError, match=rf"can be changed by others \(mode 0\d+\): {said}"
    ) as raised:
        read(file)
    assert str(place) in raised.value.message
    if said.startswith("user"):
        assert "setfacl -b" in raised.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"\1\0\0\0", struct.pack("<I", 3), struct.pack("<I", 2) + b"x"]
)
def test_an_access_list_that_is_not_understood_is_refused(file, monkeypatch, data):
    file.chmod(0o664)
    # No file system lets such a list be set.
    monkeypatch.setattr(os, "getxattr", lambda *_: data)
    with pytest.raises(PolicyError, match="access list of an unknown kind"):
        ownership.problem_of(str(file))


@ROOT
@pytest.mark.parametrize("where", ["file", "directory", "relative", "chain", "upwards"])
def test_links_of_root_are_followed(file, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    if where == "file":
        (tmp_path / "link").symlink_to(file)
        assert read(tmp_path / "link") == "believed"
    elif where == "directory":
        (tmp_path / "link").symlink_to("a")
        assert read(tmp_path / "link" / "b" / "config.toml") == "believed"
    elif where == "relative":
        assert read(Path("a/./b//config.toml")) == "believed"
    elif where == "chain":
        (tmp_path / "one").symlink_to("two")
        (tmp_path / "two").symlink_to(file)
        assert read(tmp_path / "one") == "believed"
    else:
        (tmp_path / "a" / "link").symlink_to("../a/b/../b/config.toml")
        assert read(tmp_path / "a" / "link") == "believed"


@ROOT
def test_the_way_of_a_link_counts_not_the_way_that_was_written(file, tmp_path):
    unsafe = tmp_path / "unsafe"
    unsafe.mkdir()
    unsafe.chmod(0o777)
    (unsafe / "link").symlink_to(file)
    with pytest.raises(PolicyError, match="unsafe can be changed"):  # its link could be exchanged
        read(unsafe / "link")
    os.chown(file, OTHER, 0)
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(PolicyError, match="belongs to user 65534"):
        read(tmp_path / "link")
    # A ".." after a link leads to the parent of where it leads, not to the parent of the link.
    os.chown(file, 0, 0)
    (tmp_path / "into").symlink_to("a/b")
    (tmp_path / "config.toml").write_text("another")
    assert read(tmp_path / "into" / ".." / "b" / "config.toml") == "believed"


@ROOT
def test_a_link_of_somebody_else_in_a_sticky_directory_is_refused(file, tmp_path):
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "link").symlink_to(file)
    assert read(sticky / "link") == "believed"
    os.lchown(sticky / "link", OTHER, 0)
    with pytest.raises(PolicyError, match=r"sticky/link is refused: it is a link of user 65534"):
        read(sticky / "link")


@ROOT
def test_the_file_that_was_looked_at_is_the_one_that_is_read(file, monkeypatch):
    """Whoever exchanges it after the look has no effect: it is opened by its descriptor."""
    look = ownership._problem

    def exchange(fd, info, owners, *, entry_only):
        found = look(fd, info, owners, entry_only=entry_only)
        if not entry_only:
            file.rename(file.with_name("before"))
            file.write_text("exchanged")
        return found

    monkeypatch.setattr(ownership, "_problem", exchange)
    assert read(file) == "believed"
    assert file.read_text() == "exchanged"


@ROOT
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("missing", FileNotFoundError),
        ("a/missing/config.toml", FileNotFoundError),
        ("a/b/config.toml/x", NotADirectoryError),
        ("a/b/config.toml/..", NotADirectoryError),
        ("a/b/config.toml/", NotADirectoryError),
        ("loop", OSError),
        ("dangling", FileNotFoundError),
        ("x" * 5000, OSError),
        ("x" * 300, OSError),
    ],
)
def test_what_cannot_be_opened_fails_as_open_does(file, tmp_path, name, error):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(error):
        os.close(ownership.open_owned(f"{tmp_path}/{name}", "the file"))


def test_an_empty_path_and_no_path(file):
    with pytest.raises(FileNotFoundError):
        ownership.problem_of("")
    with pytest.raises(ValueError, match="null"):
        ownership.problem_of(f"{file}\0x")


@ROOT
def test_no_descriptor_is_left_open(file, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for path in (file, tmp_path / "missing", file / "x"):
        with contextlib.suppress(OSError):
            os.close(ownership.open_owned(str(path), "the file"))
    os.chown(file, OTHER, 0)
    with pytest.raises(PolicyError):
        read(file)
    ownership.make_private(f"{tmp_path}/x/y", "the directory")
    assert len(os.listdir("/proc/self/fd")) == before


@ROOT
@pytest.mark.parametrize(
    ("owner", "mode", "said"),
    [(0, 0o600, ""), (0, 0o644, ""), (OTHER, 0o600, "belongs to"), (0, 0o666, "can be changed")],
)
def test_a_file_of_the_command_line_is_looked_at_alone(file, owner, mode, said):
    file.parent.chmod(0o777)  # what is above it is the user's business
    os.chown(file, owner, 0)
    file.chmod(mode)
    found = ownership.concern(str(file))
    assert said in found
    assert bool(said) == bool(found)


@ROOT
def test_pipes_and_what_is_not_there_are_no_concern(tmp_path):
    end, other = os.pipe()
    assert ownership.concern(f"/proc/self/fd/{end}") == ""
    assert ownership.concern(f"/dev/fd/{end}") == ""
    assert ownership.concern(f"{tmp_path}/missing") == ""
    os.close(end)
    os.close(other)


# --- Private directories.


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077, 0o777])
def test_every_level_of_a_private_directory_is_ours_whatever_the_umask(tmp_path, umask):
    old = os.umask(umask)
    try:
        ownership.make_private(f"{tmp_path}/one/two/three", "the state directory")
    finally:
        os.umask(old)
    for name in ("one", "one/two", "one/two/three"):
        assert mode(tmp_path / name) == 0o700, name


def test_a_directory_for_all_readers(tmp_path):
    old = os.umask(0o077)
    try:
        ownership.make_private(f"{tmp_path}/one/two", "the directory", mode=0o755, exact=False)
    finally:
        os.umask(old)
    assert (mode(tmp_path / "one"), mode(tmp_path / "one/two")) == (0o755, 0o755)


@pytest.mark.parametrize(("exact", "expected"), [(True, 0o700), (False, 0o755)])
def test_one_that_others_could_only_read_is_closed_or_left(tmp_path, exact, expected):
    place = tmp_path / "state"
    place.mkdir()
    place.chmod(0o755)
    ownership.make_private(str(place), "the state directory", exact=exact)
    assert mode(place) == expected


@ROOT
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("level", ["leaf", "above"])
@pytest.mark.parametrize(
    ("owner", "bits", "said"),
    [
        (OTHER, 0o700, "belongs to user 65534"),
        (0, 0o777, "everybody"),
        (0, 0o770, "group 0"),
        (0, 0o707, "everybody"),
    ],
)
def test_one_that_others_could_write_is_refused(tmp_path, level, owner, bits, said, exact):
    place = tmp_path / "above" / "leaf"
    place.mkdir(parents=True)
    found = place if level == "leaf" else place.parent
    os.chown(found, owner, 0)
    found.chmod(bits)
    with pytest.raises(SystemEnvironmentError) as raised:
        ownership.make_private(str(place), "the state directory", exact=exact)
    assert said in raised.value.message
    assert "the state directory" in raised.value.message
    with pytest.raises(SystemEnvironmentError):  # nothing is made where others can write
        ownership.make_private(f"{place}/more", "the state directory", exact=exact)
    assert os.listdir(place) == []


@ROOT
def test_a_sticky_directory_will_do_above_it_but_is_not_private(tmp_path):
    tmp_path.chmod(0o1777)
    ownership.make_private(f"{tmp_path}/state", "the state directory")
    with pytest.raises(SystemEnvironmentError, match="can be changed"):
        ownership.make_private(str(tmp_path), "the state directory", exact=False)
    assert mode(tmp_path) == 0o1777


@ROOT
def test_what_somebody_put_there_first_is_not_taken(tmp_path):
    tmp_path.chmod(0o1777)
    (tmp_path / "mine").mkdir(0o700)
    (tmp_path / "state").symlink_to("mine")
    os.lchown(tmp_path / "state", OTHER, OTHER)
    with pytest.raises(SystemEnvironmentError, match="is a link of user 65534"):
        ownership.make_private(f"{tmp_path}/state", "the state directory")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemEnvironmentError, match="Not a directory"):
        ownership.make_private(f"{tmp_path}/file", "the state directory")


def test_one_that_is_not_there_is_not_made_for_a_reader(tmp_path):
    with pytest.raises(FileNotFoundError):
        ownership.private_directory(f"{tmp_path}/state", "the state directory", make=False)
    assert os.listdir(tmp_path) == []


def as_another_user(function, *arguments) -> list[str]:
    """What it returns, in a process of another user; the modules are loaded already."""
    end, other = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(OTHER)
            os.setuid(OTHER)
            os.umask(0)
            os.write(other, "\n".join(function(*arguments)).encode())
            os._exit(0)
        except BaseException as error:
            os.write(other, repr(error).encode())
        finally:
            os._exit(1)
    os.close(other)
    with open(end) as file:
        lines = file.read().splitlines()
    assert os.waitpid(pid, 0)[1] == 0, lines
    return lines


def what_a_user_sees(home: str) -> list[str]:
    state = f"{home}/state"
    ownership.make_private(f"{state}/x", "the state directory")
    said = [f"{mode(state):04o} {mode(state + '/x'):04o}"]
    os.chmod(state, 0o770)  # users have groups of their own, and umask 002
    ownership.make_private(f"{state}/x", "the state directory")
    os.chmod(state, 0o707)
    try:
        ownership.make_private(f"{state}/x", "the state directory")
    except SystemEnvironmentError as error:
        said.append(error.message)
    with open(ownership.open_owned(f"{home}/theirs", "the file")) as file:
        said.append(file.read())
    return said


@ROOT
def test_users_have_private_directories_of_their_own_and_open_what_they_like():
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        Path(home, "theirs").write_text("read")
        Path(home, "theirs").chmod(0o666)
        os.chown(home, OTHER, OTHER)
        modes, refused, text = as_another_user(what_a_user_sees, home)
    assert modes == "0700 0700"
    assert "can be changed by others (mode 0707): everybody" in refused
    assert text == "read"


@ROOT
def test_root_runs_no_program_of_others_that_path_finds(file, monkeypatch):
    tool = file.with_name("tool")
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    assert ownership.program("tool") == str(tool)
    os.chown(tool.parent, OTHER, OTHER)
    with pytest.raises(PolicyError, match=r"the program .*tool is refused"):
        ownership.program("tool")
    with pytest.raises(FileNotFoundError):
        ownership.program("no-such-tool")

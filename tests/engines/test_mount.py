"""`sealpoint mount` and `umount`: a plain view, right to the byte, for root alone, and gone when it should be."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sealpoint.checkpoint.opening.access import signing_by
from sealpoint.keys import load_recipient, load_signer
from tests.checkpoint.checkpoint_helpers import attributes, seal_objects
from tests.engines import dropin as dropin_tools
from tests.real import harness, leaks, sealed

StartWorkload = Callable[..., harness.Workload]
Mount = Callable[..., sealed.Result]


@pytest.fixture
def point(tmp_path: Path) -> Path:
    path = tmp_path / "mounted here"
    path.mkdir()
    return path


@pytest.fixture
def mount(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, point: Path
) -> Iterator[Callable[..., sealed.Result]]:
    """mount(FILE) mounts on `point`; unmounted in the end, and then nothing is left."""

    def run(file: Path, *options: str) -> sealed.Result:
        return sealpoint.run("mount", file, point, *(options or keys.open))

    yield run
    while dropin_tools.sealed_mounts():
        subprocess.run(["umount", "-l", point], check=True)
    sealpoint.settle()
    assert sealpoint.left() == []


@pytest.fixture
def archive(tmp_path: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys) -> Path:
    """A sealed archive with directories, links, an empty file, a large one and names that are not ASCII."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:

        def add(
            name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
        ) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(content)
            member.mode, member.mtime = 0o755 if kind == tarfile.DIRTYPE else 0o644, 1_700_000_000
            tar.addfile(member, io.BytesIO(content))

        add("empty", b"")
        add("directory", kind=tarfile.DIRTYPE)
        add("directory/empty directory", kind=tarfile.DIRTYPE)
        add("directory/ünïcode ☃", b"snow")
        add("directory/large", random.Random(1).randbytes((5 << 20) + 123))
        add("zeros", bytes(3 << 20))
        add("link", kind=tarfile.SYMTYPE, link="directory/large")
        add("second name", kind=tarfile.LNKTYPE, link="directory/large")
        for number in range(300):
            add(f"many/{number:04}", b"%d" % number)
    path = tmp_path / "archive.tar"
    path.write_bytes(data.getvalue())
    file = tmp_path / "archive.sealed"
    sealpoint.run("seal", path, "-o", file, *keys.seal, "--as-files").ok()
    return file


def tree(directory: Path) -> dict[str, tuple[str, object]]:
    """Everything below a directory: kind, and size with digest, or where a link leads."""
    found: dict[str, tuple[str, object]] = {}
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("directory", None)
        else:
            data = path.read_bytes()
            assert path.stat().st_size == len(data)
            found[name] = ("file", hashlib.sha256(data).hexdigest())
    return found


def dumped(
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    running: harness.Workload,
    file: Path,
    *options: str,
) -> None:
    sealpoint.run("dump", "-t", str(running.pid), "-o", file, *keys.seal, *options).ok()


def test_the_view_is_what_open_gives(
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    archive: Path,
    mount: Mount,
    point: Path,
    tmp_path: Path,
) -> None:
    mount(archive).ok()
    sealpoint.run("open", archive, "-o", tmp_path / "opened", *keys.open).ok()
    assert tree(point) == tree(tmp_path / "opened")
    assert len(os.listdir(point / "many")) == 300
    assert (point / "zeros").stat().st_mtime == 1_700_000_000
    sealpoint.run("umount", point).ok()
    assert os.listdir(point) == []


@pytest.mark.alone
def test_stock_criu_restores_from_it_and_crit_reads_it(
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    criu: Path,
    workload: StartWorkload,
    mount: Mount,
    point: Path,
    tmp_path: Path,
    work: Path,
) -> None:
    running = workload("tree")
    before = running.assert_intact()
    dumped(sealpoint, keys, running, tmp_path / "dump.sealed")
    running.wait_gone()
    with leaks.FileWatcher(running.needles, [tmp_path], ignore=[running.dir]) as watcher:
        mount(tmp_path / "dump.sealed").ok()
        crit = criu.parent / "crit"
        if os.access(crit, os.X_OK):
            shown = subprocess.run(
                [crit, "show", point / "pstree.img"], capture_output=True, text=True
            )
            assert f'"pid": {running.pid}' in shown.stdout, shown
            listed = subprocess.run([crit, "x", point, "ps"], capture_output=True, text=True)
            assert str(running.pids["grandchild"]) in listed.stdout, listed
        arguments = ["restore", "-d", "-D", point, "-W", work, "-o", "restore.log"]
        with open(os.devnull, "r+b") as null:  # which the restored tree shall not keep
            done = subprocess.run([criu, *arguments], stdin=null, stdout=null, stderr=null)
        assert done.returncode == 0, (work / "restore.log").read_text()
        running.assert_continues(before)
        sealpoint.run("umount", point).ok()
    assert watcher.leaks() == []


def test_a_metadata_identity_sees_metadata_only(
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    workload: StartWorkload,
    mount: Mount,
    point: Path,
    tmp_path: Path,
) -> None:
    running = workload("secret")
    other = ["--metadata-recipient", keys.path("other/recipient.pub")]
    dumped(sealpoint, keys, running, tmp_path / "dump.sealed", *other)
    result = mount(
        tmp_path / "dump.sealed",
        "-i",
        keys.path("other/identity.key"),
        "--trust",
        keys.path("signer.pub"),
    )
    result.ok()
    assert "metadata only" in result.err
    names = os.listdir(point)
    assert "pstree.img" in names
    assert not [name for name in names if name.startswith("pages-")]
    assert leaks.scan_directory(point, running.needles) == {}


def test_nothing_can_be_written(archive: Path, mount: Mount, point: Path) -> None:
    mount(archive).ok()
    attempts: list[Callable[[], object]] = [
        lambda: (point / "new").write_bytes(b"x"),
        lambda: (point / "empty").open("r+b"),
        lambda: os.truncate(point / "zeros", 1),
        lambda: os.unlink(point / "empty"),
        lambda: os.mkdir(point / "new"),
        lambda: os.rename(point / "empty", point / "full"),
        lambda: os.symlink("a", point / "b"),
        lambda: os.link(point / "empty", point / "b"),
        lambda: os.chmod(point / "empty", 0o777),
        lambda: os.utime(point / "empty"),
        lambda: os.setxattr(point / "empty", "user.a", b"b"),
    ]
    before = tree(point)
    for attempt in attempts:
        with pytest.raises(OSError):
            attempt()
    assert tree(point) == before


def test_while_it_is_used_umount_wants_to_be_told_so(
    sealpoint: sealed.Sealpoint, archive: Path, mount: Mount, point: Path
) -> None:
    mount(archive).ok()
    with (point / "directory/large").open("rb") as file:
        sealpoint.run("umount", point).fails(6, "busy", "--lazy")
        first = file.read(1000)
        sealpoint.run("umount", "--lazy", point).ok()
        assert os.listdir(point) == []
        rest = file.read()
    assert first + rest == random.Random(1).randbytes((5 << 20) + 123)


def test_umount_takes_only_what_mount_made(sealpoint: sealed.Sealpoint, point: Path) -> None:
    sealpoint.run("umount", point).fails(2, "no sealed file is mounted")
    sealpoint.run("umount", "/proc").fails(2, "no sealed file is mounted")
    assert os.path.exists("/proc/self")


def server(sealpoint: sealed.Sealpoint) -> int:
    [pid] = sealpoint.processes()
    return pid


def test_a_killed_server_leaves_a_dead_mount_that_umount_takes_away(
    sealpoint: sealed.Sealpoint, archive: Path, mount: Mount, point: Path
) -> None:
    mount(archive).ok()
    os.kill(server(sealpoint), signal.SIGKILL)
    sealpoint.settle()
    with pytest.raises(OSError):
        os.listdir(point)
    sealpoint.run("umount", point).ok()
    assert os.listdir(point) == []
    mount(archive).ok()
    assert (point / "directory/ünïcode ☃").read_bytes() == b"snow"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_end_takes_its_mount_with_it(
    sealpoint: sealed.Sealpoint, archive: Path, mount: Mount, point: Path, number: int
) -> None:
    mount(archive).ok()
    os.kill(server(sealpoint), number)
    sealpoint.settle()
    assert os.listdir(point) == []
    assert dropin_tools.sealed_mounts() == []


def test_in_the_foreground_it_serves_until_it_is_unmounted_or_interrupted(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, archive: Path, mount: Mount, point: Path
) -> None:
    for interrupted in (False, True):
        command = sealpoint.start("mount", "--foreground", archive, point, *keys.open)
        sealed.wait_until(lambda: os.listdir(point), "it is mounted", 20)
        if interrupted:
            command.signal(signal.SIGINT)
        else:
            sealpoint.run("umount", point).ok()
        assert command.wait().code == (130 if interrupted else 0)
        assert os.listdir(point) == []


def test_what_cannot_be_mounted_is_refused_and_nothing_is_mounted(
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    archive: Path,
    mount: Mount,
    point: Path,
    tmp_path: Path,
) -> None:
    def damage(at: float) -> Path:
        data = bytearray(archive.read_bytes())
        data[int(len(data) * at)] ^= 1
        path = tmp_path / "damaged.sealed"
        path.write_bytes(data)
        return path

    mount(damage(0.5)).fails(3)
    mount(damage(0.05)).fails(3)
    plain = tmp_path / "plain"
    plain.write_bytes(b"plain" * 1000)
    mount(plain).fails(3)
    mount(tmp_path / "nothing").fails(2)
    mount(archive, "-i", keys.path("other/identity.key"), "--trust", keys.path("signer.pub")).fails(
        4
    )
    mount(archive, "-i", keys.path("identity.key"), "--trust", keys.path("other/signer.pub")).fails(
        5
    )
    sealpoint.run("mount", archive, tmp_path / "nowhere", *keys.open).fails(2, "not a directory")
    sealpoint.run("mount", archive, archive, *keys.open).fails(2, "not a directory")
    assert dropin_tools.sealed_mounts() == []


def test_a_file_that_changes_under_the_mount_gives_an_error_and_never_wrong_bytes(
    sealpoint: sealed.Sealpoint, archive: Path, mount: Mount, point: Path
) -> None:
    wanted = random.Random(1).randbytes((5 << 20) + 123)
    mount(archive).ok()
    data = bytearray(archive.read_bytes())
    for at in range(len(data) // 10, len(data), len(data) // 50):
        data[at] ^= 0x80
    archive.write_bytes(data)
    errors = 0
    with open(point / "directory/large", "rb", buffering=0) as file:
        for offset in range(0, len(wanted), 1 << 16):
            try:
                piece = os.pread(file.fileno(), 1 << 16, offset)
            except OSError:
                errors += 1
            else:
                assert piece == wanted[offset : offset + (1 << 16)]
    assert errors
    archive.write_bytes(b"")
    with pytest.raises(OSError):
        (point / "directory/large").read_bytes()


def test_twenty_threads_that_read_at_random_get_the_right_bytes(
    archive: Path, mount: Mount, point: Path
) -> None:
    wanted = random.Random(1).randbytes((5 << 20) + 123)
    mount(archive).ok()
    problems: list[object] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        try:
            with open(point / "directory/large", "rb", buffering=0) as file:
                for _ in range(60):
                    offset, size = (
                        chance.randrange(len(wanted) + 10),
                        chance.choice([1, 4096, 100_000, 1 << 20]),
                    )
                    if os.pread(file.fileno(), size, offset) != wanted[offset : offset + size]:
                        problems.append((seed, offset, size))
        except OSError as error:
            problems.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.slow
def test_the_server_stays_small_with_a_large_file(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, mount: Mount, point: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "large").open("wb") as file:
        block = os.urandom(1 << 20)
        for number in range(512):
            file.write(number.to_bytes(8, "big") + block[8:])
    sealpoint.run(
        "seal",
        source,
        "-o",
        tmp_path / "large.sealed",
        *keys.seal,
        "--as-files",
        "--compress",
        "none",
    ).ok()
    mount(tmp_path / "large.sealed").ok()
    with open(point / "large", "rb", buffering=0) as file:
        for number in range(512):
            assert file.read(1 << 20)[:8] == number.to_bytes(8, "big")
    status = Path(f"/proc/{server(sealpoint)}/status").read_text()
    [peak] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    assert peak <= 200 * 1024, f"{peak} KiB"


def test_only_root_can_look_in(archive: Path, mount: Mount, point: Path) -> None:
    mount(archive).ok()
    for directory in (point, *point.parents):
        if directory.stat().st_mode & 0o5 != 0o5 and directory != point:
            os.chmod(directory, 0o755)
    for command in (["ls", point], ["cat", point / "empty"], ["stat", point / "empty"]):
        done = subprocess.run(
            command, user=65534, group=65534, extra_groups=[], capture_output=True
        )
        assert done.returncode != 0
        assert b"ermission denied" in done.stderr


def test_hostile_names_and_links_lead_nobody_out(
    keys: sealed.Keys, mount: Mount, point: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("outside")
    objects = {
        "good": (b"good", None),
        "absolute": (b"", attributes("symlink", link=str(secret))),
        "climbs": (b"", attributes("symlink", link="../secret")),
        "root": (b"", attributes("symlink", link="/")),
        "loop": (b"", attributes("symlink", link="loop")),
        "second": (b"", attributes("hardlink", link="good")),
        "nowhere": (b"", attributes("hardlink", link="../secret")),
        "circle": (b"", attributes("hardlink", link="circle")),
        "to a link": (b"", attributes("hardlink", link="absolute")),
    }

    sealer = SimpleNamespace(
        recipient=load_recipient(keys.path("recipient.pub")),
        signing=signing_by(load_signer(keys.path("signer.key"))),
    )
    file = tmp_path / "hostile.sealed"
    seal_objects(sealer, file, objects)
    mount(file).ok()
    assert sorted(os.listdir(point)) == ["absolute", "climbs", "good", "loop", "root", "second"]
    assert (point / "second").read_bytes() == b"good"
    assert os.readlink(point / "absolute") == str(secret)
    for name in ("absolute", "climbs", "loop"):
        with pytest.raises(OSError):
            (point / name).read_bytes()
    with pytest.raises(OSError):
        os.listdir(point / "root")

"""What is sealed comes back as it was: directories, archives, the archives of real engines."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
import tracemalloc

import pytest
import zstandard

from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.checkpoint.tables import summary
from sealpoint.criu.roles import SUMMARY_NAME, role_of
from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import Role, Suite
from tests.checkpoint.checkpoint_helpers import (
    attributes,
    fixtures,
    listing,
    make_tar,
    member,
    open_to,
    opened,
    read_tar,
    seal_objects,
    seal_path,
)

COMPRESSORS = {
    "none": bytes,
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}
ARCHIVE = make_tar(
    member("./", kind=tarfile.DIRTYPE, mode=0o700),
    member("./checkpoint", kind=tarfile.DIRTYPE, mode=0o700, mtime=5),
    member("./checkpoint/pages-1.img", os.urandom(200_000), mode=0o600),
    member("./checkpoint/core-1.img", b"core", mode=0o644, uid=1000, gid=7, uname="me", mtime=7),
    member("./checkpoint/parent", kind=tarfile.SYMTYPE, linkname="../pre-checkpoint", mode=0o777),
    member("./copy", kind=tarfile.LNKTYPE, linkname="./checkpoint/core-1.img", mode=0o644),
    member("./" + "long/" * 40 + "name", b"x", pax_headers={"mtime": "1700000000.25"}),
    member("./suid", b"s", mode=0o6755, pax_headers={"SCHILY.xattr.user.note": "a\nb"}),
    member("./null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
    member("./pipe", kind=tarfile.FIFOTYPE),
    member("./empty"),
)


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_an_archive_comes_back_member_by_member(keys, tmp_path, compression):
    source = tmp_path / "named-anything.pdf"
    source.write_bytes(COMPRESSORS[compression](ARCHIVE))
    result = seal_path(keys, source, tmp_path / "sealed")
    assert result.objects == 10
    for ending in (".tar", ".tar.gz", ".tgz", ".tar.zst"):
        out = open_to(keys, tmp_path / "sealed", tmp_path / ("out" + ending))
        with open(out, "rb") as file:
            assert read_tar(file.read()) == read_tar(ARCHIVE)
        assert os.stat(out).st_mode & 0o777 == 0o600
    seal_path(keys, tmp_path / "out.tar", tmp_path / "again")
    again = open_to(keys, tmp_path / "again", tmp_path / "again.tar")
    with open(again, "rb") as one, open(tmp_path / "out.tar", "rb") as other:
        assert one.read() == other.read()
    with opened(keys, tmp_path / "sealed") as checkpoint:
        properties = checkpoint.manifests[Role.METADATA].properties
        assert properties == {
            "layout": "archive",
            "compression": compression,
            "kind": "files",
        }


@pytest.mark.skipif(fixtures() is None, reason="no archives of engines (SEALPOINT_FIXTURES)")
@pytest.mark.parametrize(
    "name",
    [
        "containerd-2.1.9-cri.tar",
        "podman-crun.tar.zst",
        "podman-runc-pre.tar",
        "podman-runc-with-previous.tar",
        "pre-dump-chain.tar.zst",
    ],
)
def test_the_archive_of_a_real_engine_comes_back_twice(keys, tmp_path, name):
    source = fixtures() / name
    before = read_tar(source.read_bytes())
    seal_path(keys, source, tmp_path / "sealed")
    out = open_to(keys, tmp_path / "sealed", tmp_path / "out.tar")
    with open(out, "rb") as file:
        assert read_tar(file.read()) == before
    seal_path(keys, out, tmp_path / "sealed2")
    again = open_to(keys, tmp_path / "sealed2", tmp_path / "out2.tar")
    with open(out, "rb") as one, open(again, "rb") as two:
        assert one.read() == two.read()
    directory = open_to(keys, tmp_path / "sealed", tmp_path / "directory")
    assert listing(directory) == {n.rstrip("/") for n in before}
    with opened(keys, tmp_path / "sealed") as checkpoint:
        for entry in checkpoint.entries.values():
            assert entry.role is role_of(entry.name)
        tasks = summary.decode(checkpoint.read_bytes(checkpoint.entry(SUMMARY_NAME)))["tasks"]
    assert all(t["command"] and int(t["memory"]) for t in tasks)
    assert bool(tasks) == ("checkpoint/pstree.img" in before)


def test_a_directory_comes_back_with_modes_times_and_links(keys, tmp_path):
    source = tmp_path / "images"
    (source / "sub" / "deeper").mkdir(parents=True)
    (source / "pages-1.img").write_bytes(os.urandom(5_000_000))
    (source / "inventory.img").write_bytes(b"i")
    (source / "sub" / "empty").touch()
    (source / "sub" / "up").symlink_to("../inventory.img")
    (source / "odd name \u202e\n").write_bytes(b"o")
    os.chmod(source / "inventory.img", 0o640)
    os.chmod(source / "sub" / "deeper", 0o500)
    os.utime(source / "inventory.img", ns=(1, 1234567890123456789))
    os.utime(source / "sub", ns=(1, 5))
    seal_path(keys, source, tmp_path / "sealed")
    out = tmp_path / "out"
    open_to(keys, tmp_path / "sealed", out)
    assert listing(out) == listing(source)
    for name in listing(source):
        one, two = os.lstat(source / name), os.lstat(out / name)
        assert (one.st_mode, one.st_uid, one.st_mtime_ns, one.st_size * (one.st_nlink == 1)) == (
            two.st_mode,
            two.st_uid,
            two.st_mtime_ns,
            two.st_size * (two.st_nlink == 1),
        )
    assert (out / "pages-1.img").read_bytes() == (source / "pages-1.img").read_bytes()
    assert os.readlink(out / "sub" / "up") == "../inventory.img"
    assert os.stat(out).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("compression", ["auto", "none", "lz4", "zstd"])
@pytest.mark.parametrize("suite", Suite)
def test_every_suite_and_compression_comes_back(keys, tmp_path, suite, compression):
    (tmp_path / "d").mkdir()
    data = bytes(3_000_000) + b"abc" * 1_000_000 + os.urandom(100_000)
    (tmp_path / "d" / "pages-1.img").write_bytes(data)
    seal_path(keys, tmp_path / "d", tmp_path / "s", suite=suite, compression=compression)
    open_to(keys, tmp_path / "s", tmp_path / "o")
    assert (tmp_path / "o" / "pages-1.img").read_bytes() == data


def test_the_roles_follow_the_table(keys, tmp_path):
    names = {
        "inventory.img": "metadata",
        "pstree.img": "metadata",
        "ids-1.img": "metadata",
        "files.img": "metadata",
        "fdinfo-12.img": "metadata",
        "mountpoints-12.img": "metadata",
        "netdev-9.img": "metadata",
        "cgroup.img": "metadata",
        "utsns-1.img": "metadata",
        "timens-0.img": "metadata",
        "stats-dump": "metadata",
        "stats-restore": "metadata",
        "core-1.img": "memory",
        "mm-1.img": "memory",
        "pagemap-1.img": "memory",
        "pages-1.img": "memory",
        "ghost-file-1.img": "memory",
        "descriptors.json": "memory",
        "fdinfo-x.img": "memory",
        "ids-1.img.bak": "memory",
        "xinventory.img": "memory",
        "whatever": "memory",
    }
    archive = {"config.dump": "memory", "spec.dump": "memory", "dump.log": "memory"}
    for prefix, role in (("", 1), ("checkpoint/", 1), ("pre-checkpoint/", 1), ("a/checkpoint/", 0)):
        archive |= {prefix + n: r if role else "memory" for n, r in names.items()}
    (tmp_path / "a.tar").write_bytes(make_tar(*(member(n, b"1") for n in archive)))
    seal_path(keys, tmp_path / "a.tar", tmp_path / "sealed")
    with opened(keys, tmp_path / "sealed") as checkpoint:
        roles = {e.name: e.role.value for e in checkpoint.entries.values()}
    assert roles == archive | {SUMMARY_NAME: "metadata"}


def test_open_leaves_out_the_summary_unless_asked_for_it(keys, tmp_path):
    seal_objects(keys, tmp_path / "s", {"inventory.img": (b"1", None)})
    open_to(keys, tmp_path / "s", tmp_path / "o")
    assert listing(tmp_path / "o") == {"inventory.img"}
    open_to(keys, tmp_path / "s", tmp_path / "p", only=["sealpoint-*"])
    assert listing(tmp_path / "p") == {SUMMARY_NAME}


def test_a_glob_is_for_the_last_part_of_a_name_or_with_a_slash_for_all_of_it(keys, tmp_path):
    names = ["inventory.img", "checkpoint/core-1.img", "checkpoint/core-22.img", "x/core-1.img"]
    seal_objects(keys, tmp_path / "s", {n: (n.encode(), None) for n in names})

    def found(number, *only):
        return listing(open_to(keys, tmp_path / "s", tmp_path / f"o{number}", only=only))

    assert found(1, "core-?.img") == {"checkpoint/core-1.img", "x/core-1.img", "x", "checkpoint"}
    assert found(2, "checkpoint/*") == {
        "checkpoint",
        "checkpoint/core-1.img",
        "checkpoint/core-22.img",
    }
    assert found(3, "inv*", "core-22*") == {
        "inventory.img",
        "checkpoint",
        "checkpoint/core-22.img",
    }
    with pytest.raises(UsageError, match="--only"):
        found(4, "nothing")
    assert not (tmp_path / "o4").exists()


def test_open_of_an_existing_empty_directory_keeps_its_mode(keys, tmp_path):
    seal_objects(keys, tmp_path / "s", {"a/b": (b"1", None)})
    out = tmp_path / "o"
    out.mkdir()
    out.chmod(0o750)
    open_to(keys, tmp_path / "s", out)
    assert listing(out) == {"a", "a/b"}
    assert out.stat().st_mode & 0o777 == 0o750


def test_open_through_a_link_to_a_directory_fills_that(keys, tmp_path):
    seal_objects(keys, tmp_path / "s", {"a": (b"1", None)})
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    open_to(keys, tmp_path / "s", tmp_path / "link")
    assert listing(tmp_path / "real") == {"a"}
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("existing", ["file", "directory"])
def test_open_keeps_what_exists_unless_forced(keys, tmp_path, existing):
    seal_objects(keys, tmp_path / "s", {"a": (b"1", None)})
    out = tmp_path / "o"
    if existing == "file":
        out.write_bytes(b"old")
    else:
        out.mkdir()
        (out / "old").touch()
    with pytest.raises(UsageError, match="exists"):
        open_to(keys, tmp_path / "s", out)
    assert out.is_file() or listing(out) == {"old"}
    open_to(keys, tmp_path / "s", out, force=True)
    assert listing(out) == {"a"}
    assert listing(tmp_path) == {"s", "o", "o/a"}


def test_force_never_replaces_the_current_directory_or_the_home(keys, tmp_path, monkeypatch):
    seal_objects(keys, tmp_path / "s", {"a": (b"1", None)})
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "here" / "precious").touch()
    monkeypatch.chdir(tmp_path / "here" / "below")
    for target in ("..", tmp_path / "here", tmp_path, "/"):
        with pytest.raises(UsageError, match="does not replace"):
            open_to(keys, tmp_path / "s", target, force=True)
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    with pytest.raises(UsageError, match="does not replace"):
        open_to(keys, tmp_path / "s", tmp_path / "here", force=True)
    assert (tmp_path / "here" / "precious").exists()


def test_an_output_archive_that_exists_is_kept_unless_forced(keys, tmp_path):
    seal_objects(keys, tmp_path / "s", {"a": (b"1", None)})
    out = tmp_path / "o.tar"
    out.write_bytes(b"old")
    with pytest.raises(UsageError, match="exists"):
        open_to(keys, tmp_path / "s", out)
    assert out.read_bytes() == b"old"
    open_to(keys, tmp_path / "s", out, force=True)
    assert list(read_tar(out.read_bytes())) == ["a"]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", UsageError, "neither a directory nor a tar"),
        (b"x", UsageError, "neither a directory nor a tar"),
        (os.urandom(5000), UsageError, "neither a directory nor a tar"),
        (b"%PDF" * 1000, UsageError, "neither a directory nor a tar"),
        (gzip.compress(b"text", mtime=0), UsageError, "neither a directory nor a tar"),
        (b"\x1f\x8b" + bytes(600), FileError, "damaged gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), UsageError, "neither a directory nor a tar"),
        (bytes(10240), UsageError, "empty"),
        (make_tar(member("./", kind=tarfile.DIRTYPE)), UsageError, "empty"),
        (ARCHIVE[:-20480], FileError, "cut short"),
        (ARCHIVE[:100_000], FileError, "cut short"),
        (ARCHIVE + b"garbage", FileError, "follows the end"),
        (gzip.compress(ARCHIVE, mtime=0)[:-1], FileError, "damaged gzip"),
        (gzip.compress(ARCHIVE, mtime=0)[:-5000], FileError, "damaged gzip"),
        (gzip.compress(ARCHIVE, mtime=0) + b"garbage", FileError, "damaged gzip"),
        (COMPRESSORS["zstd"](ARCHIVE)[:-9000], FileError, "cut short"),
        (COMPRESSORS["zstd"](ARCHIVE) + b"garbage", FileError, "damaged zstd"),
        (make_tar(member("a"), member("./a")), FileError, "twice"),
        (make_tar(member("a"), member("a/b")), FileError, "not a directory"),
        (make_tar(member("../a")), FileError, "relative path"),
        (make_tar(member("/a")), FileError, "relative path"),
        (make_tar(member("a/../b")), FileError, "relative path"),
        (make_tar(member("a//b")), FileError, "relative path"),
        (make_tar(member("n" * 256)), FileError, "relative path"),
        (make_tar(member("\udcff")), FileError, "UTF-8"),
        (make_tar(member("s", kind=tarfile.SYMTYPE, linkname="\udcff")), FileError, "UTF-8"),
        (make_tar(member("s", kind=tarfile.SYMTYPE, linkname="")), FileError, "link to nothing"),
        (make_tar(member("a", uid=2**33)), FileError, "uid"),
        (make_tar(member("a", uname="u" * 300)), FileError, "user"),
        (make_tar(member(SUMMARY_NAME)), UsageError, "sealing adds its own"),
    ],
)
def test_what_is_no_good_archive_is_refused_with_words(keys, tmp_path, content, error, words):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(error, match=words):
        seal_path(keys, tmp_path / "a", tmp_path / "sealed")
    assert listing(tmp_path) == {"a"}


def test_a_damaged_bit_in_compressed_data_is_noticed(keys, tmp_path):
    for name, compress in COMPRESSORS.items():
        if name == "none":
            continue
        data = bytearray(compress(ARCHIVE))
        if name == "zstd":
            data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(ARCHIVE))
        data[len(data) // 2] ^= 4
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(FileError, match=f"damaged {name}|cut short|damaged header"):
            seal_path(keys, tmp_path / "a", tmp_path / "sealed")


def test_several_compressed_frames_are_one_archive(keys, tmp_path):
    half = len(ARCHIVE) // 2
    for name, compress in COMPRESSORS.items():
        (tmp_path / "a").write_bytes(compress(ARCHIVE[:half]) + compress(ARCHIVE[half:]))
        seal_path(keys, tmp_path / "a", tmp_path / name)
        out = open_to(keys, tmp_path / name, tmp_path / f"{name}.tar")
        with open(out, "rb") as file:
            assert read_tar(file.read()) == read_tar(ARCHIVE)


def test_a_sealed_file_is_not_sealed_again(keys, tmp_path):
    seal_objects(keys, tmp_path / "s", {"a": (b"1", None)})
    with pytest.raises(UsageError, match="sealed checkpoint already") as caught:
        seal_path(keys, tmp_path / "s", tmp_path / "t")
    assert "rekey" in caught.value.hint


def test_a_zstd_archive_that_wants_too_much_memory_is_refused(keys, tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, strategy=1)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a").write_bytes(writer.compress(ARCHIVE) + writer.flush())
    with pytest.raises(FileError, match="memory"):
        seal_path(keys, tmp_path / "a", tmp_path / "sealed")


def test_headers_that_are_not_kept_are_reported(keys, tmp_path):
    (tmp_path / "a").write_bytes(make_tar(member("a", pax_headers={"SCHILY.acl.access": "u"})))
    assert seal_path(keys, tmp_path / "a", tmp_path / "s").ignored == ("SCHILY.acl.access",)


def test_special_files_of_a_directory_are_refused(keys, tmp_path):
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d" / "pipe")
    with pytest.raises(UsageError, match="pipe is neither file"):
        seal_path(keys, tmp_path / "d", tmp_path / "s")
    os.unlink(tmp_path / "d" / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "d" / "sock"))
        with pytest.raises(UsageError, match="sock is neither file"):
            seal_path(keys, tmp_path / "d", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_names_that_are_not_utf8_are_refused(keys, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "\udcff").touch()
    with pytest.raises(FileError, match="not UTF-8"):
        seal_path(keys, tmp_path / "d", tmp_path / "s")


def test_what_does_not_exist_or_is_empty_is_said(keys, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        seal_path(keys, tmp_path / "none", tmp_path / "s")
    (tmp_path / "d").mkdir()
    with pytest.raises(UsageError, match="empty"):
        seal_path(keys, tmp_path / "d", tmp_path / "s")


def test_an_unreadable_file_is_named(keys, tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").touch()
    real = os.open

    def refuse(path, *args, **kwargs):
        if str(path).startswith("/proc/self/fd/") and os.readlink(path).endswith("d/a"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SystemEnvironmentError, match=r"d/a: Permission denied"):
        seal_path(keys, tmp_path / "d", tmp_path / "s")


def test_sealing_and_opening_take_little_memory(keys, tmp_path):
    with (tmp_path / "a").open("wb") as file:
        info, _ = member("pages-1.img")
        info.size = 300_000_000
        file.write(info.tobuf())
        file.truncate(512 + 300_000_256 - 300_000_000 % 512 + 1024)
        size = file.seek(0, io.SEEK_END)
        file.truncate(size + -size % 512 + 1024)
    tracemalloc.start()
    seal_path(keys, tmp_path / "a", tmp_path / "s")
    open_to(keys, tmp_path / "s", tmp_path / "o.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "s").stat().st_size < 1_000_000
    assert peak < 60_000_000


def test_the_summary_has_gaps_where_images_cannot_be_read(keys, tmp_path):
    images = {
        "pstree.img": b"garbage",
        "core-1.img": bytes(100),
        "pagemap-1.img": b"\x19\x43\x56\x54" + b"\xff" * 100,
        "config.dump": b"[" * 60_000,
        "status.dump": b'{"id":"c","name":"\\ud800","runtime":5}',
    }
    (tmp_path / "a").write_bytes(make_tar(*(member(n, d) for n, d in images.items())))
    seal_path(keys, tmp_path / "a", tmp_path / "s")
    with opened(keys, tmp_path / "s") as checkpoint:
        found = summary.decode(checkpoint.read_bytes(checkpoint.entry(SUMMARY_NAME)))
    assert found == {"tasks": [], "container": {"container": "c", "name": "\\ud800"}}


def test_a_metadata_identity_gets_metadata_only(keys, others, tmp_path):
    seal_objects(
        keys,
        tmp_path / "s",
        {
            "checkpoint": (b"", attributes("directory")),
            "checkpoint/pstree.img": (b"tree", attributes()),
            "checkpoint/core-1.img": (b"core", attributes()),
        },
        metadata=[others],
    )
    others.policy = keys.policy
    try:
        open_to(others, tmp_path / "s", tmp_path / "o")
        assert listing(tmp_path / "o") == {"checkpoint", "checkpoint/pstree.img"}
        with pytest.raises(UsageError, match="--only") as caught:
            open_to(others, tmp_path / "s", tmp_path / "p", only=["core-*"])
        assert "metadata only" in caught.value.hint
    finally:
        del others.policy


def test_sizes_of_small_objects_do_not_show(keys, tmp_path):
    """Of images as a dump has them: the process tree would show by their sizes, and by how well they compress."""
    shown = set()
    for number, extra in enumerate((0, 1, 700)):
        objects = {
            "inventory.img": (b"i" * (40 + extra), attributes()),
            "pstree.img": (b"tree" * (9 + extra // 4), attributes()),
            "core-1.img": (os.urandom(80 + extra), attributes()),
            "mm-1.img": (b"m" * (300 + extra), attributes()),
        }
        seal_objects(keys, tmp_path / f"{number}.sealed", objects)
        with CheckedFile.open(str(tmp_path / f"{number}.sealed"), keys.policy) as checkpoint:
            index = checkpoint.authentic.index
            shown.add(tuple(index.entry(p)[2] for p in range(len(index))))
    assert len(shown) == 1

"""The tar reader and writer, against Python's tarfile and GNU tar."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.checkpoint.tables import tar
from sealpoint.errors import FileError
from tests.checkpoint.checkpoint_helpers import make_tar, member, read_tar

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def read(data: bytes) -> dict[str, tuple[tar.Member, bytes]]:
    reader = tar.TarReader(io.BytesIO(data))
    found = {}
    for entry in reader:
        contents = b""
        buffer = memoryview(bytearray(1000))
        while size := reader.readinto(buffer):
            contents += buffer[:size]
        found[entry.name] = entry, contents
    return found


def write(*members: tuple[tar.Member, bytes]) -> bytes:
    parts = []
    for entry, data in members:
        entry.size = len(data)
        parts += [tar.encode(entry), data, bytes(-len(data) % 512)]
    return b"".join(parts) + tar.END


@pytest.mark.parametrize("format_", FORMATS)
def test_reads_what_tarfile_writes(format_):
    data = make_tar(
        member("a", b"contents", mode=0o4755, uid=7, gid=8, uname="root", gname="adm", mtime=99),
        member("d", kind=tarfile.DIRTYPE),
        member("d/s", kind=tarfile.SYMTYPE, linkname="../a"),
        member("d/h", kind=tarfile.LNKTYPE, linkname="a"),
        member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("sda", kind=tarfile.BLKTYPE, devmajor=8, devminor=0),
        member("pipe", kind=tarfile.FIFOTYPE),
        format_=format_,
    )
    found = read(data)
    assert found["a"] == (
        tar.Member("a", "file", 8, 0o4755, 7, 8, 99 * 10**9, "root", "adm"),
        b"contents",
    )
    kinds = {name.rstrip("/"): m.kind for name, (m, _) in found.items()}
    assert kinds == {
        "a": "file",
        "d": "directory",
        "d/s": "symlink",
        "d/h": "hardlink",
        "null": "character",
        "sda": "block",
        "pipe": "fifo",
    }
    assert found["d/s"][0].link == "../a"
    assert (found["null"][0].major, found["null"][0].minor) == (1, 3)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_long_names_links_and_large_numbers(format_):
    name, link = "d/" * 100 + "n" * 200, "t" * 3000
    data = make_tar(
        member(name, b"x", uid=2**31, gid=2**31 + 1, mtime=2**34),
        member("s", kind=tarfile.SYMTYPE, linkname=link),
        format_=format_,
    )
    found = read(data)
    assert found[name][0].uid == 2**31
    assert found[name][0].mtime == 2**34 * 10**9
    assert found["s"][0].link == link


def test_a_ustar_prefix_belongs_to_the_name():
    name = "p" * 90 + "/" + "n" * 90
    assert list(read(make_tar(member(name), format_=tarfile.USTAR_FORMAT))) == [name]


def test_times_are_exact_to_the_nanosecond():
    data = make_tar(member("a", pax_headers={"mtime": "1700000000.123456789"}))
    assert read(data)["a"][0].mtime == 1700000000123456789


def test_a_time_before_1970_counts_as_1970():
    assert read(make_tar(member("a", pax_headers={"mtime": "-5.5"})))["a"][0].mtime == 0


def test_global_pax_headers_hold_for_all_members_that_do_not_say_otherwise():
    data = make_tar(
        member("a"), member("b", pax_headers={"uname": "me"}), pax_headers={"uname": "all"}
    )
    found = read(data)
    assert found["a"][0].user == "all"
    assert found["b"][0].user == "me"


def test_extended_attributes_are_bytes():
    info, data = member("a")
    info.pax_headers = {"SCHILY.xattr.security.capability": "\x01\x00\udcff"}
    assert read(make_tar((info, data)))["a"][0].xattrs == {"security.capability": b"\x01\x00\xff"}


def test_headers_that_are_not_kept_are_named():
    data = make_tar(member("a", pax_headers={"SCHILY.acl.access": "user::rwx", "atime": "5"}))
    reader = tar.TarReader(io.BytesIO(data))
    list(reader)
    assert reader.ignored == {"SCHILY.acl.access"}


def test_an_old_tar_marks_directories_by_a_slash():
    data = bytearray(make_tar(member("d", kind=b"\0"), format_=tarfile.USTAR_FORMAT))
    data[1:2], data[257:265], data[148:156] = b"/", bytes(8), b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert read(bytes(data))["d/"][0].kind == "directory"


def test_reads_what_gnu_tar_writes(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ("n" * 150)).write_bytes(b"long")
    (tmp_path / "l").symlink_to("d")
    for format_ in ("v7", "ustar", "gnu", "pax"):
        skip = ["--exclude=nn*"] if format_ in ("v7", "ustar") else []
        done = subprocess.run(
            ["tar", "-C", tmp_path, f"--format={format_}", *skip, "-cf", "-", "."],
            capture_output=True,
            check=True,
        )
        found = read(done.stdout)
        assert found["./l"][0].link == "d"
        assert skip or found["./d/" + "n" * 150][1] == b"long"


@pytest.mark.parametrize(
    "entry",
    [
        tar.Member("a"),
        tar.Member("a" * 100, "directory"),
        tar.Member("é", mtime=1, user="ü" * 20, group="g" * 40),
        tar.Member("x/" * 200 + "y", uid=2**32 - 1, gid=2**21, mtime=2**63),
        tar.Member("s", "symlink", link="t" * 101),
        tar.Member("c", "character", major=2**20, minor=2**20),
        tar.Member("a", xattrs={"user.b": bytes(range(256)), "user.a": b"", "user.c": b"\n=5"}),
        tar.Member("a", mtime=1700000000123456000),
        *(tar.Member("n" * n, xattrs={"user.a": b"x" * n}) for n in range(70, 110)),
    ],
    ids=repr,
)
def test_what_is_written_reads_the_same(entry):
    data = b"some" if entry.kind == "file" else b""
    written = write((entry, data))
    [(again, contents)] = read(written).values()
    again.name = again.name.rstrip("/")
    if entry.kind == "file":
        assert contents == data
    if not entry.mtime % 10**9:
        assert again == entry
    assert again.mtime == entry.mtime
    assert entry.name in read_tar(written)  # tarfile understands it as well


def test_gnu_tar_lists_what_is_written(tmp_path):
    names = ["a", "n" * 200, "é", "d/" + "x" * 100]
    (tmp_path / "a.tar").write_bytes(
        write(*((tar.Member(n, mtime=1500000000500000000), b"1") for n in names))
    )
    done = subprocess.run(
        ["tar", "-tf", "a.tar", "--quoting-style=literal"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.splitlines() == names
    assert done.stderr == ""


def test_a_device_number_that_no_archive_holds_is_refused():
    with pytest.raises(FileError, match="device"):
        tar.encode(tar.Member("c", "character", major=2**40))


GOOD = make_tar(member("a", b"1" * 600), member("b", b"2" * 600), format_=tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("size", [*range(0, 4096, 100), 512, 1024, 1536, 2048, 3072, 4096 - 512])
def test_every_truncation_is_noticed(size):
    with pytest.raises(FileError, match=r"cut short|damaged"):
        read(GOOD[:size])


def test_a_damaged_header_in_the_middle_is_noticed():
    data = bytearray(GOOD)
    data[1536 + 3] ^= 1
    with pytest.raises(FileError, match="damaged header"):
        read(bytes(data))


def test_something_after_the_end_is_noticed():
    with pytest.raises(FileError, match="follows the end"):
        read(GOOD + b"more")
    assert read(GOOD + bytes(100_000))


def test_a_lone_zero_block_is_no_end():
    with pytest.raises(FileError, match="end mark"):
        read(GOOD[:1536] + bytes(512) + GOOD[1536:])


@pytest.mark.parametrize("kind", [b"S", b"V", b"M", b"D", b"Z"])
def test_other_kinds_of_members_are_refused(kind):
    data = bytearray(make_tar(member("a"), format_=tarfile.USTAR_FORMAT))
    data[156:157], data[148:156] = kind, b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with pytest.raises(FileError, match="cannot be sealed"):
        read(bytes(data))


def test_sparse_members_of_gnu_tar_are_refused(tmp_path):
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    for format_ in ("gnu", "pax"):
        done = subprocess.run(
            ["tar", "-C", tmp_path, f"--format={format_}", "--sparse", "-cf", "-", "hole"],
            capture_output=True,
            check=True,
        )
        with pytest.raises(FileError, match="sparse") as caught:
            read(done.stdout)
        assert "--sparse" in caught.value.hint


def raw(flag: bytes, size: int, data: bytes = b"", name: bytes = b"a") -> bytes:
    header = bytearray(512)
    header[: len(name)], header[100:108], header[156:157] = name, b"0000644\0", flag
    header[124:136] = b"%011o\0" % size
    header[257:265], header[148:156] = b"ustar\x0000", b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize("flag", [b"x", b"g", b"X", b"L", b"K"])
def test_extended_headers_of_absurd_size_are_refused_before_they_are_read(flag):
    tracemalloc.start()
    with pytest.raises(FileError, match="absurd"):
        read(raw(flag, 1 << 32))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_endless_extended_headers_are_refused():
    with pytest.raises(FileError, match="in a row"):
        read(raw(b"x", 0) * 1000)


@pytest.mark.parametrize(
    "record",
    [
        b"9 path=ab\n",
        b"99 path=a\n",
        b"10 path=a\n ",
        b"path=a\n",
        b"-1 path=a\n",
        b"7 path\n",
        b"0 path=a\n",
        b"10 path=abc",
        b"13 size=-100\n",
        b"12 size=1e3\n",
        b"34 size=999999999999999999999999\n",
        b"13 mtime=nan\n",
        b"13 mtime=inf\n",
        b"36 mtime=99999999999999999999.5....\n",
        b"11 uid=0x5\n",
        b"17 SCHILY.xattr.\n",
        b"18 SCHILY.xattr.=\n",
        b"10 path=\xff\n",
    ],
)
def test_malformed_pax_records_are_refused(record):
    data = raw(b"x", len(record), record) + raw(b"0", 0) + tar.END
    with pytest.raises(FileError):
        read(data)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(100, b"\xff" * 8), (108, b"abcdefgh"), (116, b"\x80" + b"\xff" * 7), (124, b"99999999999\0")],
)
def test_malformed_numbers_are_refused(offset, value):
    data = bytearray(raw(b"0", 0))
    data[offset : offset + len(value)], data[148:156] = value, b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    if (offset, value[0]) == (116, 0x80):
        assert read(bytes(data) + tar.END)["a"][0].gid == 2**56 - 1
        return
    with pytest.raises(FileError, match="number"):
        read(bytes(data) + tar.END)


def test_contents_that_are_not_read_are_skipped():
    assert [m.name for m in tar.TarReader(io.BytesIO(GOOD))] == ["a", "b"]


SAMPLE = make_tar(
    member("a" * 120, b"1" * 600, uname="é"),
    member("d", kind=tarfile.DIRTYPE, pax_headers={"SCHILY.xattr.user.a": "b"}),
    member("d/l", kind=tarfile.SYMTYPE, linkname="x" * 120),
) + make_tar(member("g" * 120, b"2"), format_=tarfile.GNU_FORMAT)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(SAMPLE) - 1), st.binary(max_size=12)), min_size=1, max_size=6
    ),
    st.booleans(),
)
def test_a_mutated_archive_is_read_or_refused_and_nothing_else(edits, fix):
    data = bytearray(SAMPLE)
    for at, new in edits:
        data[at : at + len(new)] = new
    if fix:  # mend the checksum of the first headers, to get behind it
        for at in (0, 1024, 2048):
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    tracemalloc.start()
    try:
        read(bytes(data))
    except FileError:
        pass
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
    st.dictionaries(
        st.text(st.characters(codec="ascii", exclude_characters="=\0"), min_size=1, max_size=9),
        st.binary(max_size=200),
        max_size=3,
    ),
)
def test_any_member_survives_writing_and_reading(name, uid, mtime, user, xattrs):
    entry = tar.Member(name, uid=uid, mtime=mtime, user=user, xattrs=xattrs)
    [(again, data)] = read(write((entry, b"data"))).values()
    assert (again, data) == (entry, b"data")

"""A compressed archive is decompressed a few times, in whatever order it is read, and nothing of it touches a disk."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import resource
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings, strategies as st

from sealpoint.errors import SystemEnvironmentError
from sealpoint.inspect import archive
from sealpoint.inspect.spool import CHUNK, Spool

MEMBERS, SIZE = 40, 600 * 1024
NEEDLE = b"a secret that no disk may see, 0123456789 "


def contents(number: int) -> bytes:
    return (NEEDLE + b"%04d" % number) * (SIZE // (len(NEEDLE) + 4))


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as writer:
        for number in range(MEMBERS):
            member = tarfile.TarInfo(f"checkpoint/pages-{number}.img")
            data = contents(number)
            member.size = len(data)
            writer.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture(params=[gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[archive.ArchiveSource]:
    path = tmp_path / "archive"
    path.write_bytes(request.param(tar()))
    opened = archive.ArchiveSource(os.open(path, os.O_RDONLY), "archive")
    yield opened
    opened.close()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often decompression began at the front."""
    count: list[int] = []
    original = archive._Decoder.__init__

    def counted(self: archive._Decoder, *arguments: object, **more: object) -> None:
        count.append(1)
        original(self, *arguments, **more)

    monkeypatch.setattr(archive._Decoder, "__init__", counted)
    return count


def names(order: list[int]) -> list[str]:
    return [f"checkpoint/pages-{number}.img" for number in order]


def test_members_in_their_order_need_no_spool(
    source: archive.ArchiveSource, begun: list[int]
) -> None:
    for number, name in enumerate(names(list(range(MEMBERS)))):
        assert source.read(name) == contents(number)
    assert len(begun) == 1
    assert source._spool is None


def test_members_in_any_order_are_decompressed_twice_at_most(
    source: archive.ArchiveSource, begun: list[int]
) -> None:
    order = list(range(MEMBERS)) * 3
    random.Random(1).shuffle(order)
    for number, name in zip(order, names(order), strict=True):
        assert source.read(name) == contents(number)
    assert len(begun) <= 2


def test_readers_that_take_turns_see_their_own(
    source: archive.ArchiveSource, begun: list[int]
) -> None:
    first, second = (source.chunks(f"checkpoint/pages-{n}.img") for n in (3, 30))
    one, other = b"", b""
    for _ in range(4):
        one += bytes(next(first, b""))
        other += bytes(next(second, b""))
    assert one == contents(3)
    assert other == contents(30)
    assert len(begun) <= 2


def test_the_spool_is_encrypted_and_has_no_name(
    source: archive.ArchiveSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))
    for number in (39, 0):
        source.read(f"checkpoint/pages-{number}.img")
    assert source._spool is not None
    assert list((tmp_path / "spool").iterdir()) == []
    stored = os.pread(source._spool._file.fileno(), 1 << 26, 0)
    assert len(stored) > MEMBERS * len(contents(0))
    assert NEEDLE[:16] not in stored


def test_what_the_disk_gives_back_is_authenticated() -> None:
    spool = Spool()
    spool.append(b"x" * (3 * CHUNK))
    spool.finish()
    os.pwrite(spool._file.fileno(), b"\xff", CHUNK + 100)
    assert spool.read(0, 5) == b"xxxxx"
    with pytest.raises(SystemEnvironmentError, match="other data"):
        spool.read(CHUNK, 5)
    spool.close()


def test_chunks_of_a_spool_cannot_change_places() -> None:
    spool = Spool()
    spool.append(b"a" * CHUNK + b"b" * CHUNK)
    spool.finish()
    fd, size = spool._file.fileno(), CHUNK + 16
    first, second = os.pread(fd, size, 0), os.pread(fd, size, size)
    os.pwrite(fd, second + first, 0)
    with pytest.raises(SystemEnvironmentError, match="other data"):
        spool.read(0, 1)
    spool.close()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=5000), max_size=20), st.integers(0, 1 << 17), st.integers(0, 99))
def test_a_spool_gives_back_what_it_got(pieces: list[bytes], offset: int, size: int) -> None:
    whole = b"".join(pieces)
    offset = min(offset, len(whole) + 10)
    with contextlib.closing(Spool()) as spool:
        for piece in pieces:
            spool.append(piece)
        spool.finish()
        assert spool.read(offset, size) == whole[offset : offset + size]


def test_a_disk_without_room_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
        "from sealpoint.errors import SystemEnvironmentError\n"
        "from sealpoint.inspect.spool import CHUNK, Spool\n"
        "try: Spool().append(bytes(CHUNK))\n"
        "except SystemEnvironmentError as error: print(error.message, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cannot keep the decompressed archive" in done.stdout, done.stderr
    assert "TMPDIR" in done.stdout


def test_a_large_archive_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as writer:
        for number in range(8):
            member = tarfile.TarInfo(f"checkpoint/pages-{number}.img")
            member.size = 96 << 20
            with Path("/dev/zero").open("rb") as zero:
                writer.addfile(member, zero)
    code = (
        "import os, resource, sys\n"
        "from sealpoint.inspect.archive import ArchiveSource\n"
        "source = ArchiveSource(os.open(sys.argv[1], os.O_RDONLY), 'x')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for number in (7, 0, 5):\n"
        "    total = sum(len(p) for p in source.chunks(f'checkpoint/pages-{number}.img'))\n"
        "    assert total == 96 << 20\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # exec hands it on
    assert int(done.stdout) < inherited + 256 * 1024

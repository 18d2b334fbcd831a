"""A disk of limited speed: a real file system (ext4) on a real block device (a loop device over a file in memory), to
which the kernel's block layer writes no more than so many bytes a second (blk-throttle, by the blkio controller).

With cgroups of version 1: there the limit is set on the root group, which is charged for the write-back of files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.measure import BenchError

_LOOP = 7  # major number of loop devices (Documentation/admin-guide/devices.txt)
_TOOLS = ("losetup", "mkfs.ext4", "mount", "umount")


def why_not() -> str:
    """Why there can be no such disk on this machine; empty if it is worth trying."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} (packages mount and e2fsprogs) are missing"
    if _limits() is None:
        return "the disk cannot be limited: there is no blkio controller of cgroups version 1"
    return ""


@contextlib.contextmanager
def slow_disk(directory: Path, size: int, rate: float) -> Iterator[Path]:
    """Where it is mounted, in `directory`, which is in memory. rate: bytes a second. Raises BenchError."""
    image, point = directory / "disk.img", directory / "disk"
    with open(image, "wb") as file:
        os.truncate(file.fileno(), size)
    point.mkdir()
    _call("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    _call("mount", "-o", "loop", str(image), str(point))  # detached by umount
    try:
        _set(str(point), int(rate))
        _check(point, rate)
        yield point
    finally:
        unlimit(str(point))
        _call("umount", str(point))
        image.unlink()


def unlimit(point: str) -> None:
    """Take the limit away from what is mounted there, if that is a loop device: the limit would outlive the mount."""
    with contextlib.suppress(OSError):
        if os.major(os.stat(point).st_dev) == _LOOP and _limits() is not None:
            _set(point, 0)


def _set(point: str, rate: int) -> None:
    device = os.stat(point).st_dev
    limits = _limits()
    assert limits is not None
    try:
        limits.write_text(f"{os.major(device)}:{os.minor(device)} {rate}\n")
    except OSError as error:
        raise BenchError(f"{limits}: {error.strerror}") from None


def _check(point: Path, rate: float) -> None:
    """The limit must hold, or everything measured with it would be wrong. Raises BenchError."""
    probe = point / "probe"
    started = time.perf_counter()
    with open(probe, "wb") as file:
        file.write(bytes(int(rate / 2)))
        os.fsync(file.fileno())
    took = time.perf_counter() - started
    probe.unlink()
    if not 0.3 < took < 2:
        raise BenchError(f"the limit of the disk does not hold: {took:.2f} s where 0.5 were due")


def _limits() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        file = Path(point) / "blkio.throttle.write_bps_device"
        if kind == "cgroup" and "blkio" in options.split(",") and file.exists():
            return file
    return None


def _call(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"{' '.join(command)}: {result.stderr.strip()[-300:]}")

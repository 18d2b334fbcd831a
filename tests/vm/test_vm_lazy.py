"""Lazy restore on a kernel that has all that it needs: as typed, and of a container by runc.  Runs in the machine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engines import containers
from tests.real import harness, sealed
from tests.vm import podman

ENGINES = Path(__file__).resolve().parent.parent / "engines"

CRIU = "/usr/local/sbin/criu"
MAGIC = b"\x89SEALPT\n"


@pytest.fixture(autouse=True)
def lazy_policy(dropin: Path) -> Iterator[None]:
    """The policy allows it."""
    text = dropin.read_text()
    dropin.write_text(text + "allow_lazy_restore = true\n")
    try:
        yield
    finally:
        dropin.write_text(text)
    deadline = time.monotonic() + 20
    while "fuse.sealpoint" in Path("/proc/self/mountinfo").read_text():
        assert time.monotonic() < deadline, "a mount is left"
        time.sleep(0.05)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An images directory."""
    path = tmp_path / "images"
    path.mkdir()
    return path


def criu(log: Path, *arguments: object) -> None:
    with log.open("wb") as out:
        done = subprocess.run(
            [CRIU, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=podman.TIMEOUT,
        )
    assert done.returncode == 0, log.read_text(errors="replace")


@contextmanager
def daemon(images: Path, work: Path) -> Iterator[None]:
    """`criu lazy-pages` over the sealed file; at the end it must have brought everything."""
    process = subprocess.Popen(
        [CRIU, "lazy-pages", "-D", images, "-W", work, "-o", "lazy.log", "-v4"],
        stdin=subprocess.DEVNULL,
    )
    try:
        sealed.wait_until((work / "lazy-pages.socket").exists, "the daemon listens", podman.TIMEOUT)
        yield
        assert process.wait(podman.TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()


def assert_lazy(work: Path, images: Path) -> None:
    assert (images / "inventory.img").read_bytes().startswith(MAGIC)
    assert not any(n.startswith("pages") for n in os.listdir(images))
    assert "UFFD transferred pages" in (work / "lazy.log").read_text(errors="replace")


def test_a_process_runs_before_its_memory_is_there(
    workload: Callable[..., harness.Workload], images: Path, tmp_path: Path
) -> None:
    running = workload("memory", "--mib", "32")
    before = running.assert_intact()
    criu(tmp_path / "dump.out", "dump", "-t", running.pid, "-D", images, "-o", "dump.log")
    running.wait_gone()
    with daemon(images, images):
        criu(
            tmp_path / "restore.out",
            "restore", "-d", "--lazy-pages", "-D", images, "-o", "restore.log",
        )  # fmt: skip
    assert_lazy(images, images)
    running.assert_continues(before)


def test_a_container_runs_before_its_memory_is_there(
    needles: dict[str, bytes], images: Path, tmp_path: Path
) -> None:
    environment = dict(os.environ)
    container = containers.Container(tmp_path / "container", needles)
    try:
        container.run(environment)
        count = container.assert_counts()
        result = container.checkpoint(images, environment)
        assert result.code == 0, result
        with daemon(images, container.work):
            result = container.restore(images, environment, "--lazy-pages")
            assert result.code == 0, result
        assert_lazy(container.work, images)
        # Not `assert_whole`: its two processes that sleep end in a lazy restore by stock CRIU, too.
        assert container.assert_counts() > count
        assert container.path("/secret/file").read_bytes() == container.contents
    finally:
        container.close()

"""Which images CRIU writes for every dump of a kind: each is removed from a real dump, and sealing must miss it.

`NOT_ALWAYS` says of the others why nobody can miss them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealpoint.checkpoint.tables import evidence
from tests.real import harness, sealed, stock_criu

StartWorkload = Callable[..., harness.Workload]
NOT_ALWAYS = {
    r"(?:pipes|fifo)-data\.img": "only where bytes wait in a pipe, and no other image says whether any do",
    r"sk-queues\.img": "only where packets wait in a socket",
    r"filelocks\.img": "only where files are locked",
    r"remap-fpath\.img": "only where open files were deleted, which their entries do not say",
    r"ipcns-(?:shm|sem|msg)-\d+\.img": "only where there are such objects",
    r"(?:ifaddr|iptables|ip6tables|nftables|netdev|netns|route6?|rule)-\d+\.img":
        "not of a network that stays with the caller, or is emptied",
    r"tmpfs-.+\.img": "not of a mount that the caller provides",
    r"seccomp\.img": "before CRIU 4 only where there are filters; where a core refers to one, it is missed",
    r"fdinfo-\d+\.img": "not of a task without descriptors; missed where files.img has files of no other table",
}  # fmt: skip
IDLE = "import os, time\nos.closerange({first}, 1000)\nwhile True: time.sleep(1)"
FILTER = """
import ctypes, struct
libc, allow = ctypes.CDLL(None), ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
class Program(ctypes.Structure): _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(1, ctypes.addressof(allow))), 0, 0) == 0
"""
# name -> what is started, and images that must be missed because of it
COMMANDS: dict[str, tuple[list[str], str]] = {
    "descriptors": (
        [sys.executable, "-c", IDLE.format(first=3)],
        r"fdinfo-\d+\.img|timens-0\.img",
    ),
    "no descriptors": (
        [sys.executable, "-c", IDLE.format(first=0)],
        r"timens-0\.img",
    ),
    "filters": ([sys.executable, "-c", FILTER + IDLE.format(first=3)], r"seccomp\.img"),
    "namespaces": (
        ["unshare", "--ipc", "--uts", "--time", sys.executable, "-c", IDLE.format(first=0)],
        r"utsns-\d+\.img|ipcns-var-\d+\.img|timens-[1-9]\d*\.img",
    ),
}


def judge(directory: Path) -> evidence.Verdict:
    images = {p.name: p for p in directory.iterdir() if p.suffix == ".img"}
    return evidence.judge(
        evidence.observe(
            {name: path.stat().st_size for name, path in images.items()},
            lambda name: [images[name].read_bytes()],
        )
    )


def unmissed(directory: Path) -> list[str]:
    """Images without which the set still counts as whole; those without contents are left out."""
    assert judge(directory).problems == ()
    found = []
    for path in sorted(directory.glob("*.img")):
        if not path.stat().st_size:
            continue
        aside = path.rename(directory.parent / "aside")
        if not judge(directory).problems:
            found.append(path.name)
        aside.rename(path)
    return found


def excused(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in NOT_ALWAYS)


@pytest.fixture
def idle(ram_dir: Path) -> Iterator[Callable[[list[str], int], int]]:
    """Starts a command; returns its pid when it has no more than so many descriptors."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], descriptors: int) -> int:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.append(process)
        place = Path(f"/proc/{process.pid}")

        def ready() -> bool:
            assert process.poll() is None, "it has ended"
            there = len(os.listdir(place / "fd")) == descriptors
            return there and harness.process_state(process.pid) == "S"

        sealed.wait_until(ready, "it is idle")
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait(sealed.TIMEOUT)


@pytest.mark.parametrize("name", ["secret", "tree", "kinds", "states", "ipc"])
def test_every_image_that_is_always_there_is_missed(
    workload: StartWorkload, criu: Path, ram_dir: Path, name: str
) -> None:
    running = workload(name)
    options = ("--leave-running", "--file-locks", "--ext-unix-sk")
    stock_criu.plain_dump(criu, running, ram_dir / "images", *options)
    found = unmissed(ram_dir / "images")
    assert [n for n in found if not excused(n)] == []
    # All workloads have descriptors.
    assert [n for n in found if n.startswith("fdinfo-")] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_task_has_of_its_own_is_missed(
    idle: Callable[[list[str], int], int], criu: Path, ram_dir: Path, name: str
) -> None:
    command, expected = COMMANDS[name]
    images = ram_dir / "images"
    images.mkdir()
    pid = idle(command, 0 if "closerange(0," in command[-1] else 3)
    words = ["dump", "-t", str(pid), "-D", str(images), "-R", "-o", "dump.log"]
    done = subprocess.run([criu, *words], capture_output=True, check=False)
    assert done.returncode == 0, (images / "dump.log").read_text()[-3000:]
    found = unmissed(images)
    assert [n for n in found if not excused(n)] == []
    needed = [p.name for p in images.glob("*.img") if re.fullmatch(expected, p.name)]
    assert len(needed) == expected.count("|") + 1, needed
    assert set(needed) & set(found) == set()


def test_sealing_a_directory_without_one_of_them_fails(
    workload: StartWorkload,
    criu: Path,
    ram_dir: Path,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
) -> None:
    images, output = ram_dir / "images", sealpoint.directory / "x.sealed"
    stock_criu.plain_dump(criu, workload("tree"), images, "--leave-running")
    wrong = []
    for path in sorted(images.glob("*.img")):
        if excused(path.name) and not path.name.startswith("fdinfo-"):
            continue
        broken = ram_dir / "broken"
        shutil.copytree(images, broken)
        (broken / path.name).unlink()
        done = sealpoint.run("seal", broken, "-o", output, *keys.seal)
        if done.code != 3 or path.name not in done.err or output.exists():
            wrong.append((path.name, done))
        shutil.rmtree(broken)
    assert not wrong

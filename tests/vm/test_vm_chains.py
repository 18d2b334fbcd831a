"""Pre-dump chains through the drop-in, as typed: needs soft-dirty tracking, which the machine's kernel has."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real import harness, leaks, sealed

pytestmark = pytest.mark.vm

StartWorkload = Callable[..., harness.Workload]
SOURCE = Path(__file__).resolve().parents[2] / "src"
MIB = 1024 * 1024


class DropIn:
    """The executable `criu` that seals, with a configuration and a state store of its own."""

    def __init__(self, directory: Path, keys: sealed.Keys) -> None:
        self.directory = directory
        self.keys = keys
        self.state = directory / "state"
        config = directory / "config/sealpoint/config.toml"
        config.parent.mkdir(parents=True)
        config.write_text(
            f'recipients = ["{keys.path("recipient.pub")}"]\n'
            f'signer = "{keys.path("signer.key")}"\n'
            f'identities = ["{keys.path("identity.key")}"]\n'
            f'trust = ["{keys.path("signer.pub")}"]\n'
            f'state = "{self.state}"\n'
        )
        self.path = directory / "sbin/criu"
        self.path.parent.mkdir()
        self.path.write_text(
            f"#!{sys.executable} -I\nimport sys\n\nsys.path.insert(0, {str(SOURCE)!r})\n"
            "from sealpoint import config\nfrom sealpoint.dropin import main\n\n"
            f"config.SYSTEM_PATH = {str(config)!r}\nmain()\n"
        )
        self.path.chmod(0o755)
        self.environment = {
            "PATH": f"{self.path.parent}:/usr/sbin:{os.environ['PATH']}",
            "HOME": str(directory),
        }

    def run(self, *arguments: object, status: int = 0) -> str:
        """All that was printed.  Into a file: a restored tree may hold the descriptor for ever."""
        output = self.directory / "output"
        with output.open("wb") as out:
            done = subprocess.run(
                [self.path, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                timeout=250,
            )
        said = output.read_text(errors="replace")
        assert done.returncode == status, said
        return said

    def step(self, command: str, pid: int, number: int, *options: object) -> tuple[Path, str]:
        """A pre-dump or dump into a directory of its own, on top of the one before."""
        images = self.directory / f"step-{number}"
        images.mkdir()
        if number > 1:
            options = ("--prev-images-dir", f"../step-{number - 1}", *options)
        if command == "dump":
            options = ("--track-mem", *options)
        said = self.run(command, "-t", pid, "-D", images, "-o", "criu.log", *options)
        return images / "inventory.img", said


@pytest.fixture
def dropin(tmp_path: Path, keys: sealed.Keys) -> Iterator[DropIn]:
    yield DropIn(tmp_path / "dropin", keys)
    deadline = time.monotonic() + 20
    while (left := _helpers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    assert "fuse.sealpoint" not in Path("/proc/self/mountinfo").read_text()


def _helpers() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"sbin/criu" in (data := entry.read_bytes()) and b"python" in data:
                found.append(data.decode(errors="replace"))
        except OSError:
            continue
    return found


def chain_of_three(
    running: harness.Workload, dropin: DropIn, *options: object
) -> tuple[list[Path], list[str]]:
    steps = []
    for number, command in enumerate(("pre-dump", "pre-dump", "dump"), 1):
        steps.append(dropin.step(command, running.pid, number, *options))
        if command == "pre-dump":
            running.assert_intact()
            time.sleep(1.0)  # so that the whole first quarter of its memory changes
    running.wait_gone()
    return [file for file, _ in steps], [said for _, said in steps]


def test_a_chain_of_three_is_sealed_step_by_step_and_restored(
    workload: StartWorkload, dropin: DropIn, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload("dirty")
    before = running.assert_intact()
    with leaks.FileWatcher(running.needles, [dropin.directory], ignore=[running.dir]) as watcher:
        files, said = chain_of_three(running, dropin)
        assert all("full dump" not in text for text in said)
        for number, file in enumerate(files, 1):
            link = file.parent / "parent"
            assert link.is_symlink() == (number > 1)
            if number > 1:
                assert os.readlink(link) == f"../step-{number - 1}"
        sizes = [file.stat().st_size for file in files]
        assert sizes[0] > 32 * MIB / 20  # it compresses
        infos = [
            json.loads(
                sealpoint.run("info", file, "--json", "--trust", keys.path("signer.pub")).ok().out
            )
            for file in files
        ]
        assert [i["kind"] for i in infos] == ["full", "increment", "increment"]
        assert infos[1]["parent"]["checkpoint"] == infos[0]["checkpoint"]
        assert infos[2]["parent"]["checkpoint"] == infos[1]["checkpoint"]
        dropin.run("restore", "-d", "-D", files[2].parent, "-o", "restore.log")
        running.assert_continues(before)
    assert watcher.leaks() == []
    running.kill()
    running.reap()
    sealpoint.run("restore", files[2], *keys.open, "--detach").ok()
    running.assert_continues(before)


def test_auto_dedup_frees_what_parents_lose_and_says_so(
    workload: StartWorkload, dropin: DropIn, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload("dirty")
    before = running.assert_intact()
    files, said = chain_of_three(running, dropin, "--auto-dedup")
    assert "freed of" not in said[0]
    for text in said[1:]:
        assert "which now restores only in this chain" in text
    first = files[0].stat()
    assert first.st_blocks * 512 < first.st_size
    infos = [json.loads(sealpoint.run("info", file, "--json").ok().out) for file in files]
    for parent, child in itertools.pairwise(infos):
        # The third frees nothing of the first that the second had not freed already.
        assert parent["pruned"]["child"]["checkpoint"] == child["checkpoint"]
        assert parent["pruned"]["freed"] > 0
    assert infos[2]["pruned"] is None
    sealpoint.run("verify", files[0], "--trust", keys.path("signer.pub")).ok()
    assert "nothing can be freed" in dropin.run("dedup", "-D", files[2].parent)
    refused = dropin.run("restore", "-d", "-D", files[1].parent, status=1)
    assert "parts of it were freed" in refused
    assert running.remains() == []
    dropin.run("restore", "-d", "-D", files[2].parent, "--auto-dedup")
    running.assert_continues(before)


def test_what_cannot_be_continued_costs_a_full_dump_and_no_pages(
    workload: StartWorkload, dropin: DropIn, keys: sealed.Keys
) -> None:
    running = workload("dirty", "--mib", "8")
    dropin.step("pre-dump", running.pid, 1)
    time.sleep(0.5)
    _, said = dropin.step("pre-dump", running.pid, 2)
    assert "full dump" not in said
    time.sleep(0.5)
    # The kernel's bits are relative to the second now: an increment on the first would lack pages.
    again = dropin.directory / "again"
    again.mkdir()
    said = dropin.run("pre-dump", "-t", running.pid, "-D", again, "--prev-images-dir", "../step-1")
    assert "a full dump is made: ../step-1 is not the last tracked dump" in said
    assert not (again / "parent").exists()
    before = running.assert_intact()
    for state in dropin.state.glob("?" * 32):
        state.unlink()
    last = dropin.directory / "last"
    last.mkdir()
    said = dropin.run(
        "dump", "--track-mem", "-t", running.pid, "-D", last, "--prev-images-dir", "../again"
    )
    assert "a full dump is made: ../again cannot be continued: this machine has no state" in said
    running.wait_gone()
    dropin.run("restore", "-d", "-D", last)
    running.assert_continues(before)


def test_a_pre_dump_that_cannot_be_named_fails_and_leaves_the_process_running(
    workload: StartWorkload, dropin: DropIn
) -> None:
    running = workload("dirty", "--mib", "8")
    images = dropin.directory / "step-1"
    (images / "inventory.img").mkdir(parents=True)  # a directory is in the way
    said = dropin.run("pre-dump", "-t", running.pid, "-D", images, status=1)
    assert "is a directory" in said
    running.assert_intact()


def test_a_pre_dump_that_wrote_nothing_is_no_success(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    """By a stand-in for CRIU that reports success and does nothing."""
    running = workload("dirty", "--mib", "8")
    (tmp_path / "lying").mkdir()
    sealed.script(tmp_path / "lying/criu", "echo Version: 4.1.1")
    dropin.environment["PATH"] = f"{dropin.path.parent}:{tmp_path}/lying:{os.environ['PATH']}"
    images = dropin.directory / "step-1"
    images.mkdir()
    said = dropin.run("pre-dump", "-t", running.pid, "-D", images, status=1)
    assert "there are no images of a checkpoint" in said
    assert os.listdir(images) == []
    running.assert_intact()

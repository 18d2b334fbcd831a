"""Dumps and restores by someone who types: a job that is restored at the terminal stays a job there.

Each test runs with the stock CRIU as well, which shows that it asks for what users are used to.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.real import harness, sealed
from tests.real.terminal import CTRL_C, CTRL_D, CTRL_Z, PATIENCE, Terminal
from tests.real.typed import DropIn

HERE = Path(__file__).resolve().parent
StartWorkload = Callable[..., harness.Workload]

# Counts the lines that are typed; ends with the terminal's input.
JOB = """
echo ready:$$:
n=0
while read -r line; do n=$((n + 1)); echo "got:$line:$n:"; done
exit 3
"""


class Tool(NamedTuple):
    """How to dump and to restore a job.  The commands want the pid, or nothing."""

    environment: dict[str, str]
    dump: list[str]
    restore: list[str]


@pytest.fixture(params=["criu", "drop-in", "sealpoint"])
def tool(
    request: pytest.FixtureRequest, tmp_path: Path, criu: Path, keys: sealed.Keys, ram_dir: Path
) -> Iterator[Tool]:
    if request.param == "sealpoint":
        command: sealed.Sealpoint = request.getfixturevalue("sealpoint")
        file = str(tmp_path / "job.sealed")
        yield Tool(
            command.environment,
            [*sealed.SEALPOINT, "dump", "-o", file, *keys.seal, "-t", "PID", "--", "--shell-job"],
            [*sealed.SEALPOINT, "restore", file, *keys.open, "--", "--shell-job"],
        )
        return
    images = ram_dir if request.param == "criu" else tmp_path / "images"
    images.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    path = criu
    if request.param == "drop-in":
        dropin: DropIn = request.getfixturevalue("dropin")
        path, environment = dropin.path, dropin.environment
    words = [str(path), "--shell-job", "-D", str(images)]
    yield Tool(environment, [*words, "dump", "-t", "PID"], [*words, "restore"])


@pytest.fixture
def terminal(tool: Tool) -> Iterator[Terminal]:
    with Terminal(tool.environment) as shell:
        yield shell


class Job:
    """A job at a terminal that was dumped and is restored there."""

    def __init__(self, terminal: Terminal, tool: Tool, directory: Path) -> None:
        self.terminal, self.tool = terminal, tool
        script = directory / "job"
        script.write_text(JOB)
        terminal.type(f"sh {shlex.quote(str(script))}")
        self.pid = int(terminal.expect("ready:").split(":")[0])
        self.count = self.line("before")
        output = directory / "dumped"
        with output.open("wb") as out:
            done = subprocess.run(
                [str(self.pid) if word == "PID" else word for word in tool.dump],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=tool.environment,
                timeout=PATIENCE,
            )
        assert done.returncode == 0, output.read_text()
        sealed.wait_until(lambda: not Path(f"/proc/{self.pid}").exists(), "the shell has reaped it")

    def line(self, word: str) -> int:
        """Type until the job answers: input may get lost while it is restored.  What it has counted to."""
        for _ in range(int(PATIENCE)):
            self.terminal.type(word)
            try:
                return int(self.terminal.expect(f"got:{word}:", 1.0).split(":")[0])
            except TimeoutError:
                continue
        raise TimeoutError(f"the job does not answer: {self.terminal.said!r}")

    def restore(self) -> None:
        self.terminal.type(shlex.join(self.tool.restore))
        assert self.line("after") > self.count  # it goes on, and reads from the terminal


@pytest.fixture
def job(terminal: Terminal, tool: Tool, tmp_path: Path) -> Iterator[Job]:
    made = Job(terminal, tool, tmp_path)
    try:
        yield made
    finally:
        if made.pid in group_of(terminal):
            os.kill(made.pid, 9)


def group_of(terminal: Terminal) -> list[int]:
    """All processes of the shell's session."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.getsid(int(entry)) == terminal.shell.pid:
                found.append(int(entry))
        except ProcessLookupError:
            continue
    return found


def test_the_end_of_the_job_is_the_end_of_the_command(job: Job) -> None:
    job.restore()
    job.terminal.send(CTRL_D)
    assert job.terminal.status() == 0  # CRIU's own, whatever the job's is
    assert group_of(job.terminal) == [job.terminal.shell.pid]


def test_ctrl_c_ends_the_job_and_with_it_the_command(job: Job) -> None:
    job.restore()
    job.terminal.send(CTRL_C)
    assert job.terminal.status() == 0
    assert group_of(job.terminal) == [job.terminal.shell.pid]


def test_ctrl_z_stops_the_job_which_can_be_continued(job: Job) -> None:
    """CRIU gives the terminal back to the job's own group, which the shell does not know."""
    job.restore()
    job.terminal.send(CTRL_Z)
    stands = lambda: harness.process_state(job.pid) == "T"  # noqa: E731
    sealed.wait_until(stands, "the job stands", PATIENCE)
    os.kill(job.pid, signal.SIGCONT)
    assert job.line("again") > job.count
    job.terminal.send(CTRL_D)
    assert job.terminal.status() == 0
    assert group_of(job.terminal) == [job.terminal.shell.pid]


@pytest.fixture
def held(tmp_path: Path, dropin: DropIn) -> Iterator[tuple[sealed.Hold, Terminal]]:
    """A shell in which the drop-in can be typed, and an action script that waits in its dump."""
    with Terminal(dropin.environment) as shell:
        yield sealed.Hold.action(tmp_path, "post-dump"), shell


def typed_dump(
    held: tuple[sealed.Hold, Terminal], dropin: DropIn, running: harness.Workload, images: Path
) -> None:
    hold, shell = held
    words = ["dump", "-t", running.pid, "-D", images, "--action-script", hold.path]
    shell.type(shlex.join(map(str, [dropin.path, *words])))
    hold.reached()


def test_ctrl_c_in_a_dump_leaves_the_tree_as_it_was(
    workload: StartWorkload, dropin: DropIn, held: tuple[sealed.Hold, Terminal], tmp_path: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    images = tmp_path / "images"
    images.mkdir()
    typed_dump(held, dropin, running, images)
    held[1].send(CTRL_C)
    assert held[1].status() == 130
    running.assert_continues(before)
    dropin.settle()
    assert not (images / "inventory.img").exists()


def test_ctrl_z_in_a_dump_is_a_pause(
    workload: StartWorkload, dropin: DropIn, held: tuple[sealed.Hold, Terminal], tmp_path: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    images = tmp_path / "images"
    images.mkdir()
    typed_dump(held, dropin, running, images)
    hold, shell = held
    shell.send(CTRL_Z)
    shell.expect("Stopped")
    assert shell.status() == 148
    hold.go()
    shell.type("fg")
    assert shell.status() == 0
    running.wait_gone()
    shell.type(shlex.join([str(dropin.path), "restore", "-d", "-D", str(images)]))
    assert shell.status() == 0
    running.assert_continues(before)


NEEDED = (sys.executable, sys.base_prefix, str(harness.ROOT))
ALL = ("/run", "/tmp", "/dev/shm")


@pytest.mark.parametrize("places", [("/run",), ALL], ids=" ".join)
def test_where_programs_may_not_be_run_in_the_usual_places_all_is_as_usual(
    places: tuple[str, ...], criu: Path
) -> None:
    """In a mount namespace of the test's own, which the workload shares: CRIU compares namespaces."""
    needed = [os.path.realpath(path) for path in (*NEEDED, str(criu))]
    places = tuple(p for p in places if not any(path.startswith(f"{p}/") for path in needed))
    if not places:
        pytest.skip("the project itself lies there")
    steps = [f"mount --bind {p} {p} && mount -o remount,bind,noexec {p}" for p in places]
    tests = "test_a_tree_dumped_as_typed_is_sealed_and_restored_as_typed[secret]"
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sealpoint-test-") as base:
        done = subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
                " && ".join([*steps, 'exec "$@"']),
                *("sh", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *(f"--basetemp={base}/inner", f"{HERE / 'test_dropin_command_line.py'}::{tests}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=harness.ROOT,
            env=os.environ | {"SEALPOINT_CRIU": str(criu), "SEALPOINT_REQUIRE_CRIU": "1"},
            timeout=280,
        )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout

"""CRIU as a child: the user's process ends, stops and dies with it, as if it were CRIU itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint import process
from tests.real import harness, sealed
from tests.real.typed import DropIn

StartWorkload = Callable[..., harness.Workload]
PATIENCE = 20.0


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def other(tmp_path: Path, criu: Path, keys: sealed.Keys) -> Callable[[str], DropIn]:
    """A drop-in whose CRIU is a script that says its pid and then does `body`."""

    def make(body: str) -> DropIn:
        directory = tmp_path / "other"
        directory.mkdir()
        sealed.script(directory / "criu", f"echo $$ >{tmp_path}/pid\n{body}")
        home = tmp_path / "home"
        home.mkdir()
        return DropIn(home, directory / "criu", keys)

    return make


def pid_of(tmp_path: Path) -> int:
    file = tmp_path / "pid"
    return int(sealed.wait_until(lambda: file.exists() and file.read_text(), "CRIU runs"))


def test_success_of_a_dump_that_asked_nobody_is_none(
    workload: StartWorkload, other: Callable[[str], DropIn], images: Path
) -> None:
    running = workload("secret")
    status, said = other("exit 0").run("dump", "-t", running.pid, "-D", images)
    assert status == 1, said
    assert "without asking" in said
    running.assert_intact()
    assert not (images / "inventory.img").exists()


@pytest.mark.parametrize(("body", "status"), [("exit 7", 7), ("kill -USR1 $$", -signal.SIGUSR1)])
def test_the_status_is_that_of_criu(
    workload: StartWorkload, other: Callable[[str], DropIn], images: Path, body: str, status: int
) -> None:
    running = workload("secret")
    assert other(body).run("dump", "-t", running.pid, "-D", images)[0] == status


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name
)
def test_a_signal_for_the_users_process_is_one_for_criu(
    workload: StartWorkload,
    other: Callable[[str], DropIn],
    images: Path,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    running = workload("secret")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        typed = other("exec sleep 1000").start(
            "dump", "-t", running.pid, "-D", images, log=tmp_path / "said"
        )
    finally:
        signal.signal(signal.SIGINT, before)
    pid = pid_of(tmp_path)
    sealed.wait_until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes(), "it sleeps")
    typed.send_signal(number)
    assert typed.wait(PATIENCE) == -number
    sealed.wait_until(lambda: process.state(pid) in ("", "Z"), "CRIU has ended", PATIENCE)
    running.assert_intact()


def test_it_stops_and_goes_on_as_criu_does(
    workload: StartWorkload, other: Callable[[str], DropIn], images: Path, tmp_path: Path
) -> None:
    running = workload("secret")
    typed = other("exec sleep 1000").start(
        "dump", "-t", running.pid, "-D", images, log=tmp_path / "said"
    )
    pid = pid_of(tmp_path)
    sealed.wait_until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes(), "it sleeps")
    assert os.getpgid(pid) == os.getpgid(typed.pid)
    typed.send_signal(signal.SIGTSTP)
    for one in (pid, typed.pid):
        sealed.wait_until(lambda one=one: process.state(one) == "T", "it stands", PATIENCE)
    typed.send_signal(signal.SIGCONT)
    for one in (pid, typed.pid):
        sealed.wait_until(lambda one=one: process.state(one) == "S", "it goes on", PATIENCE)
    typed.terminate()
    assert typed.wait(PATIENCE) == -signal.SIGTERM

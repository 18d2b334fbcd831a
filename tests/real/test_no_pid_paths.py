"""sealpoint dies while CRIU waits in an action script of the user's, and a stranger gets its pid: nothing comes of it.

The stranger opens, under the same descriptor numbers, directories with a script and a socket of his own.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, sealed, stock_criu
from tests.real.typed import DropIn

StartWorkload = Callable[..., harness.Workload]
NOBODY = 65534
PATIENCE = 20.0

# What whoever has the pid does: descriptors 3 to 60 lead to his directory, in which everybody may do everything.
STRANGER = """
import os, socket, sys, time
place = sys.argv[1]
os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
fd = os.open(place, os.O_RDONLY)
for number in range(3, 61):
    if number != fd: os.dup2(fd, number)
os.write(1, b"ready\\n")
server = socket.socket(socket.AF_UNIX)
server.bind(place + "/gate.sock"); server.listen(8)
while True:
    connection, _ = server.accept()
    connection.recv(200); connection.sendall(b"1" * 33)
"""


def become(pid: int, place: Path) -> subprocess.Popen[bytes]:
    """A process of nobody's with that pid, which must be free.  In a pid namespace of our own only root may do this."""
    for _ in range(200):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            pytest.skip("pids cannot be chosen here")
        stranger = subprocess.Popen(
            [sys.executable, "-I", "-c", STRANGER, str(place)], stdout=subprocess.PIPE
        )
        if stranger.pid == pid:
            with stranger.stdout as said:
                assert said.readline() == b"ready\n"
            return stranger
        stranger.stdout.close()
        stranger.kill()
        stranger.wait()
        time.sleep(0.01)
    pytest.skip("somebody else is faster")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The stranger's: a script that leaves a mark, under every name that ours had."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory != Path("/") and directory.stat().st_uid == 0:
            directory.chmod(stat.S_IMODE(directory.stat().st_mode) | 0o011)
    theirs = tmp_path / "strangers"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    theirs.chmod(0o777)
    for name in ("gate.sh", "hook.sh"):
        sealed.script(theirs / name, f"touch {theirs}/ran\nexit 0")
    return theirs


def waiting_script(tmp_path: Path, action: str) -> tuple[Path, Path, Path]:
    """A user's action script that waits at `action`; what it makes when it does, and what it waits for."""
    began, go = tmp_path / "began", tmp_path / "go"
    body = (
        f'[ "$CRTOOLS_SCRIPT_ACTION" = {action} ] || exit 0\n'
        f"ls -l /proc/self/fd >{tmp_path}/descriptors\n"
        f"touch {began}\n"
        f"n=0; while [ ! -e {go} ] && [ $n -lt 600 ]; do sleep 0.05; n=$((n + 1)); done"
    )
    return sealed.script(tmp_path / "users", body), began, go


def ours_in(listing: str) -> list[str]:
    """Descriptors beyond the standard ones, and the one by which ls reads the directory."""
    found = []
    for line in listing.splitlines():
        if " -> " in line:
            number = int(line.split(" -> ")[0].split()[-1])
            if number > 2 and "/proc/" not in line.split(" -> ")[1]:
                found.append(line)
    return found


@pytest.mark.parametrize("when", ["pre-dump", "post-dump"])
def test_a_dump_whose_sealpoint_died_is_not_confirmed_by_who_has_its_pid(
    workload: StartWorkload, sealpoint, keys, tmp_path: Path, place: Path, when: str
) -> None:
    running = workload("secret")
    script, began, go = waiting_script(tmp_path, when)
    out = tmp_path / "out.sealed"
    process = sealpoint.start(
        "dump", "-t", str(running.pid), "-o", out, *keys.seal, "--", "--action-script", script
    )
    sealed.wait_until(began.exists, "the user's script runs", PATIENCE)
    pid = process.process.pid
    os.kill(pid, signal.SIGKILL)
    process.process.wait()
    stranger = become(pid, place)
    try:
        go.touch()
        sealed.wait_until(lambda: sealpoint.processes() == [], "CRIU has ended", PATIENCE)
        assert not (place / "ran").exists()
        assert not out.exists()
        running.assert_intact()
    finally:
        stranger.kill()
        stranger.wait()
    assert ours_in((tmp_path / "descriptors").read_text()) == []


@pytest.mark.parametrize("when", ["pre-restore", "post-restore"])
def test_a_restore_whose_sealpoint_died_is_not_approved_by_who_has_its_pid(
    workload: StartWorkload, sealpoint, keys, tmp_path: Path, place: Path, when: str
) -> None:
    running = workload("secret")
    out = tmp_path / "out.sealed"
    sealpoint.run("dump", "-t", str(running.pid), "-o", out, *keys.seal).ok()
    running.wait_gone()
    script, began, go = waiting_script(tmp_path, when)
    process = sealpoint.start(
        "restore", "--detach", out, *keys.open, "--", "--action-script", script
    )
    sealed.wait_until(began.exists, "the user's script runs", PATIENCE)
    pid = process.process.pid
    os.kill(pid, signal.SIGKILL)
    process.process.wait()
    stranger = become(pid, place)
    try:
        go.touch()
        sealed.wait_until(lambda: sealpoint.processes() == [], "CRIU has ended", PATIENCE)
        sealed.wait_until(lambda: running.remains() == [], "nothing of the tree is left", PATIENCE)
        assert not (place / "ran").exists()
    finally:
        stranger.kill()
        stranger.wait()
    assert ours_in((tmp_path / "descriptors").read_text()) == []


def helper_of(dropin: DropIn) -> int:
    """The process that serves CRIU: a leader of a session, and nobody's child."""
    return sealed.wait_until(
        lambda: next((pid for pid in dropin.processes() if os.getsid(pid) == pid), None), "a helper"
    )


@pytest.mark.parametrize("command", ["dump", "restore"])
def test_as_typed_nobody_answers_for_a_helper_that_died(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path, place: Path, command: str
) -> None:
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    when = f"pre-{command}"
    script, began, go = waiting_script(tmp_path, when)
    if command == "restore":
        status, said = dropin.run("dump", "-t", running.pid, "-D", images)
        assert status == 0, said
        running.wait_gone()
    words = ["-t", running.pid] if command == "dump" else ["-d"]
    process = dropin.start(
        command, *words, "-D", images, "--action-script", script, log=tmp_path / "said"
    )
    sealed.wait_until(began.exists, "the user's script runs", PATIENCE)
    pid = helper_of(dropin)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # orphans are this process's
    stranger = become(pid, place)
    try:
        go.touch()
        assert process.wait(PATIENCE) != 0
        assert not (place / "ran").exists()
        if command == "dump":
            running.assert_intact()
            assert not (images / "inventory.img").exists()
        else:
            assert running.remains() == []
    finally:
        stranger.kill()
        stranger.wait()
    assert ours_in((tmp_path / "descriptors").read_text()) == []


def test_no_argument_of_criu_has_a_path_with_a_pid(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    script = sealed.script(
        tmp_path / "users", f"tr '\\0' ' ' </proc/$PPID/cmdline >>{tmp_path}/arguments"
    )
    status, said = dropin.run("dump", "-t", running.pid, "-D", images, "--action-script", script)
    assert status == 0, said
    running.wait_gone()
    status, said = dropin.run("restore", "-d", "-D", images, "--action-script", script)
    assert status == 0, said
    arguments = (tmp_path / "arguments").read_text()
    assert "--action-script" in arguments
    assert "/proc/" not in arguments


def targets(listing: str) -> list[str]:
    """What descriptors lead to, without numbers; but for the file to which the outputs go."""
    found = (re.sub(r"\d+", "N", line.split(" -> ")[1]) for line in ours_in(listing))
    return sorted(target for target in found if not target.endswith(("said", "dropin-output")))


def test_what_exec_cmd_starts_has_the_descriptors_that_it_has_of_a_plain_criu(
    workload: StartWorkload, dropin: DropIn, criu: Path, tmp_path: Path
) -> None:
    listing = tmp_path / "descriptors"
    command = sealed.script(tmp_path / "command", f"ls -l /proc/self/fd >{listing}")
    plain = tmp_path / "plain"
    plain.mkdir()
    stock_criu.plain_dump(criu, workload("secret"), plain)
    with (tmp_path / "said").open("wb") as said:
        subprocess.run(
            [criu, "restore", "-D", plain, "--exec-cmd", "--", command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            check=True,
        )
    usual = targets(listing.read_text())

    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    status, said = dropin.run("dump", "-t", running.pid, "-D", images)
    assert status == 0, said
    running.wait_gone()
    status, said = dropin.run("restore", "-D", images, "--exec-cmd", "--", command)
    assert status == 0, said
    assert targets(listing.read_text()) == usual

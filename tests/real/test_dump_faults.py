"""Dumps that cannot be, for their output or their process: a clear message, the documented exit code, the process runs
on, nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.real.sealed import small_filesystem, stalled_dump

StartWorkload = Callable[..., harness.Workload]


# Where the output goes


def test_an_output_that_exists_is_kept_byte_for_byte(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    out.write_bytes(b"something dear")
    status = out.stat()
    dump = ["dump", "-t", running.pid, "-o", out, *keys.seal]
    sealpoint.run(*dump).fails(2, "app.sealed exists", "--force")
    assert out.read_bytes() == b"something dear"
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    running.assert_continues(before)

    sealpoint.run(*dump, "--force").ok()
    running.wait_gone()
    assert os.listdir(out.parent) == [out.name]
    sealpoint.run("restore", out, "--detach", *keys.open).ok()
    running.assert_continues(before)


def test_a_forced_dump_that_fails_keeps_what_was_there(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload("memory", "--mib", "16")
    before = running.assert_intact()
    with small_filesystem(tmp_path / "small", "size=4m") as small:
        (small / "app.sealed").write_bytes(b"something dear")
        dump = ["dump", "-t", running.pid, "-o", small / "app.sealed", *keys.seal]
        sealpoint.run(*dump, "--force").fails(6, "no space left")
        assert (small / "app.sealed").read_bytes() == b"something dear"
        assert os.listdir(small) == ["app.sealed"]
    running.assert_continues(before)


@pytest.mark.parametrize(
    ("where", "code", "words"),
    [
        ("missing/app.sealed", 2, "no directory"),
        (".", 2, "is a directory"),
        ("file/app.sealed", 2, "no directory"),
    ],
)
def test_an_output_that_cannot_be(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    where: str,
    code: int,
    words: str,
) -> None:
    (tmp_path / "file").write_text("")
    path = f"{tmp_path}/{where}"
    sealpoint.run("dump", "-t", undisturbed.pid, "-o", path, *keys.seal).fails(code, words)


def test_a_read_only_file_system(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
) -> None:
    with small_filesystem(tmp_path / "small", "ro") as small:
        sealpoint.run("dump", "-t", undisturbed.pid, "-o", small / "app.sealed", *keys.seal).fails(
            6, "cannot create", "Read-only"
        )


def test_a_log_that_cannot_be_written_is_noticed_before(
    undisturbed: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    sealpoint.run(
        "dump", "-t", undisturbed.pid, "-o", out, "--criu-log", "/nowhere/criu.log", *keys.seal
    ).fails(6, "/nowhere/criu.log")


# Which process


@pytest.mark.parametrize(
    ("pid", "words"),
    [
        ("0", "'0' is not a process ID"),
        ("-1", "'-1' is not a process ID"),
        ("999999999", "no process 999999999"),
    ],
)
def test_no_such_process(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path, pid: str, words: str
) -> None:
    sealpoint.run("dump", f"--tree={pid}", "-o", out, *keys.seal).fails(2, words)
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize("name", ["w" * 4097, b"caf\xe9"], ids=["too long", "not UTF-8"])
def test_a_workload_that_no_reader_accepts_leaves_the_process_running(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    name: str | bytes,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    given = ["--workload", os.fsdecode(name)]
    dump = sealpoint.run("dump", "-t", running.pid, "-o", out, *given, *keys.seal)
    dump.fails(2, "the name of a workload")
    assert os.listdir(out.parent) == []
    running.assert_continues(before)


def test_a_zombie(sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path) -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {})
    try:
        sealed.wait_until(lambda: harness.process_state(pid) == "Z", "it ended")
        sealpoint.run("dump", "-t", pid, "-o", out, *keys.seal).fails(2, str(pid), "has ended")
    finally:
        os.waitpid(pid, 0)
    assert os.listdir(out.parent) == []


def test_a_tree_that_contains_sealpoint(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path, tmp_path: Path
) -> None:
    words = " ".join([*sealed.SEALPOINT, "dump", "-t", "$$", "-o", str(out), *keys.seal])
    body = f"{words} 2>{tmp_path}/err\necho $? >{tmp_path}/code\n"
    shell = sealed.script(tmp_path / "shell", body)
    subprocess.run([shell], env=sealpoint.environment, timeout=60, check=True)
    code, err = int((tmp_path / "code").read_text()), (tmp_path / "err").read_text()
    sealed.Result(code, b"", err).fails(6, "inside the process tree")
    assert os.listdir(out.parent) == []


def test_a_tree_that_contains_a_zombie_can_be_dumped(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    # The zombie's session is the tree's own: that of the tests may lead outside of their pid namespace.
    code = "import os, time\nif os.fork() == 0: os._exit(3)\ntime.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            sealed.wait_until(
                lambda: "Z" in map(harness.process_state, sealed.children(process.pid)),
                "its child has ended",
            )
            sealpoint.run("dump", "-R", "-t", process.pid, "-o", out, *keys.seal).ok()
        finally:
            process.kill()


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_a_process_that_criu_cannot_dump(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    """It belongs to a session of somebody outside of the tree (a shell's job), and --shell-job is not given."""
    # The session's leader is ours: that of the tests may be outside of their pid namespace, where no option helps.
    with subprocess.Popen(
        ["sh", "-c", "sleep 600 >/dev/null & echo $!; wait"], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as shell:  # fmt: skip
        try:
            job = int(shell.stdout.readline())
            sealed.wait_until(lambda: _command(job) == "sleep", "the job runs")
            dump = ["dump", "-t", job, "-o", out, *keys.seal]
            sealpoint.run(*dump).fails(7, "criu dump", "session")
            assert os.listdir(out.parent) == []
            assert harness.process_state(job) in ("S", "R")
            sealpoint.run(*dump, "-R", "--", "--shell-job").ok()
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


def test_without_the_privileges(
    undisturbed: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    drop = shutil.which("setpriv")
    if drop is None:
        pytest.skip("needs setpriv")
    dump = ["dump", "-t", str(undisturbed.pid), "-o", out, *keys.seal]
    result = subprocess.run(
        [drop, "--bounding-set=-all", "--inh-caps=-all", *sealed.SEALPOINT, *dump],
        env=sealpoint.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    sealed.Result(result.returncode, b"", result.stderr).fails(6, "root")


# Two at once


def test_two_processes_at_the_same_time(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    both = [workload("memory", "--mib", "16"), workload("tree")]
    before = [running.assert_intact() for running in both]
    files = [tmp_path / f"{n}.sealed" for n in range(2)]
    commands = [
        sealpoint.start("dump", "-t", running.pid, "-o", file, *keys.seal)
        for running, file in zip(both, files, strict=True)
    ]
    for command, running in zip(commands, both, strict=True):
        command.wait().ok()
        running.wait_gone()
    commands = [sealpoint.start("restore", file, "--detach", *keys.open) for file in files]
    for command in commands:
        command.wait().ok()
    for running, verdicts in zip(both, before, strict=True):
        running.assert_continues(verdicts)


def test_one_process_twice_at_the_same_time(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    running = workload("memory", "--mib", "32")
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, target):
        second = sealpoint.run("dump", "-t", running.pid, "-o", out, *keys.seal)
        second.fails(7, "criu dump")
        assert os.listdir(out.parent) == []
        stream = target.take()
        command.wait().ok()
    running.assert_continues(before)
    out.write_bytes(stream)
    sealpoint.run("verify", out, *keys.open).ok()

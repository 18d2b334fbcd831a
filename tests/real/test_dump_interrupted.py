"""A dump that is broken off, by whatever, in its middle: the process runs on, and nothing of the dump is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, leaks, sealed
from tests.real.sealed import Hold, small_filesystem, stalled_dump, wait_until

StartWorkload = Callable[..., harness.Workload]

ENOUGH = ("memory", "--mib", "32")  # more than all pipes and buffers hold
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def how(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else "terminated"


# Into a pipe that nobody reads any more: CRIU is in the middle of the pages, and stays there.


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_nobody_reads_the_pipe(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, number: int
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, _):
        with pytest.raises(harness.NoAnswerError):
            running.check(timeout=0.05)
        command.signal(number, group=True)
        command.wait().fails(128 + number, how(number))
    running.assert_continues(before)


def test_signals_that_keep_coming_disturb_no_cleaning_up(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, _):
        while command.process.poll() is None:
            command.signal(signal.SIGINT, group=True)
        command.wait().fails(130, "interrupted")
    sealpoint.settle()
    running.assert_continues(before)


def test_kill_9_of_sealpoint_while_nobody_reads_the_pipe(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, _):
        command.signal(signal.SIGKILL)
        assert command.wait().code == -signal.SIGKILL
    sealpoint.settle()
    running.assert_continues(before)


def test_kill_9_of_criu_amid_the_pages(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    """CRIU's parasite sees its socket closed and gives control back.

    So it is where CRIU spends its time. Killed in the milliseconds in which it has the process make system calls by
    ptrace, stock CRIU ends the process with SIGTRAP, and nobody else could know its registers.
    """
    running = workload(*ENOUGH)
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, _):
        os.kill(command.criu(), signal.SIGKILL)
        command.wait().fails(7, "killed by signal 9")
    running.assert_continues(before)


def test_the_reader_of_the_pipe_goes_away(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, target):
        target.close()
        command.wait().fails(6, "reader", "went away")
    running.assert_continues(before)


def test_a_reader_that_only_waits_gets_it_all(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, target):
        stream = target.take()
        command.wait().ok()
    running.assert_continues(before)
    (tmp_path / "app.sealed").write_bytes(stream)
    sealpoint.run("verify", tmp_path / "app.sealed", *keys.open).ok()


# Into a file: sealpoint is stopped when it has written so much, which stops CRIU, too.


def stop_when_written(command: sealed.Running, directory: Path, size: int) -> None:
    """SIGSTOP as soon as the file in the making has `size` bytes."""

    def written() -> bool:
        assert command.process.poll() is None, command.wait()
        for fd in Path(f"/proc/{command.pid}/fd").iterdir():
            try:
                if os.readlink(fd).startswith(f"{directory}/") and fd.stat().st_size >= size:
                    return True
            except FileNotFoundError:
                continue
        return False

    wait_until(written, f"{size} bytes are written")
    command.signal(signal.SIGSTOP)


@pytest.mark.alone
@pytest.mark.parametrize("whom", ["sealpoint", "sealpoint by SIGINT", "criu"])
@pytest.mark.parametrize("size", [1, 1 << 20, 8 << 20], ids=["header", "1 MiB", "8 MiB"])
def test_killed_while_it_writes_a_file(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    size: int,
    whom: str,
) -> None:
    if size == 1 and whom == "criu":
        pytest.skip("CRIU has hardly begun: see test_kill_9_of_criu_amid_the_pages")
    running = workload("memory", "--mib", "64")
    before = running.assert_intact()
    with leaks.FileWatcher(running.needles, [out.parent], ignore=[running.dir]) as watcher:
        command = sealpoint.start(
            "dump", "-t", running.pid, "-o", out, "--compress", "none", *keys.seal
        )
        stop_when_written(command, out.parent, size)
        assert os.listdir(out.parent) == []
        if whom == "criu":
            os.kill(command.criu(), signal.SIGKILL)
        else:
            command.signal(signal.SIGINT if "SIGINT" in whom else signal.SIGKILL)
        if whom != "sealpoint":
            command.signal(signal.SIGCONT)
        code = command.wait().code
        sealpoint.settle()
    assert code == {"sealpoint": -9, "sealpoint by SIGINT": 130, "criu": 7}[whom]
    assert os.listdir(out.parent) == []
    running.assert_continues(before)
    assert watcher.leaks() == []


@pytest.mark.parametrize("whom", ["sealpoint", "sealpoint by SIGTERM", "criu"])
def test_killed_before_criu_does_anything(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    criu: Path,
    whom: str,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    hold = Hold.criu(tmp_path, criu)
    command = sealpoint.start("dump", "-t", running.pid, "-o", out, "--criu", hold.path, *keys.seal)
    hold.reached()
    if whom == "criu":
        os.kill(command.criu(), signal.SIGKILL)
    elif whom == "sealpoint":
        command.signal(signal.SIGKILL)
    else:
        command.notices(signal.SIGTERM)  # else CRIU may have dumped before it runs again
    hold.go()
    code = command.wait().code
    sealpoint.settle()
    assert code == {"sealpoint": -9, "sealpoint by SIGTERM": 143, "criu": 7}[whom]
    assert os.listdir(out.parent) == []
    running.assert_continues(before)


@pytest.mark.parametrize("whom", ["sealpoint", "sealpoint by SIGINT", "criu"])
def test_killed_when_criu_is_done_and_the_file_not(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    whom: str,
) -> None:
    """A hook of the user is waiting, before sealpoint's own is asked: all images were sent."""
    running = workload("tree")
    before = running.assert_intact()
    hold = Hold.action(tmp_path, "post-dump")
    command = sealpoint.start(
        "dump", "-t", running.pid, "-o", out, *keys.seal, "--", "--action-script", hold.path
    )
    hold.reached()
    assert os.listdir(out.parent) == []
    if whom == "criu":
        os.kill(command.criu(), signal.SIGKILL)
    else:
        command.signal(signal.SIGINT if "SIGINT" in whom else signal.SIGKILL)
    hold.go()
    code = command.wait().code
    sealpoint.settle()
    assert code == {"sealpoint": -9, "sealpoint by SIGINT": 130, "criu": 7}[whom]
    assert os.listdir(out.parent) == []
    running.assert_continues(before)


def test_a_hook_of_the_user_that_fails_undoes_the_dump(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    hook = sealed.script(tmp_path / "hook", '[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]')
    sealpoint.run(
        "dump", "-t", running.pid, "-o", out, *keys.seal, "--", "--action-script", hook
    ).fails(7)
    assert os.listdir(out.parent) == []
    running.assert_continues(before)


def test_killed_at_random_moments_there_is_a_whole_file_or_none(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    """Only after the file was named and before CRIU heard of it can both exist: file and process."""
    running = workload("secret")
    for n in range(8):
        before = running.assert_intact()
        command = sealpoint.start("dump", "-R", "-t", running.pid, "-o", out, *keys.seal)
        command.criu()
        time.sleep(n * 0.02)
        command.signal(signal.SIGKILL)
        command.wait()
        sealpoint.settle()
        running.assert_continues(before)
        assert os.listdir(out.parent) in ([], [out.name])
        if out.exists():
            sealpoint.run("verify", out, *keys.open).ok()
            out.unlink()


# The disk


@pytest.mark.parametrize("compress", ["none", "auto"])
def test_the_disk_is_full_in_the_middle(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    compress: str,
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    with small_filesystem(tmp_path / "small", "size=6m") as small:
        sealpoint.run(
            "dump",
            "-t",
            running.pid,
            "-o",
            small / "app.sealed",
            "--compress",
            compress,
            *keys.seal,
        ).fails(6, "no space left", "app.sealed")
        assert os.listdir(small) == []
        assert os.statvfs(small).f_bfree == os.statvfs(small).f_blocks
        running.assert_continues(before)


def test_the_disk_is_full_at_the_very_end(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    """Wherever the space ends, in the pages, the manifests, the index or the statement."""
    running = workload("secret")
    before = running.assert_intact()
    dump = ["dump", "-t", running.pid, "--compress", "none", *keys.seal]
    sealpoint.run(*dump, "-R", "-o", tmp_path / "whole").ok()
    size = (tmp_path / "whole").stat().st_size
    for missing in (4096, 8192, 16384, 32768, 65536, 131072):
        with small_filesystem(tmp_path / f"less-{missing}", f"size={size - missing}") as small:
            sealpoint.run(*dump, "-o", small / "app.sealed").fails(6, "no space left")
            assert os.listdir(small) == []
    running.assert_continues(before)


def test_the_directory_vanishes(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    criu: Path,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    hold = Hold.criu(tmp_path, criu)
    command = sealpoint.start("dump", "-t", running.pid, "-o", out, "--criu", hold.path, *keys.seal)
    hold.reached()
    out.parent.rmdir()
    hold.go()
    command.wait().fails(6, "cannot write", str(out))
    running.assert_continues(before)


def test_somebody_else_makes_the_file_meanwhile(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    criu: Path,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    hold = Hold.criu(tmp_path, criu)
    command = sealpoint.start("dump", "-t", running.pid, "-o", out, "--criu", hold.path, *keys.seal)
    hold.reached()
    out.write_bytes(b"theirs")
    hold.go()
    command.wait().fails(2, "exists")
    assert out.read_bytes() == b"theirs"
    assert os.listdir(out.parent) == [out.name]
    running.assert_continues(before)


def test_the_process_ends_meanwhile(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    criu: Path,
) -> None:
    running = workload("secret")
    hold = Hold.criu(tmp_path, criu)
    command = sealpoint.start("dump", "-t", running.pid, "-o", out, "--criu", hold.path, *keys.seal)
    hold.reached()
    running.kill()
    hold.go()
    result = command.wait()
    assert result.code in (2, 7), result
    assert os.listdir(out.parent) == []

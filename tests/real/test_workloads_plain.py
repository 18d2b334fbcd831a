"""The harness itself, proved with a stock CRIU and plain images.

Were these not so, the tests of sealed checkpoints would prove nothing: that each workload can be
dumped and restored at all and knows itself afterwards, that its secrets do lie in the clear in
plain images, where we expect them, that damage is noticed, that written secrets are found.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, leaks, stock_criu

StartWorkload = Callable[..., harness.Workload]

QUICK = [("memory", "--mib", "16"), ("ipc",), ("tree",), ("secret",)]
WHOLE = pytest.param(("memory",), marks=pytest.mark.slow)


@pytest.mark.parametrize("command", [*QUICK, WHOLE], ids=" ".join)
def test_dump_kill_restore(
    criu: Path, workload: StartWorkload, ram_dir: Path, command: tuple[str, ...]
) -> None:
    running = workload(*command)
    before = running.assert_intact()
    stock_criu.plain_dump(criu, running, ram_dir)
    assert running.remains() == []
    with pytest.raises(harness.NoAnswerError):
        running.check(timeout=0.1)

    stock_criu.plain_restore(criu, ram_dir)
    running.assert_continues(before)
    # Once more, of the restored one: what a check takes out of a pipe it must put back.
    running.assert_intact()
    assert len(running.processes()) == len(running.names)


@pytest.mark.parametrize("command", QUICK, ids=" ".join)
def test_runs_on_after_a_dump(
    criu: Path, workload: StartWorkload, ram_dir: Path, command: tuple[str, ...]
) -> None:
    running = workload(*command)
    before = running.assert_intact()
    stock_criu.plain_dump(criu, running, ram_dir, "--leave-running")
    running.assert_continues(before)


@pytest.mark.parametrize("command", QUICK, ids=" ".join)
def test_plain_images_show_every_secret(
    criu: Path, workload: StartWorkload, ram_dir: Path, command: tuple[str, ...]
) -> None:
    running = workload(*command)
    stock_criu.plain_dump(criu, running, ram_dir)
    found = leaks.scan_directory(ram_dir, running.needles)
    for name, images in harness.PLANTED[running.kind].items():
        assert fnmatch.filter(found.get(name, []), images), (name, found)


@pytest.mark.parametrize(
    ("command", "secret", "process"),
    [
        (("memory", "--mib", "16"), "heap", "main"),
        (("ipc",), "pipe", "main"),
        (("ipc",), "queue", "main"),
        (("ipc",), "stream", "main"),
        (("ipc",), "unlinked", "main"),
        (("ipc",), "unlinked_small", "main"),
        (("ipc",), "shm", "main"),
        (("ipc",), "memfd", "main"),
        (("tree",), "grandchild", "grandchild"),
        (("secret",), "password", "main"),
        (("secret",), "env", "main"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_damage_is_noticed(
    criu: Path,
    workload: StartWorkload,
    ram_dir: Path,
    command: tuple[str, ...],
    secret: str,
    process: str,
) -> None:
    """One bit in the plain images, next to each place of the secret: CRIU restores it happily."""
    running = workload(*command)
    before = running.assert_intact()
    stock_criu.plain_dump(criu, running, ram_dir)
    pattern = harness.PLANTED[running.kind][secret]
    needle = running.needles[secret]
    for path in ram_dir.glob(pattern):
        data = path.read_bytes()
        damaged = needle[:-1] + bytes([needle[-1] ^ 1])
        path.write_bytes(data.replace(needle, damaged))
    stock_criu.plain_restore(criu, ram_dir)
    after = running.check()[process]
    what = "heap" if secret == "grandchild" else secret
    assert not after.ok
    assert what in after.bad
    assert after.session == before[process].session


def test_a_fresh_start_is_no_restore(workload: StartWorkload) -> None:
    first, second = workload("secret"), workload("secret")
    with pytest.raises(AssertionError):
        second.assert_continues(first.assert_intact())


def test_a_stopped_process_gives_no_answer(workload: StartWorkload) -> None:
    running = workload("tree")
    os.kill(running.pids["grandchild"], 19)
    with pytest.raises(harness.NoAnswerError, match="grandchild"):
        running.check(timeout=0.2)
    os.kill(running.pids["grandchild"], 18)
    running.assert_intact()


def test_nothing_remains_after_close(tmp_path: Path, needles: dict[str, bytes]) -> None:
    running = harness.Workload("tree", tmp_path / "work", needles)
    pids = list(running.pids.values())
    running.close()
    assert [harness.process_state(pid) for pid in pids] == [None, None, None]
    assert running.remains() == []


def test_secrets_are_in_no_command_line(workload: StartWorkload) -> None:
    running = workload("tree")
    for pid in running.pids.values():
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert not any(needle in words for needle in running.needles.values())


def test_daemon_as_the_demonstration_uses_it(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    program = [sys.executable, "-I", "-S", "-B", str(harness.WORKLOADS / "secret.py")]
    started = subprocess.run(
        [*program, "--dir", str(directory), "--daemon"],
        input=b"password swordfish\n",
        stdout=subprocess.PIPE,
        check=True,
        timeout=20,
    )
    pid = int(started.stdout)
    try:
        ask = [sys.executable, str(harness.WORKLOADS / "workload_ask.py"), str(directory)]
        answer = subprocess.run(ask, stdout=subprocess.PIPE, check=True, timeout=20, text=True)
        assert harness.Verdict.parse("main", answer.stdout).pid == pid
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


# What the watcher finds


@pytest.mark.alone
def test_watcher_finds_what_plain_criu_leaves(
    criu: Path, workload: StartWorkload, needles: dict[str, bytes], ram_dir: Path
) -> None:
    running = workload("ipc")
    with leaks.FileWatcher(needles, ignore=[running.dir]) as watcher:
        stock_criu.plain_dump(criu, running, ram_dir)
        stock_criu.plain_restore(criu, ram_dir)
    running.assert_intact()
    found = watcher.leaks()
    assert {leak.needle for leak in found} == set(running.needles)
    assert {Path(leak.path).parent for leak in found} == {ram_dir}


@pytest.mark.alone
def test_watcher_is_quiet_about_workloads(
    workload: StartWorkload, needles: dict[str, bytes], tmp_path: Path
) -> None:
    with leaks.FileWatcher(needles, [tmp_path]) as watcher:
        workload("memory", "--mib", "1").assert_intact()
        workload("tree").assert_intact()
        workload("secret").assert_intact()
    assert watcher.leaks() == []


@pytest.mark.alone
def test_watcher_finds_what_the_snapshot_shows(needles: dict[str, bytes], tmp_path: Path) -> None:
    old, same = tmp_path / "old", tmp_path / "same"
    old.write_bytes(b"before")
    same.write_bytes(needles["shm"])
    with leaks.FileWatcher(needles, [tmp_path], trace=False) as watcher:
        old.write_bytes(b"after " + needles["heap"])
        # Across the border of two blocks of the search.
        block = leaks.Finder.BLOCK
        (tmp_path / "new").write_bytes(bytes(block - 10) + needles["pipe"] + bytes(block))
        (tmp_path / needles["queue"].decode()).write_bytes(b"")
        (tmp_path / "fine").write_bytes(needles["memfd"][:-1])
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "deep").write_bytes(needles["env"])
    assert not watcher.traced
    assert watcher.leaks() == sorted(
        [
            leaks.Leak(str(old), "heap"),
            leaks.Leak(str(tmp_path / "new"), "pipe"),
            leaks.Leak(str(tmp_path / needles["queue"].decode()), "queue", "name"),
            leaks.Leak(str(tmp_path / "sub" / "deep"), "env"),
        ]
    )


@pytest.mark.alone
def test_watcher_finds_what_was_removed_again(needles: dict[str, bytes], tmp_path: Path) -> None:
    with leaks.FileWatcher(needles, [tmp_path]) as watcher:
        if not watcher.traced:
            pytest.skip("no fanotify here")
        (tmp_path / "gone").write_bytes(needles["heap"])
        (tmp_path / "gone").unlink()
        with tempfile.TemporaryFile(dir=tmp_path) as file:
            file.write(needles["pipe"])
    found = {(leak.needle, leak.how) for leak in watcher.leaks()}
    assert found == {("heap", "closed"), ("pipe", "closed")}

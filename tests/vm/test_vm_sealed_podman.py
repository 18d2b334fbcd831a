"""sealpoint podman checkpoint and restore: a container, all of it, is one sealed file.  Runs in the machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real import harness, leaks, sealed
from tests.vm import podman

StartContainer = Callable[..., podman.Container]
both = pytest.mark.parametrize("runtime", ["crun", "runc"])
ROOTS = podman.STORAGE / "storage" / "overlay"


class SealedPodman:
    """The two commands, for one container."""

    def __init__(
        self, command: sealed.Sealpoint, keys: sealed.Keys, container: podman.Container
    ) -> None:
        self._command = command
        self._keys = keys
        self._container = container
        self._global = [
            f"--podman-option={o}" for o in (*podman.GLOBAL, "--runtime", container.runtime)
        ]

    def checkpoint(self, file: Path, *options: object) -> sealed.Result:
        return self.start_checkpoint(file, *options).wait(podman.TIMEOUT)

    def start_checkpoint(self, file: Path, *options: object) -> sealed.Running:
        words = ("podman", "checkpoint", self._container.name, "-o", file, *self._keys.seal)
        return self._command.start(*words, *self._global, *options)

    def restore(self, file: Path, *options: object) -> sealed.Result:
        words = ("podman", "restore", file, *self._keys.open, *self._global)
        return self._command.run(*words, *options, timeout=podman.TIMEOUT)


@pytest.fixture
def sealed_podman(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> Iterator[Callable[[podman.Container], SealedPodman]]:
    yield lambda container: SealedPodman(sealpoint, keys, container)
    sealpoint.settle()
    assert sealpoint.left() == []
    assert list(Path("/run").glob("sealpoint-podman-*")) == []
    assert "sealpoint" not in Path("/proc/self/mountinfo").read_text().replace("/mnt/project", "")


@pytest.fixture
def container(sealed_podman: object, container: StartContainer) -> StartContainer:
    """Removed before it is looked at what is left: conmon lives as long as its container."""
    return container


def state(container: podman.Container) -> str:
    return container.podman("container inspect", "--format={{.State.Status}}", container.name).said


@both
def test_a_container_is_one_sealed_file_and_comes_back(
    container: StartContainer,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    tmp_path: Path,
    runtime: str,
) -> None:
    """None of its secrets is written anywhere, in no file that stays and in none that is closed; the file has them."""
    running = container(runtime)
    running.plant_in_network()
    (running.path("/dev/shm/secret")).write_bytes(running.needles["shm"])
    running.path("/changed").write_text("a file of the container's own")
    count = running.assert_counts()
    command = sealed_podman(running)
    file, opened = tmp_path / "app.sealed", tmp_path / "opened.tar"
    places = [podman.STORAGE, tmp_path]
    network = running.network_needles()
    with (
        leaks.FileWatcher(running.needles, places) as watcher,
        leaks.FileWatcher(network, places, trace=False) as network_watcher,
    ):
        command.checkpoint(file).ok()
        assert running.processes() == []
    assert podman.leaked(watcher) <= podman.KEPT
    assert network_watcher.leaks() == []
    assert state(running) == "exited"

    everything = running.needles | network
    assert podman.found_in(file, everything) == set()
    sealpoint.run("open", file, "-o", opened, *keys.open).ok()
    dumped = (
        {"address", "table"} if runtime == "crun" else set()
    )  # runc leaves the network to podman
    assert podman.found_in(opened, everything) == {*podman.PLACES, *dumped}
    opened.unlink()
    info = json.loads(sealpoint.run("info", file, "--json", *keys.open).ok().out)
    assert info

    running.remove()
    with (
        leaks.FileWatcher(running.needles, places, ignore=[ROOTS]) as watcher,
        leaks.FileWatcher(network, places, trace=False) as network_watcher,
    ):
        command.restore(file).ok()
    assert podman.leaked(watcher) <= podman.KEPT
    assert network_watcher.leaks() == []
    running.assert_whole(count)
    if dumped:
        running.assert_network()
    assert running.path("/dev/shm/secret").read_bytes() == running.needles["shm"]
    assert running.path("/changed").read_text() == "a file of the container's own"


@both
def test_it_runs_on_if_that_is_wanted_and_a_copy_can_be_made_of_it(
    container: StartContainer,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    tmp_path: Path,
    runtime: str,
) -> None:
    running = container(runtime)
    count = running.assert_counts()
    command = sealed_podman(running)
    file = tmp_path / "app.sealed"
    command.checkpoint(file, "--leave-running").ok()
    running.assert_whole(count)
    command.restore(file).fails(2, running.name, "already")
    try:
        command.restore(file, "--name", f"{running.name}-copy").ok()
        assert len(running.processes()) == 6
    finally:
        running.podman("rm", "--force", "--time=0", f"{running.name}-copy")
    running.assert_whole(count)


def test_what_podman_itself_restores_is_the_same(
    container: StartContainer,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    tmp_path: Path,
) -> None:
    """Opened it is an archive like any other; and one of podman's own, sealed, can be restored."""
    running = container("crun")
    count = running.assert_counts()
    command = sealed_podman(running)
    file, opened, again = (tmp_path / n for n in ("app.sealed", "opened.tar", "again.sealed"))
    command.checkpoint(file).ok()
    sealpoint.run("open", file, "-o", opened, *keys.open).ok()
    running.remove()
    running.restore_archive(opened).ok()
    running.assert_whole(count)
    plain = tmp_path / "plain.tar"
    running.checkpoint("--export", plain).ok()
    running.remove()
    sealpoint.run("seal", plain, "-o", again, *keys.seal).ok()
    command.restore(again).ok()
    running.assert_whole(count)


# --- what goes wrong ---------------------------------------------------------------------------------


@both
def test_too_little_memory_for_what_podman_writes(
    container: StartContainer,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    tmp_path: Path,
    runtime: str,
) -> None:
    running = container(runtime)
    running.path("/large").write_bytes(os.urandom(2 << 20))
    count = running.assert_counts()
    file = tmp_path / "app.sealed"
    sealed_podman(running).checkpoint(file, "--memory", "1M").fails(7, "no space left")
    assert not file.exists()
    running.assert_whole(count)


def test_a_full_disk(
    container: StartContainer,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    tmp_path: Path,
) -> None:
    running = container("crun")
    count = running.assert_counts()
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], check=True)
    try:
        sealed_podman(running).checkpoint(small / "app.sealed").fails(6, "no space left")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
    running.assert_whole(count)


def test_what_podman_refuses(
    container: StartContainer,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    tmp_path: Path,
) -> None:
    """Its own words are told, and options that would lead past the seal do not get to it."""
    running = container("crun")
    count = running.assert_counts()
    command = sealed_podman(running)
    file = tmp_path / "app.sealed"
    for option, word in (
        ("--export=/tmp/x", "set by sealpoint"),
        ("-e", "set by sealpoint"),
        ("--pre-checkpoint", "not sealed"),
        ("--create-image=x", "not sealed"),
        ("--unheard-of", "not known"),
    ):
        command.checkpoint(file, "--", option).fails(2, option, word)
    command.checkpoint(file, "--", "--file-locks=perhaps").fails(7, "podman container checkpoint")
    assert not file.exists()
    running.assert_whole(count)
    running.podman("pause", running.name).ok()
    command.checkpoint(file).fails(2, "does not run: it is paused")
    running.podman("unpause", running.name).ok()
    running.assert_whole(count)


def test_a_wrong_key_or_a_damaged_file_restores_nothing(
    container: StartContainer,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    tmp_path: Path,
) -> None:
    running = container("crun")
    command = sealed_podman(running)
    file, damaged = tmp_path / "app.sealed", tmp_path / "damaged.sealed"
    command.checkpoint(file).ok()
    running.remove()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    command.restore(damaged).fails(3)
    other = tmp_path / "other"
    sealpoint.run("keygen", other).ok()
    sealpoint.run("keygen", other, "--signer").ok()
    for options, code in (
        (("-i", other / "identity.key", "--trust", keys.path("signer.pub")), 4),
        (("-i", keys.path("identity.key"), "--trust", other / "signer.pub"), 5),
        (("-i", keys.path("identity.key")), 5),
    ):
        sealpoint.run("podman", "restore", file, *options).fails(code)
    assert running.processes() == []
    assert podman.podman("ps", "--all", "--quiet", f"--filter=name={running.name}").ok() == ""


def test_pages_are_checked_before_anything_runs(
    container: StartContainer,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    tmp_path: Path,
) -> None:
    """Every byte of the file, one in each of its parts."""
    running = container("crun")
    command = sealed_podman(running)
    file, damaged = tmp_path / "app.sealed", tmp_path / "damaged.sealed"
    command.checkpoint(file, "--compress", "none").ok()
    running.remove()
    whole = file.read_bytes()
    for part in range(1, 4):
        data = bytearray(whole)
        data[len(data) * part // 4] ^= 0x80
        damaged.write_bytes(data)
        assert command.restore(damaged).code in (3, 7)
        assert running.processes() == []
        assert podman.podman("ps", "--all", "--quiet", f"--filter=name={running.name}").ok() == ""


# --- killed ------------------------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path: Path, sealpoint: sealed.Sealpoint) -> tuple[Path, Path]:
    """Have CRIU wait at the end of a dump: the file that says so, and the one that it waits for.

    By a CRIU that adds an action script: its configuration may name none.
    """
    waits, go, script = tmp_path / "waits", tmp_path / "go", tmp_path / "wait"
    script.write_text(
        "#!/bin/sh\ncase $CRTOOLS_SCRIPT_ACTION in post-dump|post-restore) ;; *) exit 0;; esac\n"
        f"touch {waits}\nfor i in $(seq 600); do [ -e {go} ] && exit 0; sleep 0.1; done\n"
    )
    script.chmod(0o755)
    criu = tmp_path / "criu"
    criu.write_text(f'#!/bin/sh\nexec /usr/sbin/criu --action-script {script} "$@"\n')
    criu.chmod(0o755)
    sealpoint.environment["SEALPOINT_CRIU"] = str(criu)
    return waits, go


def descendants(pid: int) -> dict[str, int]:
    """Processes below a command, by what they are."""
    found = {}
    todo = [pid]
    while todo:
        for child in sealed.children(todo.pop()):
            todo.append(child)
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if podman.program(child) == "criu":
                    found["criu"] = child
                elif b"-I" in words[:2] and b"swrk" in words:
                    found["relay"] = child
                elif words[0].endswith(b"podman"):
                    found["podman"] = child
                elif words[0].endswith((b"crun", b"runc")):
                    found["runtime"] = child
                elif b"podman" in words and b"checkpoint" in words:
                    found["guard"] = child
    return found


@pytest.mark.parametrize(
    ("runtime", "victim"),
    [
        *(("crun", v) for v in ("command", "guard", "podman", "criu", "relay", "interrupt")),
        *(("runc", v) for v in ("command", "runtime")),
    ],
)
def test_whatever_is_killed_the_container_runs_on(
    container: StartContainer,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    slow: tuple[Path, Path],
    tmp_path: Path,
    runtime: str,
    victim: str,
) -> None:
    running = container(runtime)
    count = running.assert_counts()
    file = tmp_path / "app.sealed"
    waits, go = slow
    command = sealed_podman(running).start_checkpoint(file)
    sealed.wait_until(waits.exists, "CRIU is at its end", podman.TIMEOUT)
    pids = descendants(command.pid) | {"command": command.pid, "interrupt": command.pid}
    assert set(pids) >= {"guard", "podman", "runtime", "criu", "relay"}, pids
    os.kill(pids[victim], signal.SIGINT if victim == "interrupt" else signal.SIGKILL)
    go.touch()
    result = command.wait(podman.TIMEOUT)
    assert result.code != 0
    assert not file.exists()
    if victim not in ("command", "interrupt"):
        assert result.code == 7, result
    running.assert_whole(count)


def test_killed_while_it_seals_what_comes_after_the_dump(
    container: StartContainer,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    tmp_path: Path,
) -> None:
    """The container stands still then; it must not for ever."""
    running = container("crun")
    running.path("/large").write_bytes(os.urandom(64 << 20))
    count = running.assert_counts()
    command = sealed_podman(running).start_checkpoint(tmp_path / "app.sealed")
    init = running.processes()[0]
    sealed.wait_until(lambda: harness.process_state(init) == "T", "it is stopped", podman.TIMEOUT)
    command.signal(signal.SIGKILL)
    command.process.wait()
    running.assert_whole(count)


def test_killed_while_it_restores(
    container: StartContainer,
    sealed_podman: Callable[[podman.Container], SealedPodman],
    slow: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    running = container("crun")
    command = sealed_podman(running)
    waits, go = slow
    go.touch()
    file = tmp_path / "app.sealed"
    command.checkpoint(file).ok()
    running.remove()
    waits.unlink()
    go.unlink()
    restoring = sealed_podman(running)
    words = ("podman", "restore", file, *restoring._keys.open, *restoring._global)
    process = restoring._command.start(*words)
    sealed.wait_until(waits.exists, "CRIU is at its end", podman.TIMEOUT)
    process.signal(signal.SIGKILL)
    process.process.wait()
    go.touch()
    sealed.wait_until(
        lambda: not podman.podman("ps", "-aq", f"--filter=name={running.name}").ok(),
        "it is removed",
        podman.TIMEOUT,
    )
    assert running.processes() == []

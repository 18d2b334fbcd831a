"""podman with crun and runc, unchanged, checkpoints and restores through the drop-in criu.  Runs in the machine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealpoint.state.chains import DEFAULT_STATE, StateStore
from sealpoint.state.container_workload import workload_of
from tests.real import harness, leaks, sealed
from tests.vm import podman

pytestmark = pytest.mark.usefixtures("dropin")

StartContainer = Callable[..., podman.Container]
MAGIC = b"\x89SEALPT\n"
both = pytest.mark.parametrize("runtime", ["crun", "runc"])
ROOTS = podman.STORAGE / "storage" / "overlay"
"""Where the containers' own files are: CRIU must make again there what a process held without a name."""


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {
            member.name.rstrip("/").removeprefix("./"): file.read()
            for member in tar
            if (file := tar.extractfile(member)) is not None
        }


def settled() -> None:
    """Nothing of the drop-in is left, wherever."""
    sealed.wait_until(lambda: not helpers(), "the helpers have ended", podman.TIMEOUT)
    assert "fuse.sealpoint" not in Path("/proc/self/mountinfo").read_text()


def helpers() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"/usr/local/sbin/criu" in words:
                found.append(int(entry.name))
    return found


@both
def test_an_exported_container_is_sealed_and_comes_back(
    container: StartContainer,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    runtime: str,
) -> None:
    """In its archive and in all that was written: nothing but the environment, which podman keeps itself."""
    running = container(runtime)
    running.plant_in_network()
    count = running.assert_counts()
    archive, file, plain = (tmp_path / n for n in ("exported.tar", "inventory.img", "plain.tar"))
    needles = running.needles | running.network_needles()
    places = [podman.STORAGE, tmp_path]
    with (
        leaks.FileWatcher(running.needles, places, ignore=[ROOTS]) as watcher,
        leaks.FileWatcher(running.network_needles(), places, trace=False) as network,
    ):
        running.checkpoint("--export", archive, "--compress=none").ok()
        assert running.processes() == []
    assert {needle for _, needle in podman.leaked(watcher)} == {"env"}
    assert network.leaks() == []
    found = members(archive)
    assert {name for name in found if name.startswith("checkpoint/")} == {
        "checkpoint/inventory.img",
        "checkpoint/descriptors.json",
    }
    assert podman.found_in(archive, needles) == {"env"}

    file.write_bytes(found["checkpoint/inventory.img"])
    sealpoint.run("open", file, "-o", plain, *keys.open).ok()
    # So their absence above means something. With runc, podman itself makes the network anew.
    dumped = {"address", "table"} if runtime == "crun" else set()
    assert podman.found_in(plain, needles) == {*podman.PLACES, *dumped}
    plain.unlink()

    running.remove()
    with (
        leaks.FileWatcher(running.needles, places, ignore=[ROOTS]) as watcher,
        leaks.FileWatcher(running.network_needles(), places, trace=False) as network,
    ):
        running.restore_archive(archive).ok()
    running.assert_whole(count)
    if dumped:
        running.assert_network()
    assert {needle for _, needle in podman.leaked(watcher)} == {"env"}
    assert network.leaks() == []
    settled()


@both
def test_a_container_checkpointed_in_place_comes_back(
    container: StartContainer, runtime: str
) -> None:
    running = container(runtime)
    count = running.assert_counts()
    running.checkpoint().ok()
    assert running.processes() == []
    running.restore().ok()
    running.assert_whole(count)
    settled()


@both
def test_a_container_left_running_runs_on(
    container: StartContainer, tmp_path: Path, runtime: str
) -> None:
    running = container(runtime)
    count = running.assert_counts()
    archive = tmp_path / "running.tar"
    running.checkpoint("--leave-running", "--compress=none", "--export", archive).ok()
    assert members(archive)["checkpoint/inventory.img"].startswith(MAGIC)
    running.assert_whole(count)


@both
def test_a_damaged_checkpoint_is_not_restored(
    container: StartContainer, tmp_path: Path, runtime: str
) -> None:
    running = container(runtime)
    archive, damaged = tmp_path / "good.tar", tmp_path / "damaged.tar"
    running.checkpoint("--compress=none", "--export", archive).ok()
    running.remove()
    with tarfile.open(archive) as source, tarfile.open(damaged, "w") as target:
        for member in source:
            file = source.extractfile(member)
            data = bytearray(file.read()) if file is not None else bytearray()
            if member.name == "checkpoint/inventory.img":
                data[len(data) // 2] ^= 1
            target.addfile(member, io.BytesIO(bytes(data)))
    assert running.restore_archive(damaged).code != 0
    assert running.processes() == []
    settled()


@both
def test_without_a_usable_configuration_nothing_is_written_and_the_container_runs_on(
    container: StartContainer, tmp_path: Path, dropin: Path, runtime: str
) -> None:
    running = container(runtime)
    count = running.assert_counts()
    archive = tmp_path / "none.tar"
    text = dropin.read_text()
    dropin.write_text(text.replace("signer.key", "no-such.key"))
    try:
        refused = running.checkpoint("--export", archive)
    finally:
        dropin.write_text(text)
    assert refused.code != 0
    assert not archive.exists() or not any(n.endswith(".img") for n in members(archive))
    running.assert_whole(count)


@both
def test_an_older_checkpoint_of_a_container_is_refused_and_allowed_once(
    runtime: str,
    container: StartContainer,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
) -> None:
    """Its workload follows from what the engine really tells CRIU, and is that of `sealpoint podman checkpoint`."""
    running = container(runtime)
    count = running.assert_counts()
    older, newer = tmp_path / "older.tar", tmp_path / "newer.tar"
    identifier = running.podman("container inspect", "--format", "{{.Id}}", running.name).ok()
    running.checkpoint("--leave-running", "--compress=none", "--export", older).ok()
    time.sleep(1.1)  # capture times count in seconds
    running.checkpoint("--compress=none", "--export", newer).ok()
    workloads = set()
    for archive in (older, newer):
        file = tmp_path / "inventory.img"
        file.write_bytes(members(archive)["checkpoint/inventory.img"])
        said = sealpoint.run("info", file, "--json", "--trust", keys.path("signer.pub")).ok()
        workloads.add(json.loads(said.out)["workload"])
    (workload,) = workloads
    assert re.fullmatch(r"container-[0-9a-f]{32}", workload)
    assert workload == workload_of(identifier.strip(), StateStore(str(tmp_path / "unused")))
    running.remove()
    refused = running.restore_archive(older)
    assert refused.code != 0
    assert running.processes() == []
    running.remove()
    sealpoint.run("state", "allow-older", workload, "--state", DEFAULT_STATE).ok()
    running.restore_archive(older).ok()
    running.assert_whole(count)
    running.remove()
    assert running.restore_archive(older).code != 0
    running.remove()
    running.restore_archive(newer).ok()
    running.assert_whole(count)
    settled()


def test_several_containers_at_the_same_time(container: StartContainer, tmp_path: Path) -> None:
    all_of_them = [container(runtime) for runtime in ("crun", "runc")]
    counts = [running.assert_counts() for running in all_of_them]
    archives = [tmp_path / f"{n}.tar" for n in range(2)]
    results: dict[int, podman.Ran] = {}

    def checkpoint(number: int) -> None:
        results[number] = all_of_them[number].checkpoint(
            "--export", archives[number], "--compress=none"
        )

    threads = [threading.Thread(target=checkpoint, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, running in enumerate(all_of_them):
        results[number].ok()
        assert members(archives[number])["checkpoint/inventory.img"].startswith(MAGIC)
        running.remove()
        running.restore_archive(archives[number]).ok()
        running.assert_whole(counts[number])
    settled()


# --- killed ----------------------------------------------------------------------------------------


def real_criu() -> int:
    """Pid of the real CRIU at work, which gives itself another title."""
    return min(
        int(p.name)
        for p in Path("/proc").iterdir()
        if p.name.isdigit() and podman.program(int(p.name)) == "criu"
    )


@contextlib.contextmanager
def held() -> Iterator[None]:
    """The real CRIU waits for its helper.

    Killed while it has a task make system calls by ptrace, it would take the task with it, whoever called it, and how
    soon it gets there depends on the machine.
    """
    stopped = helpers()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        criu = real_criu()
        sealed.wait_until(
            lambda: harness.waits_for_helper(criu), "CRIU waits for the helper", podman.TIMEOUT
        )
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("runtime", "victim"),
    [("crun", "criu"), ("crun", "helper"), ("runc", "criu"), ("runc", "runtime")],
)
def test_a_killed_dump_leaves_the_container_running_and_nothing_behind(
    container: StartContainer, tmp_path: Path, runtime: str, victim: str
) -> None:
    running = container(runtime)
    count = running.assert_counts()
    archive = tmp_path / "none.tar"
    init = running.processes()[0]
    process = subprocess.Popen(
        ["podman", *podman.GLOBAL, "--runtime", runtime, "container", "checkpoint",
         "--export", archive, running.name],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    sealed.wait_until(
        lambda: harness.process_state(init) == "t", "CRIU is at work in it", podman.TIMEOUT
    )
    with held():
        criu, helper = real_criu(), max(helpers())
        engine = int(Path(f"/proc/{criu}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill({"criu": criu, "helper": helper, "runtime": engine}[victim], signal.SIGKILL)
    assert process.wait(podman.TIMEOUT) != 0
    settled()
    assert not archive.exists()
    running.assert_whole(count)


@pytest.mark.parametrize("victim", ["criu", "criu and helper"])
def test_a_killed_dump_leaves_no_network_lock_behind(
    container: StartContainer, sealpoint: sealed.Sealpoint, tmp_path: Path, victim: str
) -> None:
    running = container("runc")
    assert running.network_lock() == ""
    process = subprocess.Popen(
        ["podman", *podman.GLOBAL, "--runtime", "runc", "container", "checkpoint",
         "--export", tmp_path / "none.tar", running.name],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    init = running.processes()[0]
    sealed.wait_until(
        lambda: harness.process_state(init) == "t", "CRIU is at work in it", podman.TIMEOUT
    )

    def locked() -> bool:  # CRIU goes on by one answer of the helper or a few
        with held():
            if not running.network_lock():
                return False
            criu = real_criu()
            os.kill(criu, signal.SIGSTOP)  # else it unlocks when its helper is gone
            if "helper" in victim:
                os.kill(max(helpers()), signal.SIGKILL)
            os.kill(criu, signal.SIGKILL)
            return True

    sealed.wait_until(locked, "CRIU has locked the network", podman.TIMEOUT)
    assert process.wait(podman.TIMEOUT) != 0
    settled()
    if "helper" in victim:  # nobody was there to take it away
        assert running.network_lock()
        target = str(running.processes()[0])
        done = sealpoint.run("doctor", "--thaw", target).ok().out.decode()
        assert "removed CRIU's network lock" in done
    assert running.network_lock() == ""
    running.assert_counts()

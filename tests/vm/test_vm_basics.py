"""What only a whole kernel and a whole root can show: other users' processes, namespaces, swap.

On the machine of the other tests CRIU may lack the capabilities or the kernel the options for these.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.real import harness, leaks, sealed, stock_criu

StartWorkload = Callable[..., harness.Workload]
USER = 1000


def test_the_kernel_has_all_that_criu_can_use(criu: Path) -> None:
    """Else the tests of chains and of lazy restores would have nothing to stand on."""
    for feature in ("mem_dirty_track", "uffd-noncoop"):
        done = subprocess.run([criu, "check", "--feature", feature], capture_output=True)
        assert done.returncode == 0, (feature, done.stderr)
    done = subprocess.run([criu, "check"], capture_output=True, text=True)
    assert done.returncode == 0, done
    assert "Looks good." in done.stdout + done.stderr
    assert stock_criu.find_criu() == criu


# --- processes of others -----------------------------------------------------------------------


class UsersWorkload(harness.Workload):
    """A workload of a user who is not root."""

    def _spawn(self, arguments) -> int:
        for path in (self.dir.parent, self.dir):
            path.chmod(0o755)
        os.chown(self.dir, USER, USER)
        words = ["--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--no-new-privs"]
        with wrapped(["setpriv", *words, "--"]):
            return super()._spawn(arguments)


class NamespacedWorkload(harness.Workload):
    """A workload that is the first process of its own pid and mount namespaces, as in a container.

    Its root is the machine's disk once more, at `root`, with /proc and a tmpfs of its own; the rest is not mounted.
    """

    def _spawn(self, arguments) -> int:
        self.root = self.dir.parent / "root"
        self.root.mkdir()
        subprocess.run(["mount", "--bind", "/", self.root], check=True)
        # The program's files are on the disk, too: the checkout is not mounted in there.
        scripts = self.dir.parent / "workloads"
        shutil.copytree(harness.WORKLOADS, scripts)
        self._script = str(scripts / Path(self._script).name)
        setup = (
            f"set -e; cd {self.root}; mount -t proc proc proc; mount -t tmpfs tmpfs dev; "
            "mknod -m 666 dev/null c 1 3; mkdir -p mnt/old; pivot_root . mnt/old; "
            'umount -l /mnt/old; exec setsid "$@"'
        )
        unshare = ["unshare", "--pid", "--mount", "--propagation", "private", "--fork"]
        with wrapped([*unshare, "sh", "-c", setup, "-"]):
            parent = super()._spawn(arguments)
        init = sealed.wait_until(lambda: sealed.children(parent), "it has started")[0]
        # From here on it is a child of ours: not even its parent is outside of what is dumped.
        sealed.wait_until(
            lambda: harness.get_link(str(self.dir / "status-main")), "it is ready", timeout=60
        )
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        return init

    def _wait_ready(self, timeout: float) -> None:
        super()._wait_ready(timeout)
        assert self.start["main"].pid == 1
        self.pids = {"main": self.pid}

    def restored(self) -> None:
        """It may have got another pid out here."""
        [self.pid] = self.processes()
        self.pids = {"main": self.pid}

    def close(self) -> None:
        super().close()
        subprocess.run(["umount", "-l", self.root], check=True)


@contextlib.contextmanager
def wrapped(words: list[str]) -> Iterator[None]:
    """Meanwhile os.posix_spawn starts its command by another, as `nice` does: `words` COMMAND."""
    spawn = os.posix_spawn

    def wrapping(path, command, environment, **options):
        return spawn(shutil.which(words[0]), [*words, path, *command[1:]], environment, **options)

    os.posix_spawn = wrapping
    try:
        yield
    finally:
        os.posix_spawn = spawn


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on the disk that every user can enter (pytest's own only root can)."""
    with tempfile.TemporaryDirectory(prefix="sealpoint-test-", dir="/var/tmp") as name:
        yield Path(name)


def dump_and_restore(
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    workload: harness.Workload,
    directory: Path,
    *options: str,
) -> None:
    """The workload is gone in between, and its secrets are in nothing that was written."""
    file = directory / "app.sealed"
    more = ("--", *options) if options else ()
    with leaks.FileWatcher(workload.needles, [directory], ignore=[workload.dir]) as watcher:
        sealpoint.run("dump", "-t", str(workload.pid), "-o", file, *keys.seal).ok()
        workload.wait_gone()
        assert workload.processes() == []
        sealpoint.run("restore", file, *keys.open, "--detach", *more).ok()
    assert watcher.leaks() == []


@pytest.mark.parametrize("kind", ["memory", "tree", "ipc"])
def test_a_tree_of_another_user(
    place: Path,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    needles: Mapping[str, bytes],
    tmp_path: Path,
    kind: str,
) -> None:
    arguments = ("--mib", "4") if kind == "memory" else ()
    workload = UsersWorkload(kind, place / "work", needles, *arguments)
    try:
        before = workload.assert_intact()
        dump_and_restore(sealpoint, keys, workload, tmp_path)
        workload.assert_continues(before)
        for pid in workload.processes():
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if ":\t" in line
            )
            assert status["Uid"].split() == [str(USER)] * 4
            assert status["Groups"].split() == []
            assert int(status["CapEff"], 16) == 0
            assert status["NoNewPrivs"] == "1"
    finally:
        workload.close()


def test_a_process_in_namespaces_of_its_own(
    place: Path,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    needles: Mapping[str, bytes],
    tmp_path: Path,
) -> None:
    """With a file in its tmpfs: CRIU has tar put that into an image."""
    workload = NamespacedWorkload("secret", place / "work", needles)
    try:
        inside = Path(f"/proc/{workload.pid}/root/dev/file")
        inside.write_bytes(needles["shm"])
        workload.needles["shm"] = needles["shm"]
        before = workload.assert_intact()
        dump_and_restore(sealpoint, keys, workload, tmp_path, "--root", str(workload.root))
        workload.restored()
        workload.assert_continues(before)
        assert Path(f"/proc/{workload.pid}/root/dev/file").read_bytes() == needles["shm"]
        for kind in ("pid", "mnt"):
            assert os.readlink(f"/proc/{workload.pid}/ns/{kind}") != os.readlink(
                f"/proc/self/ns/{kind}"
            )
    finally:
        workload.close()


# --- swap ----------------------------------------------------------------------------------------


@pytest.fixture
def swap(place: Path) -> Iterator[Path]:
    """Swap is on, in a file on the disk."""
    file = place / "swap"
    with open(file, "wb") as out:
        os.fchmod(out.fileno(), 0o600)
        out.writelines(bytes(1 << 20) for _ in range(64))
    subprocess.run(["mkswap", file], check=True, stdout=subprocess.PIPE)
    subprocess.run(["swapon", file], check=True)
    try:
        yield file
    finally:
        subprocess.run(["swapoff", file], check=True)


def locked_and_swapped(pid: int) -> tuple[int, int]:
    """KiB of a process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in status if line.endswith(" kB")}
    return int(fields["VmLck"]), int(fields["VmSwap"])


def test_with_swap_what_holds_plaintext_is_locked_into_memory(
    swap: Path, workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload("memory", "--mib", "4")
    before = running.assert_intact()
    with sealed.stalled_dump(sealpoint, keys, running) as (dump, target):
        locked, swapped = locked_and_swapped(dump.pid)
        assert locked > 0
        assert swapped == 0
        target.take()
        result = dump.wait().ok()
    assert "swap" not in result.err
    running.assert_continues(before)


def test_with_swap_and_without_the_right_to_lock_memory_it_warns(
    swap: Path,
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    command = [
        "prlimit", "--memlock=65536:65536",
        "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock",
        *sealed.SEALPOINT, "dump", "-t", str(running.pid), "-R", "-o", tmp_path / "app.sealed",
        *keys.seal,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=sealpoint.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done
    assert "swap is on and memory cannot be locked" in done.stderr
    running.assert_continues(before)


def test_doctor_tells_of_swap(swap: Path, sealpoint: sealed.Sealpoint) -> None:
    said = sealpoint.run("doctor").out.decode()
    assert f"warn  leaks: swap on {swap} is not known to be encrypted" in said

"""Both sides of a migration, for tests: who sends, who receives, who sits on the link, and where the tree is."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.real.far_side import FarSide
from tests.real.tap import PORT, Tap

TIMEOUT = "3"  # seconds after which a silent link counts as cut


@pytest.fixture
def far() -> Iterator[FarSide]:
    with FarSide() as side:
        yield side


class Receiver:
    """`sealpoint receive` on the far side."""

    def __init__(
        self,
        sealpoint: sealed.Sealpoint,
        keys: sealed.Keys,
        far: FarSide,
        directory: Path,
        *more: str,
    ) -> None:
        self.keep = directory / "keep"
        self.errors = directory / "receive.err"
        self._out = b""
        words = ["receive", "--listen", f"tcp://{far.address}:{PORT}", "--timeout", TIMEOUT]
        words += ["--keep", str(self.keep), *(more or keys.open)]
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                far.command(*sealed.SEALPOINT, *words), env=sealpoint.environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        sealed.wait_until(
            lambda: self._listens(far) or self.process.poll() is not None, "it listens"
        )

    def _listens(self, far: FarSide) -> bool:
        table = subprocess.run(far.command("cat", "/proc/net/tcp"), capture_output=True, text=True)
        return any(
            f":{PORT:04X} " in line and line.split()[3] == "0A"
            for line in table.stdout.splitlines()
        )

    def wait(self, timeout: float = 60.0) -> sealed.Result:
        if not self.process.stdout.closed:
            self._out, _ = self.process.communicate(timeout=timeout)
        out = self._out
        return sealed.Result(self.process.returncode, out, self.errors.read_text())

    def kept(self) -> list[Path]:
        """Sealed files, oldest first."""
        return sorted(self.keep.glob("*/*.sealed"))

    def left(self) -> list[Path]:
        """Everything below the directory for what is kept."""
        return sorted(self.keep.rglob("*"))

    def end(self, far: FarSide) -> sealed.Result:
        """From outside, as an operator would."""
        os.kill(self.pid(far), signal.SIGTERM)
        return self.wait()

    def pids(self, far: FarSide) -> list[int]:
        """Of `sealpoint receive` itself; none when it has ended."""
        lines = {pid: harness.words(pid, "cmdline") for pid in far.pids()}
        return [pid for pid, line in lines.items() if b"receive" in line and b"nsenter" not in line]

    def pid(self, far: FarSide) -> int:
        [pid] = self.pids(far)
        return pid


@pytest.fixture
def receive(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, far: FarSide, tmp_path: Path
) -> Iterator[Callable[..., Receiver]]:
    started: list[Receiver] = []

    def start(*more: str) -> Receiver:
        started.append(Receiver(sealpoint, keys, far, tmp_path, *more))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        each.process.stdout.close()


def migrate(far: FarSide, running: harness.Workload, keys: sealed.Keys, *more: str) -> list[str]:
    words = ["migrate", "-t", str(running.pid), "--to", f"tcp://{far.address}:{PORT}"]
    return [*words, "--timeout", TIMEOUT, *keys.seal, *more]


def where(running: harness.Workload, far: FarSide) -> list[str]:
    """On which sides processes of the workload are, when those that somebody has killed have ended.

    CRIU and sealpoint end as soon as they have killed a tree that shall not run: it may still be there then.
    """
    killed = lambda: [pid for pid in running.processes() if harness.is_ending(pid)]  # noqa: E731
    sealed.wait_until(lambda: not killed(), "what was killed has ended")
    there = far.pids()
    return sorted({"far" if pid in there else "here" for pid in running.processes()})


@pytest.fixture
def tap(far: FarSide) -> Iterator[Callable[..., Tap]]:
    started: list[Tap] = []

    def start(moment: Callable[[str, int], str] = lambda *_: "pass") -> Tap:
        started.append(Tap(far, moment))
        return started[-1]

    yield start
    for each in started:
        each.close()


def through(tapped: Tap, running: harness.Workload, keys: sealed.Keys, *more: str) -> list[str]:
    words = migrate(tapped.far, running, keys, *more)
    words[words.index("--to") + 1] = f"tcp://127.0.0.1:{tapped.port}"
    return words

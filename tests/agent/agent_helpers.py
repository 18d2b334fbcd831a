"""A node of the tests' own: a directory in which archives appear, keys, a store, and the agent as a program."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.checkpoint.checkpoint_helpers import (
    Keys,
    a_pre_dump,
    make_tar,
    member,
    open_to,
    read_tar,
)

PATIENCE = 120  # seconds: a state is waited for, never a moment
SPEC = """{"annotations": {"io.kubernetes.cri.container-type": "container",
"io.kubernetes.cri.container-name": "%s", "io.kubernetes.cri.sandbox-name": "%s",
"io.kubernetes.cri.sandbox-namespace": "%s"}}"""


def archive(marker: str, *, size: int = 0, container="web", pod="web-0", namespace="shop") -> bytes:
    """As the kubelet's runtime makes it, of one container; `marker` is in its memory, behind `size` other bytes."""
    images = a_pre_dump(b"x" * size + f"<<{marker}>>".encode())
    return make_tar(
        *[member(f"checkpoint/{name}", data) for name, data in images.items()],
        member("spec.dump", (SPEC % (container, pod, namespace)).encode()),
    )


def marker_of(members: dict[str, tuple]) -> str:
    memory = members["checkpoint/pages-1.img"][-1]
    return memory.partition(b"<<")[2].partition(b">>")[0].decode()


def wait_for(condition, what, process=None):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if process is not None and process.poll() is not None:
            pytest.fail(f"the agent has ended, before {what}")
        if time.monotonic() > deadline:
            pytest.fail(f"not within {PATIENCE} s: {what}")
        time.sleep(0.02)
    return found


class Node:
    """watched, store, queue: directories.  log: of the agent that was started last."""

    def __init__(self, directory: Path, keys: Keys) -> None:
        self.directory, self.keys = directory, keys
        self.watched, self.store = directory / "watched", directory / "store"
        self.queue, self.log = directory / "queue", directory / "log"
        for path in (self.watched, self.store, directory / "home"):
            path.mkdir(exist_ok=True)
        self.where = str(self.store)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"XDG_CONFIG_HOME": str(self.directory / "home")}

    def options(self, *more, listen="none") -> list[str]:
        given = [
            *("agent", "--watch", self.watched, "--store", self.where, "--queue", self.queue),
            *("-r", self.keys.recipient_path, "--sign", self.keys.signer_path),
            *("--min-free", "1K", "--listen", listen),
        ]
        return [str(each) for each in (*given, *more)]

    def run(self, *arguments, module=None) -> subprocess.CompletedProcess:
        start = ["-m", module] if module else ["-c", "from sealpoint.cli import main; main()"]
        done = subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=PATIENCE,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "internal error" not in done.stderr, done.stderr
        return done

    def once(self, *more) -> subprocess.CompletedProcess:
        return self.run(*self.options("--once", *more))

    @contextlib.contextmanager
    def agent(self, *more, listen="none"):
        """The agent as it runs for ever; ended by SIGTERM, as systemd and the kubelet end it."""
        with open(self.log, "wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", "from sealpoint.cli import main; main()"),
                    *self.options(*more, listen=listen),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        try:
            wait_for(lambda: "watching" in self.said(), "the agent watches", process)
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE) == 0, self.said()
        finally:
            process.kill()
            process.wait()
        assert "Traceback" not in self.said()

    def said(self) -> str:
        return self.log.read_text(errors="surrogateescape")

    def write(self, name, data: bytes) -> Path:
        """As an engine: under its final name, in pieces."""
        path = self.watched / name
        with open(path, "wb") as file:
            file.writelines(data[at : at + (1 << 16)] for at in range(0, len(data), 1 << 16))
        return path

    def plain(self) -> set[str]:
        """What is there besides the agent's lock; what it has taken over, too."""
        return {name for name in os.listdir(self.watched) if name != ".sealpoint.lock"}

    def sealed(self) -> list[Path]:
        return sorted(self.store.glob("*.sealed"))

    def opened(self, path) -> dict[str, tuple]:
        """What is in a sealed file, which must verify."""
        out = self.directory / "opened.tar"
        open_to(self.keys, path, out, force=True)
        return read_tar(out.read_bytes())

    def markers(self) -> list[str]:
        return sorted(marker_of(self.opened(path)) for path in self.sealed())

    def waiting(self) -> list[str]:
        return sorted(p.name for p in (self.queue / "queue").glob("*"))

    def entry(self):
        """The one archive that waits, as the queue on disk has it."""
        from sealpoint.agent.journal import AgentQueue

        queue = AgentQueue(str(self.queue))
        ((entry,), damaged) = queue.entries()
        queue.close()
        assert damaged == []
        return entry

    def during(self, action):
        """One pass of the agent in this process; `action` runs while the first archive is being sealed."""
        with inside(self) as agent:
            done = []

            def report(_):
                if not done:
                    done.append(True)
                    action()

            agent._worker._report = report
            agent.once()
            assert done, "the archive is too small to be in the middle of it"
            return agent

    @staticmethod
    def lease_is_quiet(path) -> bool:
        """Whether nobody waits for a lease on a file to end."""
        number = os.stat(path).st_ino
        with open("/proc/locks") as file:
            lines = [line for line in file if f":{number} " in line and " LEASE " in line]
        return bool(lines) and not any("BREAKING" in line for line in lines)

    @staticmethod
    @contextlib.contextmanager
    def mounted(directory, options):
        """A tmpfs there."""
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "sealtest", str(directory)], check=True
        )
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(directory)], check=True)

    def is_clean(self) -> bool:
        """Nothing in the clear, nothing in the queue, nothing half done in the store."""
        left = [p for p in self.store.iterdir() if p.suffix != ".sealed"]
        return not self.plain() and not self.waiting() and not left


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def node(tmp_path, keys):
    return Node(tmp_path, keys)


@contextlib.contextmanager
def inside(node: Node):
    """The agent in this process, for tests that do something in the middle of its work."""
    from sealpoint.agent import Agent, NodeSealing, Settings

    node.words = ""

    def say(text):
        node.words += text + "\n"

    settings = Settings(
        watch=(str(node.watched),), store=node.where, state=str(node.queue), min_free=1
    )
    with Agent(settings, NodeSealing(node.keys.sealing()), say) as agent:
        yield agent

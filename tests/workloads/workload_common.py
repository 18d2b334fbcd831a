"""What all workloads share: start, secrets from stdin, self-verification, the counting loop.

A workload is a small program that is dumped by CRIU. It holds data in places that a checkpoint
must carry (memory, pipes, sockets, files without a name), remembers only their hashes, and tells
on request whether everything is still as it was and how far it has counted.

The secrets come through stdin, one `NAME VALUE` per line, so that they are in no command line
and in no file; the value named `env` comes through the environment, where it belongs.
Answers never contain a secret: they are `ok|BAD COUNTER SESSION PID [WHAT...]`. SESSION is
random and made once, so a process that was started again cannot pass for a restored one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable

from workload_ask import get_link, set_link

PAGE = 4096
TICK_SECONDS = 0.005
ENVIRONMENT_NAME = "SEALPOINT_WORKLOAD_ENV"
NEEDLE_OFFSET = 200
"""Where in a page a secret is planted: away from the page's border, so that it stays whole
whatever happens to the neighbouring pages."""


def digest(data: object) -> str:
    return hashlib.sha256(data).hexdigest()  # type: ignore[arg-type]


class Workload:
    """The state of one process: its checks and its counter."""

    def __init__(self, **defaults: int) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--dir", required=True, help="where questions and answers are")
        parser.add_argument("--daemon", action="store_true", help="detach; print the pid")
        for name, value in defaults.items():
            parser.add_argument(f"--{name}", type=int, default=value)
        self.args = parser.parse_args()
        self.dir: str = os.path.abspath(self.args.dir)
        self.secrets: dict[str, bytes] = {}
        for line in sys.stdin.buffer.read().splitlines():
            key, _, secret = line.partition(b" ")
            self.secrets[key.decode()] = secret
        if self.args.daemon:
            self._detach()
        # Whatever the starter left open here would be dumped too, or make the dump fail.
        os.closerange(3, 4096)
        self.counter = 0
        self.session = secrets.token_hex(6)
        self._expected: dict[str, str] = {}
        self._measure: dict[str, Callable[[], str]] = {}
        if ENVIRONMENT_NAME in os.environ:
            self.watch("env", _environment_digest)

    def _detach(self) -> None:
        os.makedirs(self.dir, exist_ok=True)
        ready = f"{self.dir}/status-main"
        if get_link(ready) is not None:
            os.unlink(ready)
        child = os.fork()
        if child == 0:
            os.setsid()
            return
        while get_link(ready) is None:
            if os.waitpid(child, os.WNOHANG)[0]:
                os._exit(1)
            time.sleep(0.005)
        os.write(1, b"%d\n" % child)
        os._exit(0)

    def secret(self, name: str) -> bytes:
        """The planted value, or something harmless when the starter has not given one."""
        return self.secrets.get(name, b"no-secret-named-" + name.encode())

    def watch(self, name: str, measure: Callable[[], str]) -> None:
        """From now on `measure()` must always give what it gives now."""
        self._measure[name] = measure
        self._expected[name] = measure()

    def serve(self, name: str = "main", on_tick: Callable[[], None] | None = None) -> None:
        """Become ready, then count and answer for ever (or until the directory is removed)."""
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        if null > 2:
            os.close(null)
        seen = get_link(f"{self.dir}/ask")
        self._answer(name, "ready")
        while True:
            self.counter += 1
            if on_tick is not None:
                on_tick()
            question = get_link(f"{self.dir}/ask")
            if question != seen and question is not None:
                seen = question
                self._answer(name, question)
            elif not os.path.isdir(self.dir):
                os._exit(0)
            time.sleep(TICK_SECONDS)

    def _answer(self, name: str, question: str) -> None:
        bad = []
        for what, measure in self._measure.items():
            try:
                if measure() != self._expected[what]:
                    bad.append(what)
            except Exception as error:  # an unreadable pipe is a verdict too
                bad.append(f"{what}:{type(error).__name__}")
        words = [
            question,
            "BAD" if bad else "ok",
            str(self.counter),
            self.session,
            str(os.getpid()),
            *bad,
        ]
        set_link(f"{self.dir}/status-{name}", " ".join(words))


def _environment_digest() -> str:
    # Not os.environ, which is a copy on the heap: the kernel's view of the real thing.
    with open("/proc/self/environ", "rb") as file:
        return digest(file.read())


def drain(fd: int) -> bytes:
    """All that waits in a pipe or stream socket, without blocking at its end."""
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(fd, 1 << 20)
        except BlockingIOError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def check_pipe(reader: int, writer: int) -> str:
    """Digest of what waits in the pipe; it is taken out and put back."""
    data = drain(reader)
    view = memoryview(data)
    while view:
        view = view[os.write(writer, view) :]
    return digest(data)

"""The process that runs podman, and that puts things right if the one that seals or opens is killed.

It is forked before there are threads.  Podman's descendants belong to it, so it knows when all of them have ended; only
then may stopped tasks go on, or a dump that still ran would stop them once more.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn

from sealpoint import process
from sealpoint.errors import SystemEnvironmentError
from sealpoint.podman.engine import PodmanError, explain
from sealpoint.podman.place import ArchivePlace

_GO, _DONE = b"go", b"done"
_MAX: Final = 65536
_MAX_SAID: Final = 16 * 1024
_PIECE: Final = 64 * 1024


class ArchiveGuard:
    """Waits for `go`, then runs podman; after `done`, or when its starter has gone, it cleans up and ends."""

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        place: ArchivePlace,
        *,
        prepare: Callable[[], None] | None = None,
        undo: Callable[[], None],
        waits_for_all: bool,
    ) -> None:
        """prepare: in its own process, before podman is started; undo: there, if `done` never comes.

        waits_for_all: whether podman's descendants are part of the work; after a restore some live on.
        """
        self._argv = list(argv)
        self._environment = dict(environment)
        self._place = place
        self._prepare = prepare
        self._undo = undo
        self._waits_for_all = waits_for_all
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._link.close()
            self._guard(theirs)
        theirs.close()

    # In the starter

    def go(self) -> None:
        """Start podman."""
        self._link.send(_GO)

    def wait(self) -> None:
        """Until podman and what it started have ended.  Raises PodmanError if it failed, with what it said."""
        try:
            data = self._link.recv(_MAX)
        except OSError:
            data = b""
        if not data:
            raise PodmanError("the process that runs podman was killed")
        answer = json.loads(data)
        if "error" in answer:
            raise SystemEnvironmentError(answer["error"])
        if answer["code"] != 0:
            said = answer["said"].encode()
            raise PodmanError(explain(" ".join(_command(self._argv)), said))

    def done(self) -> None:
        """All is well: nothing is to be undone."""
        with contextlib.suppress(OSError):
            self._link.send(_DONE)
        self.close()

    def close(self) -> None:
        """Without `done` before, everything is undone when this returns."""
        self._link.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    @property
    def killed(self) -> bool:
        """Whether it has ended without doing its duty, after `close`."""
        return os.path.isdir(self._place.path)

    # In the guard

    def _guard(self, link: socket.socket) -> NoReturn:
        try:
            os.setsid()  # the terminal's signals are for the starter
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if self._waits_for_all:
                process.become_subreaper()
            done = False
            if link.recv(_MAX) == _GO:
                with contextlib.suppress(OSError):
                    link.send(json.dumps(self._podman(link)).encode())
                done = link.recv(_MAX) == _DONE
            if not done:
                self._undo()
        finally:
            self._place.remove()
            os._exit(0)

    def _podman(self, link: socket.socket) -> dict[str, object]:
        try:
            if self._prepare is not None:
                self._prepare()
        except OSError as error:
            return {"error": f"cannot mount {error.filename}: {error.strerror}"}
        with open(os.memfd_create("said", os.MFD_CLOEXEC), "w+b") as said:
            podman = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=self._environment,
                preexec_fn=_usual_signals,  # noqa: PLW1509 - no thread runs yet
            )
            self._await(podman, link)
            while self._waits_for_all:
                try:
                    os.wait()
                except ChildProcessError:
                    break
            said.seek(0)
            text = said.read()[-_MAX_SAID:].decode(errors="replace")
        return {"code": podman.returncode, "said": text}

    def _await(self, podman: subprocess.Popen[bytes], link: socket.socket) -> None:
        """Until podman has ended, whatever becomes of the starter."""
        ended = os.pidfd_open(podman.pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(link, select.POLLIN)
        while ended not in (ready := [fd for fd, _ in poll.poll()]):
            if ready:  # the starter says nothing before podman's end: it has gone
                poll.unregister(link)
                threading.Thread(target=self._drain, name="drain", daemon=True).start()
        podman.wait()
        os.close(ended)

    def _drain(self) -> None:
        """Nobody reads the archive any more, and podman would wait for that for ever: take it and throw it away."""
        with contextlib.suppress(OSError):
            if not stat.S_ISFIFO(os.lstat(self._place.archive).st_mode):
                return
            # For both: it blocks neither here, where podman has not come to it yet, nor podman.
            fd = os.open(self._place.archive, os.O_RDWR | os.O_CLOEXEC)
            while os.read(fd, _PIECE):
                pass


def _usual_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _command(argv: Sequence[str]) -> list[str]:
    """`container checkpoint`, of a command line."""
    at = argv.index("container")
    return list(argv[at : at + 2])

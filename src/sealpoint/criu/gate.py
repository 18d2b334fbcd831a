"""The gate between CRIU's hooks and sealpoint: a socket on which an action waits for its verdict.

At `post-dump` the sealed file must be complete and durable, at `post-restore` everything must have verified.  The shell
filters the other actions out before it starts an interpreter.

Socket, script and a nonce of this run lie in a directory that only root can enter.  The script finds them beside
itself, by the path under which CRIU ran it, so that no path of theirs has a pid in it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sealpoint.criu import hook

SCRIPT = "gate.sh"
_PATIENCE = 10.0  # seconds for who connects to say what it asks
Decide = Callable[[], bool]


class Gate:
    """Serves one action of one CRIU run, in a thread.  `decide` returns True to let CRIU go on.

    directory: a path that this process can use; only root may be able to enter it.
    before: commands of a shell that run first and can say no, too; for the other actions as well.
    confirm: called when nothing can turn the answer into a no any more, but itself; must not wait for anybody.
    passed: whether the answer was yes.
    """

    def __init__(
        self,
        directory: str,
        action: str,
        decide: Decide,
        *,
        before: tuple[str, ...] = (),
        confirm: Decide = lambda: True,
    ) -> None:
        self._before = before
        self._confirm = confirm
        self.action = action
        self.passed = False
        self._decide = decide
        self._lock = threading.Lock()
        self._refused = False
        self._asking: socket.socket | None = None
        self._nonce = os.urandom(2 * hook.HALF)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(f"{directory}/{hook.SOCKET}")
        self._server.listen(4)
        _write(f"{directory}/{hook.NONCE}", self._nonce, 0o600)
        _write(f"{directory}/{SCRIPT}", self._script().encode(), 0o700)
        self._thread = threading.Thread(target=self._serve, name="gate", daemon=True)

    def _script(self) -> str:
        # CRIU executes the script for each of its actions, without a shell and without arguments.
        run = shlex.join([sys.executable, "-I", "-S", hook.__file__])
        lines = ["#!/bin/sh\n"]
        lines += [f"{command} || exit 1\n" for command in self._before]
        lines.append(f'[ "$CRTOOLS_SCRIPT_ACTION" = {self.action} ] || exit 0\n')
        lines.append(f'exec {run} "${{0%/*}}"\n')
        return "".join(lines)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return  # shut down: whoever asks now gets no answer, which is a no
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        with self._lock:
            self._asking = connection
        try:
            if not self._asks(connection) or self.passed or not self._decide():
                return
            with self._lock:
                if not self._refused and self._confirm():
                    self.passed = True
                    connection.sendall(hook.YES + self._nonce[hook.HALF :])
        except OSError:
            self.passed = False
        finally:
            with self._lock:
                self._asking = None

    def _asks(self, connection: socket.socket) -> bool:
        """Whether this is the hook of this run, at the action that matters."""
        if hook.peer(connection) != 0:
            return False
        connection.settimeout(_PATIENCE)
        expected = self._nonce[: hook.HALF] + self.action.encode() + b"\n"
        asks = hook.same(hook.receive(connection, len(expected)), expected)
        connection.settimeout(None)
        return asks

    def refuse(self) -> bool:
        """Answer no, now and from now on, whatever `decide` would say.  False if the answer was yes already."""
        with self._lock:
            if self.passed:
                return False
            self._refused = True
            if self._asking is not None:
                with contextlib.suppress(OSError):  # the hook has gone
                    self._asking.shutdown(socket.SHUT_RDWR)
            return True


def remove(directory: str) -> None:
    """A directory with nothing but what a gate has made in it.  Does its best."""
    for name in (hook.SOCKET, hook.NONCE, SCRIPT):
        with contextlib.suppress(OSError):
            os.unlink(f"{directory}/{name}")
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)

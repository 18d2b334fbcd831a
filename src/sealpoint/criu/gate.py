"""The gate between CRIU's hooks and sealpoint: a socket on which an action waits for its verdict.

At `post-dump` the sealed file must be complete and durable, at `post-restore` everything must have verified.  The shell
filters the other actions out before it starts an interpreter.
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

_SOCKET = "gate.sock"
_SCRIPT = "gate.sh"
Decide = Callable[[], bool]


class Gate:
    """Serves one action of one CRIU run, in a thread.  `decide` returns True to let CRIU go on.

    before: other action scripts, which run first and can say no, too; for the other actions as well.
    confirm: called when nothing can turn the answer into a no any more, but itself; must not wait for anybody.
    script: the path for `--action-script`.  passed: whether the answer was yes.
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
        self._path = f"{directory}/{_SOCKET}"
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(self._path)
        self._server.listen(4)
        self.script = f"{directory}/{_SCRIPT}"
        self._write_script()
        self._thread = threading.Thread(target=self._serve, name="gate", daemon=True)

    def _write_script(self) -> None:
        # CRIU executes the script for each of its actions, without a shell and without arguments.
        run = shlex.join([sys.executable, "-I", "-S", hook.__file__, self._path])
        fd = os.open(self.script, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
        with os.fdopen(fd, "w") as file:
            file.write("#!/bin/sh\n")
            file.writelines(f"{shlex.quote(path)} || exit 1\n" for path in self._before)
            file.write(f'[ "$CRTOOLS_SCRIPT_ACTION" = {self.action} ] || exit 0\nexec {run}\n')

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
            asked = connection.recv(64)
            if asked != self.action.encode() + b"\n" or self.passed or not self._decide():
                return
            with self._lock:
                if not self._refused and self._confirm():
                    self.passed = True
                    connection.sendall(hook.YES)
        except OSError:
            self.passed = False
        finally:
            with self._lock:
                self._asking = None

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

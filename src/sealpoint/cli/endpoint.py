"""Where the other side of a migration is: tcp://HOST:PORT or ssh://[USER@]HOST[:PORT]."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from urllib.parse import urlsplit

from sealpoint.environment import environment
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.store.link import Link, connect

_PATIENCE = 10.0  # seconds for ssh to end once its pipes are closed


@dataclass(frozen=True, slots=True)
class Endpoint:
    """scheme: tcp or ssh; user: of ssh, may be empty; port: None is the default of ssh."""

    scheme: str
    host: str
    port: int | None
    user: str = ""


def parse(text: str, *, schemes: tuple[str, ...], listens: bool = False) -> Endpoint:
    """listens: the host may be empty.  Raises UsageError."""
    wanted = " or ".join("tcp://HOST:PORT" if s == "tcp" else "ssh://[USER@]HOST" for s in schemes)
    problem = UsageError(f"{text!r} is not an address", hint=f"write {wanted}")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise problem from None
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.password
    user = parts.username or ""
    # ssh would take a name that begins with a dash for an option.
    if (
        parts.scheme not in schemes
        or not (host or listens)
        or extra
        or host.startswith("-")
        or user.startswith("-")
    ):
        raise problem
    if parts.scheme == "tcp" and (port is None or user):
        raise problem
    return Endpoint(parts.scheme, host, port, user)


class Connection:
    """An open link; a context manager that closes it.  remote: the command that ssh runs there."""

    def __init__(self, endpoint: Endpoint, *, patience: float, ssh: str, remote: str) -> None:
        """Raises SystemEnvironmentError, UsageError."""
        self._process: subprocess.Popen[bytes] | None = None
        if endpoint.scheme == "tcp":
            assert endpoint.port is not None
            self.link = connect(endpoint.host, endpoint.port, patience=patience)
            return
        words = shlex.split(ssh)
        if endpoint.port is not None:
            words += ["-p", str(endpoint.port)]
        name = f"{endpoint.user}@{endpoint.host}" if endpoint.user else endpoint.host
        try:
            self._process = subprocess.Popen(
                [*words, "--", name, remote],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(own=True),
            )
        except (OSError, IndexError) as error:
            raise SystemEnvironmentError(f"cannot run {ssh}: {error}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.link = Link(
            os.dup(self._process.stdout.fileno()),
            os.dup(self._process.stdin.fileno()),
            peer=endpoint.host,
            patience=patience,
        )
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Link:
        return self.link

    def __exit__(self, *_: object) -> None:
        self.link.close()
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.terminate()
                self._process.wait()


def standard_streams() -> tuple[int, int]:
    """Descriptors of standard input and output for a link; what prints to standard output now prints nowhere."""
    ours = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return ours

"""`criu page-server` as typed: stores what a dump on another machine sends, sealed as it comes.  Needs no key.

The real CRIU has no part in this.  As with it, one connection is served, then the process ends.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Final, NoReturn

from sealpoint import config as configuration
from sealpoint.checkpoint import pages_file
from sealpoint.dropin.arguments import CommandLine
from sealpoint.errors import SealpointError, SystemEnvironmentError, UsageError
from sealpoint.keys import TrustPolicy
from sealpoint.store import page_server

_TAKEN: Final = (
    *("images-dir", "work-dir", "log-file", "address", "port", "ps-socket", "status-fd", "pidfile"),
    *("daemon", "restore-detached", "verbosity", "no-default-config"),
)


def run(line: CommandLine) -> NoReturn:
    """Ends the process, with 0 if a file was stored and 1 if not."""
    log = None
    try:
        images = os.path.abspath(line.images or ".")
        work = os.path.abspath(line.work or images)
        if line.has("log-file"):
            log = _open_log(os.path.join(work, line.values["log-file"]))
        _serve(line, images, work)
    except SealpointError as error:
        _say(f"Error (sealpoint): {error.message}" + (f" ({error.hint})" if error.hint else ""))
        os._exit(1)
    finally:
        if log is not None:
            os.close(log)
    os._exit(0)


def _serve(line: CommandLine, images: str, work: str) -> None:
    unknown = [name for name in line.values if name not in _TAKEN]
    if unknown:
        raise UsageError(f"criu page-server cannot be told --{unknown[0]} with sealing")
    if not os.path.isdir(images):
        raise UsageError(f"there is no directory {images}")
    policy = _policy()
    if line.has("ps-socket"):
        number = line.number("ps-socket")
        try:
            connection = socket.socket(fileno=number)
        except OSError as error:
            raise UsageError(f"descriptor {number} is no socket: {error.strerror}") from None
        _detach(line, work)
    else:
        with page_server.listen(line.values.get("address", ""), line.number("port")) as listener:
            _say(f"Listening on port {listener.getsockname()[1]}")
            _detach(line, work)
            connection, peer = listener.accept()
        _say(f"Accepted connection from {peer[0]}:{peer[1]}")
    with connection:
        stored = page_server.receive(
            connection,
            images,
            pages_file.file_name,
            lambda fd, checkpoint_id: pages_file.check_stored(fd, checkpoint_id, policy),
        )
    _say(f"Stored {stored.path}, {stored.size} bytes")


def _policy() -> TrustPolicy | None:
    """Whom a sender's file must be signed by, if the configuration says so."""
    from sealpoint import keys

    config = configuration.load()
    if not config.trust and not config.signer_authorities:
        return None
    return keys.load_trust(config.trust, ca_bundles=config.signer_authorities)


def _detach(line: CommandLine, work: str) -> None:
    """Go into the background if that was asked for, and say that connections are taken."""
    if line.has("daemon") or line.has("restore-detached"):
        child = os.fork()
        if child:
            if line.has("pidfile"):
                _write_pidfile(os.path.join(work, line.values["pidfile"]), child)
            os._exit(0)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1) if line.has("log-file") else (0, 1, 2):
            os.dup2(null, fd)
    if line.has("status-fd"):
        try:
            os.write(line.number("status-fd"), b"\0")
            os.close(line.number("status-fd"))
        except OSError as error:
            raise UsageError(f"cannot write to the status descriptor: {error.strerror}") from None


def _write_pidfile(path: str, pid: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(f"{pid}")
    except OSError as error:
        import signal

        os.kill(pid, signal.SIGKILL)
        _say(f"Error (sealpoint): cannot write {path}: {error.strerror}")
        os._exit(1)


def _open_log(path: str) -> int:
    """Standard error goes there, as with CRIU."""
    try:
        fd = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise SystemEnvironmentError(f"cannot write {path}: {error.strerror}") from None
    os.dup2(fd, 2)
    return fd


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()

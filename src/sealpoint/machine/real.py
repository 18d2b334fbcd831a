"""The real CRIU beside the drop-in: finding it without meeting ourselves, and trying whether it works here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import Final

from sealpoint import process
from sealpoint.criu import binary, causes
from sealpoint.criu.binary import CriuBinary
from sealpoint.criu.private_dir import PrivateDir
from sealpoint.environment import environment
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.names import proc

MARK: Final = b"# The drop-in criu of sealpoint."
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATIENCE: Final = 60.0
_HEAD: Final = 4096
_GET: Final = "install criu 4.0 or newer (Debian 13 and later have it), or name one with --criu"


def is_dropin(path: str) -> bool:
    """Whether a file is what `install-criu` makes."""
    try:
        with open(path, "rb") as file:
            return MARK in file.read(_HEAD).splitlines()
    except OSError:
        return False


def which(path: str) -> str | None:
    """The `criu` that a program with this PATH would run."""
    for directory in path.split(":"):
        candidate = os.path.join(directory or ".", "criu")
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def find_real(wanted: str = "") -> CriuBinary:
    """The CRIU at `wanted`, else at $SEALPOINT_CRIU, else set up with sealpoint, else the first in PATH.

    In PATH the drop-in is passed over.

    Its path is absolute.  Raises UsageError, SystemEnvironmentError.
    """
    named = wanted
    wanted = wanted or os.environ.get("SEALPOINT_CRIU", "") or binary.companion() or ""
    if not wanted:
        search = os.environ.get("PATH", "").split(":") + DEFAULT_PATH.split(":")
        candidates = [which(d) for d in search if os.path.isabs(d)]
        wanted = next((c for c in candidates if c and not is_dropin(c)), "")
        if not wanted:
            raise SystemEnvironmentError("CRIU is not installed", hint=_GET)
    found = os.path.abspath(wanted)
    if not os.path.isfile(found) or not os.access(found, os.X_OK):
        raise SystemEnvironmentError(f"{found} is not an executable CRIU", hint=_GET)
    if is_dropin(found):
        raise UsageError(f"{found} is sealpoint's drop-in, not the real CRIU", hint=_GET)
    if refused := binary.refusal(named, found):
        raise refused
    return binary.find(found)


def supports(criu: CriuBinary, feature: str) -> bool:
    """What `criu check --feature` says.  Raises SystemEnvironmentError where it cannot be run."""
    try:
        done = subprocess.run(
            [criu.path, "check", "--no-default-config", "--feature", feature],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
            env=environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        raise SystemEnvironmentError(f"{criu.path} check did not finish in time") from None
    return done.returncode == 0


def problem_of(criu: CriuBinary) -> str:
    """Dump a process and restore it, as `criu check` cannot tell; returns why that failed, empty if it works.

    The images are those of a `sleep` and go to memory.  Needs root.  Raises SystemEnvironmentError (no mounts).
    """
    process.become_subreaper()
    with PrivateDir() as directory, open(os.devnull, "r+b") as null:
        child = subprocess.Popen(
            ["sleep", "1000"],
            stdin=null,
            stdout=null,
            stderr=null,
            start_new_session=True,
            env=environment(),
        )
        try:
            _await_exec(child.pid)
            if not _run(criu, directory, "dump", ["-t", str(child.pid), "-o", "dump.log"]):
                return _reason(directory, "dump")
        finally:
            child.kill()  # does nothing after a dump
            child.wait()
        if not _run(criu, directory, "restore", ["-d", "-o", "restore.log"]):
            return _reason(directory, "restore")
        return _end_restored(child.pid)


def _run(criu: CriuBinary, directory: PrivateDir, command: str, arguments: list[str]) -> bool:
    argv = [criu.path, command, "--no-default-config", "-D", ".", *arguments]
    try:
        done = subprocess.run(
            argv,
            cwd=directory.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=False,
            env=environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _await_exec(pid: int) -> None:
    # Popen returns after exec; the loader still maps libraries, and a dump amid that is no fair test.
    for _ in range(200):
        if proc(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[0] == "S":
            return
        time.sleep(0.005)


def _end_restored(pid: int) -> str:
    with process.Held(pid) as held:
        try:
            name = held.look(lambda number: proc(f"/proc/{number}/comm")).removesuffix("\n")
        except OSError:
            return "the restored process is not there"
        if name != "sleep":
            return "the restored process is another one"
        held.send(signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # where somebody else reaps for us
        os.waitpid(pid, 0)
    return ""


def _reason(directory: PrivateDir, command: str) -> str:
    found = causes.cause(directory.read_text(f"{command}.log"))
    return f"{command}: {found.text or 'it ended without saying why'}"

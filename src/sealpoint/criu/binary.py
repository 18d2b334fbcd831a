"""Finding a CRIU that can be used, and saying clearly why one cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

from sealpoint import ownership
from sealpoint.environment import environment
from sealpoint.errors import PolicyError, SystemEnvironmentError

OLDEST = (3, 17)  # the first release whose --stream restores what it dumped on current kernels
_PATIENCE = 20.0  # seconds for an answer to --version
_HOW_TO_GET = "install criu 4.0 or newer (Debian 13 and later have it), or name one with --criu or SEALPOINT_CRIU"


class CriuBinary(NamedTuple):
    """An executable CRIU and its version, e.g. (4, 1, 1).  fault: CRIU_FAULT reaches it."""

    path: str
    version: tuple[int, ...]
    fault: bool = False


class Search:
    """A search that has begun: CRIU is being asked for its version while the caller does something else."""

    def __init__(self, path: str | None = None, *, fault: bool = False) -> None:
        """For the CRIU at `path`, else at $SEALPOINT_CRIU, else set up with sealpoint, else in PATH.

        What is wrong, `result` says.  What the command line does not name has to be root's alone, for root.  fault: as
        in `CriuBinary`.
        """
        self._fault = fault
        wanted = path or os.environ.get("SEALPOINT_CRIU") or companion()
        found = shutil.which(wanted or "criu", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        self._path = found or ""
        self._process: subprocess.Popen[bytes] | None = None
        self._refusal: SystemEnvironmentError | None = None
        if found is None:
            if wanted is None:
                self._problem = "CRIU is not installed"
            elif os.path.exists(wanted):
                self._problem = f"{wanted} is not executable"
            else:
                self._problem = f"there is no CRIU at {wanted}"
            return
        self._problem = f"{found} cannot be run"
        self._refusal = refusal(path, found)
        if self._refusal is not None:
            return
        try:
            self._process = subprocess.Popen(
                [found, "--version"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(),
            )
        except OSError:
            pass

    def __del__(self) -> None:
        # A command that failed before it asked for the result: leave neither a process nor a pipe.
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            self._process.communicate()

    def result(self) -> CriuBinary:
        """Raises SystemEnvironmentError: there is none, it is not CRIU, too old, or others could change it."""
        if self._refusal is not None:
            raise self._refusal
        version = self._version() if self._process is not None else None
        if version is None:
            raise SystemEnvironmentError(self._problem, hint=_HOW_TO_GET)
        return CriuBinary(self._path, version, self._fault)

    def _version(self) -> tuple[int, ...] | None:
        assert self._process is not None
        try:
            output, _ = self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return None
        match = re.search(rb"Version:\s*(\d+(?:\.\d+)*)", output)
        if self._process.returncode or match is None:
            self._problem = f"{self._path} does not answer as CRIU does"
            return None
        version = tuple(int(x) for x in match[1].split(b"."))
        if version < OLDEST:
            self._problem = f"{self._path} is CRIU {match[1].decode()}, too old"
            return None
        return version


def refusal(named: str | None, found: str) -> SystemEnvironmentError | None:
    """Why root must not run the CRIU at `found`: others can change it.  None if nothing speaks against it.

    named: what was asked for, if anything was.  What the command line names is its user's to answer for; what a
    configuration, the environment or PATH names must be root's alone.
    """
    if named and not isinstance(named, ownership.Configured):
        return None
    try:
        ownership.require(found, "CRIU")
    except (OSError, ValueError):
        return None  # what cannot be looked at cannot be run, which says more
    except PolicyError as error:
        return SystemEnvironmentError(
            error.message,
            hint=f"{error.hint}; or, if you trust it anyway, name it with --criu",
        )
    return None


def companion() -> str | None:
    """The CRIU that was set up together with this sealpoint: in a checkout, by `make install`, or in a bundle.

    It comes before PATH: where the system's CRIU works the set-up leads to that one, and where it does not, this one
    does.  The path outlives an upgrade of the installation.
    """
    prefix = os.path.realpath(sys.prefix)
    current = os.path.join(os.path.dirname(prefix), "current")
    if os.path.realpath(current) == prefix:
        prefix = current
    candidates = [os.path.join(prefix, "criu", "bin", "criu")]
    if os.path.exists(os.path.join(prefix, ".sealpoint-bundle")):
        candidates.append(os.path.join(prefix, "bin", "criu"))
    checkout = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
    if os.path.exists(os.path.join(checkout, "pyproject.toml")):
        candidates.append(os.path.join(checkout, ".criu", "bin", "criu"))
    return next((c for c in candidates if os.access(c, os.X_OK)), None)


def find(path: str | None = None) -> CriuBinary:
    """Search and wait for the result.  Raises SystemEnvironmentError."""
    return Search(path).result()

"""The high-water mark: the newest checkpoint of each workload that this machine has sealed or restored.

An old copy of a file can always be put back, whole and valid; only memory helps.  Here it is for workloads that have a
name, by the capture times that origin statements give.  A mark that is lost makes older ones acceptable again.

Going back once on purpose is allowed for a workload and for a while (`allow`); whoever restores an older one first
takes that permission, under a lock.  Both are written down in `log`, beside the marks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from sealpoint.errors import FileError, PolicyError, SystemEnvironmentError
from sealpoint.format import strictjson
from sealpoint.format.constants import CLOCK_TOLERANCE, ID_SIZE
from sealpoint.format.statement import Origin
from sealpoint.format.strictjson import Fields
from sealpoint.names import encode
from sealpoint.state.chains import open_private, state_directory
from sealpoint.state.released import Released
from sealpoint.store import naming

AHEAD: Final = CLOCK_TOLERANCE  # a mark from further ahead would refuse all that is true
_MAX_SIZE: Final = 4096
_WHAT: Final = "high-water mark"
_PERMISSION: Final = ".older"  # ends the name of a permission
_LOG: Final = "log"
_ALLOW_OLDER: Final = (
    "--allow-older restores it anyway; `sealpoint state allow-older` lets an engine restore it once"
)


class Mark(NamedTuple):
    """captured: seconds since 1970; sequence: of the header, the highest that was seen of this checkpoint."""

    checkpoint_id: bytes
    captured: int
    sequence: int


class Newest:
    """The marks in a directory of states."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._directory = f"{directory}/newest"

    def _name(self, workload: str) -> str:
        return hashlib.sha256(encode(workload)).hexdigest()

    def of(self, workload: str) -> Mark | None:
        """The mark of a workload; None if there is none, or none that can be read.

        Raises SystemEnvironmentError where others could have changed it.
        """
        try:
            with open_private(self._directory, self._name(workload)) as file:
                f = Fields(strictjson.decode(file.read(_MAX_SIZE), _WHAT), _WHAT)
            return Mark(f.hex("checkpoint", ID_SIZE), f.u64("captured"), f.u64("sequence"))
        except (OSError, FileError):
            return None

    def problem(self, origin: Origin, sequence: int) -> str:
        """Why a checkpoint is older than what is known; empty if it is not.  sequence: of the header.

        Raises PolicyError if it was let run here, which nothing but --allow-older overrides; SystemEnvironmentError.
        """
        Released(self.directory).check(origin.checkpoint_id)
        mark = self.of(origin.workload) if origin.workload else None
        if mark is None:
            return ""
        same = mark.checkpoint_id == origin.checkpoint_id
        if origin.captured < mark.captured and not same:
            return (
                f"it is older than checkpoint {mark.checkpoint_id.hex()}, the newest known of workload "
                f"{origin.workload!r}"
            )
        if same and sequence < mark.sequence:
            return f"its header is number {sequence}, but number {mark.sequence} was seen: an older copy was put back"
        return ""

    def check(self, origin: Origin, sequence: int) -> None:
        """Raises PolicyError if a newer one is known and no step back is allowed, or if this one was let run here.

        Raises SystemEnvironmentError, too.
        """
        problem = self.problem(origin, sequence)
        if problem and not self._permitted_until(origin.workload):
            raise PolicyError(problem, hint=_ALLOW_OLDER)

    def admit(self, origin: Origin, sequence: int) -> str:
        """As `check`, for the last time before it runs; takes the permission if that is what lets it pass.

        Returns a remark on that, else nothing.  Raises PolicyError, SystemEnvironmentError.
        """
        if not self.problem(origin, sequence):
            return ""
        with self._locked() as directory:
            problem = self.problem(origin, sequence)
            if not problem:
                return ""
            if not self._permitted_until(origin.workload):
                raise PolicyError(problem, hint=_ALLOW_OLDER)
            name = self._name(origin.workload) + _PERMISSION
            try:
                os.unlink(name, dir_fd=directory)
                os.fsync(directory)
            except OSError as error:
                path = f"{self._directory}/{name}"
                raise SystemEnvironmentError(f"cannot remove {path}: {error.strerror}") from None
            self._log(directory, "took", origin.workload, checkpoint=origin.checkpoint_id.hex())
        return f"{problem}; this was allowed once"

    def allow(self, workload: str, seconds: int) -> int:
        """Let one older checkpoint of a workload pass, within so many seconds; returns when that ends (unix time).

        Raises PolicyError (nothing is known of the workload), SystemEnvironmentError.
        """
        if self.of(workload) is None:
            raise PolicyError(
                f"no checkpoint of workload {workload!r} is known here: there is nothing to allow",
                hint="the error that refuses an older checkpoint names its workload; sealpoint info shows it, too",
            )
        now = int(time.time())
        with self._locked() as directory:
            self._write(
                directory,
                self._name(workload) + _PERMISSION,
                strictjson.encode({"from": str(now), "until": str(now + seconds)}),
            )
            self._log(directory, "allowed", workload, until=now + seconds)
        return now + seconds

    def note(self, workload: str, mark: Mark) -> bool:
        """Remember a checkpoint that was sealed or restored, if it is the newest.  Raises SystemEnvironmentError.

        False where it is not, because it was captured further ahead than clocks may differ.
        """
        if not workload:
            return True
        if mark.captured > time.time() + AHEAD:
            return False
        with self._locked() as directory:
            known = self.of(workload)
            if known is None or (known.captured, known.sequence) <= (mark.captured, mark.sequence):
                data = strictjson.encode(
                    {
                        "checkpoint": mark.checkpoint_id.hex(),
                        "captured": str(mark.captured),
                        "sequence": str(mark.sequence),
                    }
                )
                self._write(directory, self._name(workload), data)
        return True

    def _permitted_until(self, workload: str) -> int:
        """When the permission of a workload ends; 0 if it has none, or no longer."""
        now = time.time()
        try:
            with open_private(self._directory, self._name(workload) + _PERMISSION) as file:
                f = Fields(strictjson.decode(file.read(_MAX_SIZE), _WHAT), _WHAT)
            since, until = f.u64("from"), f.u64("until")
            f.done()
        except (OSError, FileError):
            return 0
        return until if since <= now < until else 0

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """One change at a time, of all processes.  The lock is the directory's, which nobody else can open."""
        with contextlib.ExitStack() as stack:
            try:
                directory = stack.enter_context(state_directory(self._directory))
                fcntl.flock(directory, fcntl.LOCK_EX)
            except OSError as error:
                raise self._failure(error) from None
            yield directory

    def _write(self, directory: int, name: str, data: bytes) -> None:
        try:
            naming.write_file(directory, name, data)
        except OSError as error:
            raise self._failure(error) from None

    def _log(self, directory: int, what: str, workload: str, **more: object) -> None:
        line = {"time": int(time.time()), "user": os.getuid(), what: workload, **more}
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(_LOG, flags, 0o600, dir_fd=directory)
            try:
                os.write(fd, json.dumps(line).encode() + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> SystemEnvironmentError:
        return SystemEnvironmentError(
            f"cannot remember the newest checkpoint in {self._directory}: {error.strerror}"
        )

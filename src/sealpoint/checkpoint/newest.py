"""The high-water mark: the newest checkpoint of each workload that this machine has sealed or restored.

An old copy of a file can always be put back, whole and valid; only memory helps.  Here it is for workloads that have a
name, by the capture times that origin statements give.  A mark that is lost makes older ones acceptable again.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final, NamedTuple

from sealpoint.checkpoint.released import Released
from sealpoint.checkpoint.state import make_state_directory, open_private
from sealpoint.errors import FileError, PolicyError, SystemEnvironmentError
from sealpoint.format import strictjson
from sealpoint.format.constants import ID_SIZE
from sealpoint.format.statement import Origin
from sealpoint.format.strictjson import Fields

_MAX_SIZE: Final = 4096
_WHAT: Final = "high-water mark"


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
        return hashlib.sha256(workload.encode()).hexdigest()

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

    def check(self, origin: Origin, sequence: int) -> None:
        """Raises PolicyError if a newer one is known, or this one was let run here, SystemEnvironmentError.

        sequence: of the header.
        """
        Released(self.directory).check(origin.checkpoint_id)
        mark = self.of(origin.workload) if origin.workload else None
        if mark is None:
            return
        same = mark.checkpoint_id == origin.checkpoint_id
        if origin.captured < mark.captured and not same:
            raise PolicyError(
                f"it is older than checkpoint {mark.checkpoint_id.hex()}, the newest known of workload "
                f"{origin.workload!r}",
                hint="--allow-older restores it all the same",
            )
        if same and sequence < mark.sequence:
            raise PolicyError(
                f"its header is number {sequence}, but number {mark.sequence} was seen: an older copy was put back",
                hint="--allow-older restores it all the same",
            )

    def note(self, workload: str, mark: Mark) -> None:
        """Remember a checkpoint that was sealed or restored, if it is the newest.  Raises SystemEnvironmentError."""
        known = self.of(workload) if workload else None
        if not workload or (
            known is not None and (known.captured, known.sequence) > (mark.captured, mark.sequence)
        ):
            return
        data = strictjson.encode(
            {
                "checkpoint": mark.checkpoint_id.hex(),
                "captured": str(mark.captured),
                "sequence": str(mark.sequence),
            }
        )
        temporary = f"{self._directory}/.{os.urandom(8).hex()}"
        try:
            make_state_directory(self._directory)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, f"{self._directory}/{self._name(workload)}")
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot remember the newest checkpoint in {self._directory}: {error.strerror}"
            ) from None

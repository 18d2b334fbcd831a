"""Which moved trees were let run on this machine, so that a sealed file that was kept cannot run one a second time.

The record is durable before the tree runs, and names the tree's tasks by pid and start time.  It counts until the
machine starts anew: then nothing of the tree is left, and to restore its file is what one does after a crash.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from sealpoint import process
from sealpoint.errors import FileError, PolicyError, SystemEnvironmentError
from sealpoint.format import strictjson
from sealpoint.format.strictjson import Fields
from sealpoint.names import proc
from sealpoint.state.chains import open_private, state_directory
from sealpoint.store import naming

_MAX_SIZE: Final = 1 << 20
_MAX_TASKS: Final = 4096  # the first ones: one that lives is enough
_WHAT: Final = "record of a tree"


class ReleaseRecord(NamedTuple):
    """boot: of the machine; namespace: of pids; tasks: pid and start time (clock ticks since the boot) of each."""

    boot: str
    namespace: str
    tasks: tuple[tuple[int, int], ...]

    def alive(self) -> list[int]:
        """Pids of the tasks that still run, as far as they can be seen from here."""
        if self.namespace != _namespace():
            return []
        return [pid for pid, start in self.tasks if process.start_time(pid) == start]


class Released:
    """The records in a directory of states."""

    def __init__(self, directory: str) -> None:
        self._directory = f"{directory}/released"

    def prepare(self) -> None:
        """See that a record can be written, before somebody relies on it.  Raises SystemEnvironmentError."""
        try:
            with state_directory(self._directory) as directory:
                self._collect(directory)
                probe = f".{os.urandom(8).hex()}"
                naming.write_file(directory, probe, b"")
                os.unlink(probe, dir_fd=directory)
        except OSError as error:
            raise self._problem(error) from None

    def _problem(self, error: OSError) -> SystemEnvironmentError:
        return SystemEnvironmentError(
            f"cannot remember in {self._directory} what runs here: {error.strerror}",
            hint="name another directory with --state",
        )

    def _collect(self, directory: int) -> None:
        """Forget what ran before the machine was started anew."""
        boot = _boot()
        for name in os.listdir(directory):
            record = self._read(name)
            if record is not None and record.boot != boot:
                os.unlink(name, dir_fd=directory)

    def note(self, checkpoint_id: bytes, pids: Sequence[int]) -> None:
        """These processes are about to run as the tree of a checkpoint.

        Durable when this returns.  Raises SystemEnvironmentError.
        """
        tasks = [(pid, process.start_time(pid)) for pid in pids[:_MAX_TASKS]]
        data = strictjson.encode(
            {
                "boot": _boot(),
                "namespace": _namespace(),
                "tasks": [[str(pid), str(start)] for pid, start in tasks if start],
            }
        )
        try:
            with state_directory(self._directory) as directory:
                naming.write_file(directory, checkpoint_id.hex(), data)
        except OSError as error:
            raise self._problem(error) from None

    def of(self, checkpoint_id: bytes) -> ReleaseRecord | None:
        """The record of a checkpoint; None if there is none that counts.

        Raises SystemEnvironmentError where others could have changed it.
        """
        record = self._read(checkpoint_id.hex())
        return record if record is not None and record.boot == _boot() else None

    def _read(self, name: str) -> ReleaseRecord | None:
        try:
            with open_private(self._directory, name) as file:
                f = Fields(strictjson.decode(file.read(_MAX_SIZE), _WHAT), _WHAT)
            boot, namespace = f.text("boot"), f.text("namespace")
            tasks = []
            for value in f.array("tasks", limit=_MAX_TASKS):
                pid, start = value
                tasks.append((strictjson.parse_u64(pid, _WHAT), strictjson.parse_u64(start, _WHAT)))
            f.done()
        except FileNotFoundError:
            return None
        except (OSError, FileError, ValueError, TypeError):
            return ReleaseRecord(_boot(), "", ())  # there is one: what it says is lost
        return ReleaseRecord(boot, namespace, tuple(tasks))

    def check(self, checkpoint_id: bytes) -> None:
        """Raises PolicyError where the tree of that checkpoint was let run here."""
        record = self.of(checkpoint_id)
        if record is None:
            return
        alive = record.alive()
        if alive:
            raise PolicyError(
                f"the tree of this checkpoint runs here, process {alive[0]}: the file is left over from a migration",
                hint="remove the file; or, once the tree has ended, restore it with --allow-older",
            )
        raise PolicyError(
            "the tree of this checkpoint was started here since this machine booted: the file is left over from a "
            "migration",
            hint="none of its first processes is left; to restore it anyway, use --allow-older",
        )

    def forget(self, checkpoint_id: bytes) -> None:
        """It does not run here, or its file is gone."""
        with (
            contextlib.suppress(OSError, SystemEnvironmentError),
            state_directory(self._directory, make=False) as directory,
        ):
            os.unlink(checkpoint_id.hex(), dir_fd=directory)


def _boot() -> str:
    return proc("/proc/sys/kernel/random/boot_id").strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")

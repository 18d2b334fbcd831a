"""Restore a process tree from an open sealed file, or from a chain of them, with stock CRIU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sealpoint import process
from sealpoint.checkpoint.live.stream_serve import Serve
from sealpoint.checkpoint.opening import separate_pages
from sealpoint.checkpoint.opening.flat import Flat
from sealpoint.checkpoint.opening.stored_pages import require_chunks
from sealpoint.checkpoint.tables import whole
from sealpoint.checkpoint.tables.evidence import NoEvidenceError
from sealpoint.checkpoint.tables.ghosts import Ghosts
from sealpoint.criu import schema
from sealpoint.criu.binary import CriuBinary
from sealpoint.criu.caller import Caller
from sealpoint.criu.gate import Gate
from sealpoint.criu.private_dir import PrivateDir
from sealpoint.criu.run import CriuRun, check_options
from sealpoint.errors import (
    CriuError,
    FileError,
    IdentityError,
    SealpointError,
    SystemEnvironmentError,
)
from sealpoint.format.opened import OpenFile
from sealpoint.progress import Progress, Report, silent

_POLL = 0.05
_GIVE_UP = 20.0


class RestoreRequest(NamedTuple):
    """How to restore.

    permitted: called when everything has verified and the tree waits; raises if it shall not run.  approved: called
    just before it runs; must not wait for anybody.  given_up: called when a signal ends the wait for `permitted`.
    """

    criu: CriuBinary
    detach: bool = False
    options: tuple[str, ...] = ()
    criu_log: str | None = None
    permitted: Callable[[], None] = lambda: None
    approved: Callable[[], None] = lambda: None
    given_up: Callable[[], None] = lambda: None


class RestoreResult(NamedTuple):
    """What came of it.  pid: of the tree's root; status: of CRIU, which without `detach` waits for the tree's end."""

    pid: int
    seconds: float
    status: int
    criu: dict[str, int]


def check_restorable(checkpoint: OpenFile) -> None:
    """Raises FileError, IdentityError where this sealed file is not one that `restore` can restore."""
    if not checkpoint.has_memory:
        raise IdentityError(
            "this identity opens only the metadata of the checkpoint: it cannot restore it",
            hint="use an identity that the checkpoint was sealed to with -r",
        )
    if separate_pages.is_pages_file(checkpoint):
        raise FileError(
            "this sealed file holds only the memory pages of a checkpoint",
            hint="restore the sealed file of the dump that sent them here, with this one beside it",
        )
    if "inventory.img" not in checkpoint.entries:
        hint = "open it with: sealpoint open"
        if any(name.startswith("checkpoint/") for name in checkpoint.entries):
            hint = "it is an engine's archive: open it (sealpoint open FILE -o ARCHIVE.tar) and give it to the engine"
        raise FileError("this sealed file holds no process checkpoint", hint=hint)
    whole.require_alone(checkpoint)
    if separate_pages.lacks_pages(checkpoint):
        raise FileError("the memory of this checkpoint lies in a separate file")
    if "pstree.img" not in checkpoint.entries:
        raise FileError(
            "this is a pre-dump: memory alone, for a later dump to build on",
            hint="restore the dump that names it as its parent",
        )
    if "parent" in checkpoint.entries:
        raise FileError(
            "this is a sealed copy of an increment that CRIU made: without its parent it cannot be restored",
            hint="open it beside its parent (sealpoint open) and restore it with CRIU",
        )


class Restore:
    """One restore.  `run` may be called once."""

    def __init__(self, request: RestoreRequest, files: Sequence[OpenFile]) -> None:
        """`files`: the checkpoint, then its parents."""
        self._request = request
        self._files = files
        self._checkpoint = files[0]
        self._error: BaseException | None = None
        self._approved_at = 0.0
        self._total = 0

    def run(self, report: Report = silent) -> RestoreResult:
        """Raises SealpointError; nothing of the tree then ran or is left."""
        request = self._request
        check_options(request.options)
        check_restorable(self._checkpoint)
        require_chunks(self._files)
        started = time.monotonic()
        with PrivateDir() as directory:
            flat = Flat(self._files)
            self._total = sum(i.size for i in flat.images.values())
            serve = Serve(directory.path, flat)
            try:
                serve.prepare()
                code, criu = self._run_criu(directory, serve, report)
            finally:
                serve.close()
            stats = criu.stats("restore")
        return RestoreResult(
            pid=self._root_pid(), seconds=self._approved_at - started, status=code, criu=stats
        )

    def _root_pid(self) -> int:
        data = self._checkpoint.read_bytes(self._checkpoint.entry("pstree.img"))
        first = next(schema.records(data, "pstree_entry", "pstree.img"), None)
        return int(first.pid) if first is not None else 0

    def _run_criu(self, directory: PrivateDir, serve: Serve, report: Report) -> tuple[int, CriuRun]:
        request = self._request

        def approve() -> bool:
            try:
                serve.approve()
                request.permitted()
            except BaseException as error:  # noqa: BLE001 - reported by the main thread
                self._error = error
                serve.fail(error)
                return False
            self._approved_at = time.monotonic()
            return True

        def confirm() -> bool:
            try:
                request.approved()
            except OSError as error:
                self._error = SystemEnvironmentError(
                    f"the acknowledgement cannot be sent: {error.strerror}"
                )
                return False
            except BaseException as error:  # noqa: BLE001 - reported by the main thread
                self._error = error
                return False
            return True

        def undo() -> None:
            process.kill_descendants(before)
            ghosts.remove()

        ghosts = Ghosts(self._checkpoint)
        process.become_subreaper()
        arguments = ["--restore-detached"] if request.detach else []
        with (
            process.Children() as before,
            Caller("restore", request.options, streams=not request.detach) as caller,
            Gate(
                directory.path, "post-restore", approve, before=caller.scripts, confirm=confirm
            ) as gate,
            process.DeferredSignals() as signals,
        ):
            # A tree restored in the foreground shares our terminal and its signals, as with plain CRIU.
            criu = CriuRun(request.criu, directory, gate, own_group=request.detach)
            if request.criu_log:
                criu.keep_log(request.criu_log)
            try:
                criu.start("restore", arguments, caller)
                schema.warm_up()  # while CRIU works
                code = self._wait(criu, serve, gate, report, signals)
            except BaseException as error:
                if gate.refuse():  # else the tree runs already
                    request.given_up()
                    serve.fail(error)
                    if criu.process is not None:
                        criu.stop(_GIVE_UP)
                    undo()
                raise
            finally:
                criu.save_log()
            if gate.passed and (code == 0 or not request.detach):
                return code, criu
            gate.refuse()
            undo()
            cause = self._error or serve.error
            echo = isinstance(cause, CriuError) and not isinstance(cause, NoEvidenceError)
            if cause is not None and (code == 0 or not echo):
                raise as_sealpoint_error(cause)
            raise criu.failure("restore", code) if code else _no_gate()

    def _wait(
        self,
        criu: CriuRun,
        serve: Serve,
        gate: Gate,
        report: Report,
        signals: process.DeferredSignals,
    ) -> int:
        while (code := criu.wait(None if gate.passed else _POLL, signals.fd)) is None:
            if not (gate.passed and self._request.detach):  # else it is too late
                signals.check()
            report(Progress(serve.served, self._total))
        return code


def as_sealpoint_error(error: BaseException) -> SealpointError:
    """What happened, for the user."""
    if isinstance(error, SealpointError):
        return error
    return SealpointError(f"serving the restore failed: {error!r}")


def _no_gate() -> SealpointError:
    return CriuError(
        "criu restore reported success without asking whether everything verified: what it restored was ended",
        hint="the criu that ran is not CRIU, or something redirected it",
    )

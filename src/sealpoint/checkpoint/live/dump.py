"""Dump a live process tree into one sealed file, with stock CRIU.

The order that makes it safe: CRIU streams into the sealer; in CRIU's post-dump hook, with the tree still frozen, the
file is completed, made durable and named; only then does CRIU kill the tree or let it go.  Whatever fails before that
makes CRIU undo the dump, and the tree runs on.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from sealpoint import process
from sealpoint.checkpoint.history.increments import Track
from sealpoint.checkpoint.live.stream_capture import Capture, as_sealpoint_error
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.checkpoint.sealing.chunking import ChunkAdder
from sealpoint.checkpoint.sealing.sealer import Sealer, Sealing
from sealpoint.checkpoint.tables import whole
from sealpoint.checkpoint.tables.evidence import NoEvidenceError
from sealpoint.checkpoint.tables.pages_thread import PagesTarget
from sealpoint.criu import schema
from sealpoint.criu.binary import CriuBinary
from sealpoint.criu.caller import Caller
from sealpoint.criu.gate import Gate
from sealpoint.criu.network_lock import NetworkLock
from sealpoint.criu.private_dir import PrivateDir
from sealpoint.criu.run import CriuRun, check_options
from sealpoint.errors import CriuError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.format.derive import RootKeys
from sealpoint.format.preamble import Preamble
from sealpoint.format.statement import check_workload
from sealpoint.process import Held
from sealpoint.progress import Progress, Report, silent
from sealpoint.store.output import Target

_POLL = 0.05  # seconds between progress reports
_GIVE_UP = 20.0  # seconds that CRIU gets to undo a dump before it is killed


class DumpRequest(NamedTuple):
    """What to dump and how.  acknowledge: called after the last byte went out; True lets CRIU kill the tree.

    scan: called with the plaintext of every chunk while it is sealed, by several threads; must not raise.  track: makes
    it an increment, or the beginning of a chain; then `workload` is that of the track.  store: takes the pages.
    """

    pid: int
    criu: CriuBinary
    sealing: Sealing
    leave_running: bool = False
    options: tuple[str, ...] = ()
    workload: str = ""
    criu_log: str | None = None
    acknowledge: Callable[[bytes, bytes], bool] | None = None
    properties: Mapping[str, str] = MappingProxyType({})
    scan: Callable[[memoryview], None] | None = None
    track: Track | None = None
    store: ChunkAdder | None = None


class DumpResult(NamedTuple):
    """What came of it.  Sizes in bytes, times in seconds; captured: seconds since 1970.

    `criu` holds CRIU's own statistics (microseconds, pages).
    """

    checkpoint_id: bytes
    origin_digest: bytes
    captured: int
    file_size: int
    plain_size: int
    zero_size: int
    compressed_size: int
    seconds: float
    left_running: bool
    criu: dict[str, int]


def check_process(tree: Held) -> None:
    """Raises UsageError, SystemEnvironmentError."""
    try:
        signal.pidfd_send_signal(tree.fd, 0)
    except ProcessLookupError:
        raise UsageError(f"there is no process {tree.pid}") from None
    except PermissionError:
        raise SystemEnvironmentError(
            f"not permitted to dump process {tree.pid}", hint="run as root"
        ) from None
    if tree.state == "Z":
        raise UsageError(f"process {tree.pid} has ended, but its parent has not collected it yet")


class Dump:
    """One dump.  `run` may be called once.

    roots: of the file; preamble: of the file, once `run` has begun it; confirmed: CRIU was told to end the tree, or is
    about to be.
    """

    def __init__(self, request: DumpRequest, out: Target, tree: Held | None = None) -> None:
        """tree: the process, by whoever has held it before; stays open."""
        self.roots = RootKeys.generate()
        self.preamble: Preamble | None = None
        self.confirmed = False
        self._request = request
        self._out = out
        self._tree = tree
        self._origin_digest: bytes | None = None
        self._captured = 0
        self._error: BaseException | None = None
        self._acknowledged: queue.SimpleQueue[bool | BaseException] = queue.SimpleQueue()

    def run(self, report: Report = silent) -> DumpResult:
        """Raises SealpointError; the tree then runs on and nothing is left under the output's name."""
        request = self._request
        check_options(request.options)
        check_workload(request.workload)
        # Held before anything is looked up by its number: at the gate it must still have it.
        with contextlib.nullcontext(self._tree) if self._tree else Held(request.pid) as tree:
            check_process(tree)
            return self._run(tree, report)

    def _run(self, tree: Held, report: Report) -> DumpResult:
        request = self._request
        started = time.monotonic()
        sealing = request.sealing
        with sealing.into(self._out, roots=self.roots, observe=request.scan) as sealer:
            self.preamble = sealer.preamble
            with PrivateDir() as directory:
                pages = self._pages_to(sealer.builder)
                root = process.pid_inside(request.pid)
                capture = Capture(directory.path, sealer.builder, pages, root=root)
                try:
                    with process.DeferredSignals() as signals:
                        criu = self._capture(tree, directory, capture, sealer, report, signals)
                finally:
                    capture.close()
                stats = criu.stats("dump")
        pipeline = sealer.builder.pipeline
        assert self._origin_digest is not None
        return DumpResult(
            checkpoint_id=sealer.checkpoint_id,
            origin_digest=self._origin_digest,
            captured=self._captured,
            file_size=sealer.size,
            plain_size=pipeline.plain_bytes + (request.store.size if request.store else 0),
            zero_size=pipeline.zero_bytes,
            compressed_size=pipeline.compressed_bytes,
            seconds=time.monotonic() - started,
            left_running=request.leave_running,
            criu=stats,
        )

    def _pages_to(self, builder: CheckpointBuilder) -> Callable[[str], PagesTarget] | None:
        track, store = self._request.track, self._request.store
        stored = None if store is None else partial(store.target, builder)
        return stored if track is None else partial(track.pages, builder, large=stored)

    def _capture(
        self,
        tree: Held,
        directory: PrivateDir,
        capture: Capture,
        sealer: Sealer,
        report: Report,
        signals: process.DeferredSignals,
    ) -> CriuRun:
        request = self._request
        try:
            return self._run_criu(tree, directory, capture, sealer, report, signals)
        except BaseException as error:
            # Only now, when the gate's thread has ended, is it certain whether the file got its name.
            if request.track is not None:
                request.track.failed()
            kept = sealer.mark_failed()
            if kept and isinstance(error, SealpointError):
                error.hint = f"the sealed file was kept as {kept}"
            raise

    def _complete(self, tree: Held, capture: Capture, sealer: Sealer) -> bool:
        """All images are in the file, and it is on the disk: whether the tree may end.  Called by the gate's thread."""
        request, builder = self._request, sealer.builder
        try:
            tree.require()
            capture.wait_complete()
            self._captured = int(time.time())
            properties = {**request.properties, **whole.properties({"": str(capture.kind)})}
            if request.store is not None:
                request.store.finish(builder)
            if request.track is not None:
                self._origin_digest = request.track.finish(builder, self._captured, properties)
            else:
                self._origin_digest = sealer.finish(
                    workload=request.workload,
                    captured=self._captured,
                    properties=properties,
                )
            sealer.sync()
            if request.acknowledge is not None:
                sealer.commit()
                return self._await_acknowledgement(sealer.checkpoint_id)
            return True
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            self._error = error
            capture.fail(error)
            return False

    def _run_criu(
        self,
        tree: Held,
        directory: PrivateDir,
        capture: Capture,
        sealer: Sealer,
        report: Report,
        signals: process.DeferredSignals,
    ) -> CriuRun:
        request, builder = self._request, sealer.builder

        complete = partial(self._complete, tree, capture, sealer)

        def commit() -> bool:
            # When no signal can undo it any more: a file that has its name is one whose process may end.
            try:
                if not sealer.committed:
                    sealer.commit()
            except BaseException as error:  # noqa: BLE001 - reported by the main thread
                self._error = error
                return False
            self.confirmed = True
            return True

        arguments = ["-t", str(request.pid)]
        if request.leave_running:
            arguments.append("--leave-running")
        with (
            Caller("dump", request.options, streams=False) as caller,
            NetworkLock(tree) as network,
            Gate(
                directory.path, "post-dump", complete, before=caller.scripts, confirm=commit
            ) as gate,
        ):
            criu = CriuRun(request.criu, directory, gate)
            if request.criu_log:
                criu.keep_log(request.criu_log)
            try:
                criu.start("dump", arguments, caller)
                schema.warm_up()  # while CRIU starts: it takes longer until it freezes the tree
                code = self._wait(criu, builder, report, signals)
            except BaseException as error:
                # If the answer was yes already, it is too late to give up: the tree is about to end.
                if gate.refuse() or criu.wait() != 0:
                    self._give_up(criu, capture, network, error)
                    raise
                return criu
            finally:
                criu.save_log()
            if code == 0 and gate.passed:
                return criu
            gate.refuse()
            cause = self._error or capture.error
            failure = criu.failure("dump", code) if code else _no_gate(tree)
            self._give_up(criu, capture, network, failure)
            if cause is not None and code == 0:
                refusal = as_sealpoint_error(cause)
                refusal.hint = f"criu dump reported success anyway; {tree.fate}"
                raise refusal
            if cause is not None and not _is_echo(cause):
                raise as_sealpoint_error(cause)
            raise failure

    def _await_acknowledgement(self, checkpoint_id: bytes) -> bool:
        """True where none is asked for.  The wait is a thread's: here it ends when the dump is given up, too."""
        acknowledge, origin_digest = self._request.acknowledge, self._origin_digest
        if acknowledge is None or origin_digest is None:
            return True

        def ask() -> None:
            try:
                self._acknowledged.put(acknowledge(checkpoint_id, origin_digest))
            except BaseException as error:  # noqa: BLE001 - raised below
                self._acknowledged.put(error)

        threading.Thread(target=ask, name="acknowledge", daemon=True).start()
        answer = self._acknowledged.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _wait(
        self,
        criu: CriuRun,
        builder: CheckpointBuilder,
        report: Report,
        signals: process.DeferredSignals,
    ) -> int:
        while (code := criu.wait(_POLL, signals.fd)) is None:
            signals.check()
            pipeline = builder.pipeline
            report(
                Progress(
                    pipeline.plain_bytes + (self._request.store.size if self._request.store else 0),
                    zero=pipeline.zero_bytes,
                    compressed=pipeline.compressed_bytes,
                )
            )
        return code

    def _give_up(
        self, criu: CriuRun, capture: Capture, network: NetworkLock, error: BaseException
    ) -> None:
        """End every wait, so that CRIU sees its pipes closed, lets the tree run on and ends by itself."""
        self._acknowledged.put(error)
        capture.fail(error)
        self._out.cancel()
        if criu.process is not None:
            criu.stop(_GIVE_UP)
            if (criu.process.returncode or 0) < 0:
                network.remove()


def _is_echo(error: BaseException) -> bool:
    # Closed streams are the consequence of CRIU's failure, not its cause.
    return isinstance(error, CriuError | ConnectionError) and not isinstance(error, NoEvidenceError)


def _no_gate(tree: Held) -> SealpointError:
    return CriuError(
        f"criu dump reported success without asking whether the checkpoint is complete: no file is made; {tree.fate}",
        hint="the criu that ran is not CRIU, or something redirected it",
    )

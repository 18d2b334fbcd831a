"""Dump a live process tree into one sealed file, with stock CRIU.

The order that makes it safe: CRIU streams into the sealer; in CRIU's post-dump hook, with the tree still frozen, the
file is completed, made durable and named; only then does CRIU kill the tree or let it go.  Whatever fails before that
makes CRIU undo the dump, and the tree runs on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sealpoint.checkpoint.builder import CheckpointBuilder
from sealpoint.checkpoint.capture import Capture, as_sealpoint_error
from sealpoint.checkpoint.progress import Progress, Report, silent
from sealpoint.criu import schema
from sealpoint.criu.binary import CriuBinary
from sealpoint.criu.gate import Gate
from sealpoint.criu.private_dir import PrivateDir
from sealpoint.criu.run import CriuRun, check_options
from sealpoint.errors import CriuError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import Suite
from sealpoint.format.writer import SealedWriter, Signing, Wrap
from sealpoint.store.output import Target

_POLL = 0.05  # seconds between progress reports
_GIVE_UP = 20.0  # seconds that CRIU gets to undo a dump before it is killed


@dataclass(frozen=True, slots=True)
class DumpRequest:
    """What to dump and how.  acknowledge: called after the last byte went out; True lets CRIU kill the tree."""

    pid: int
    criu: CriuBinary
    wrap: Wrap
    signing: Signing
    suite: Suite = Suite.AES_256_GCM
    compression: str = "auto"
    leave_running: bool = False
    options: tuple[str, ...] = ()
    workload: str = ""
    criu_log: str | None = None
    acknowledge: Callable[[bytes, bytes], bool] | None = None


@dataclass(frozen=True, slots=True)
class DumpResult:
    """What came of it.  Sizes in bytes, times in seconds; `criu` holds CRIU's own statistics (microseconds, pages)."""

    checkpoint_id: bytes
    origin_digest: bytes
    file_size: int
    plain_size: int
    zero_size: int
    compressed_size: int
    seconds: float
    left_running: bool
    criu: dict[str, int] = field(default_factory=dict)


def check_process(pid: int) -> None:
    """Raises UsageError, SystemEnvironmentError."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        raise UsageError(f"there is no process {pid}") from None
    except PermissionError:
        raise SystemEnvironmentError(
            f"not permitted to dump process {pid}", hint="run as root"
        ) from None


class Dump:
    """One dump.  `run` may be called once."""

    def __init__(self, request: DumpRequest, out: Target) -> None:
        self._request = request
        self._out = out
        self._origin_digest: bytes | None = None
        self._error: BaseException | None = None

    def run(self, report: Report = silent) -> DumpResult:
        """Raises SealpointError; the tree then runs on and nothing is left under the output's name."""
        request = self._request
        check_options(request.options)
        check_process(request.pid)
        started = time.monotonic()
        writer = SealedWriter(
            self._out, suite=request.suite, wrap=request.wrap, signing=request.signing
        )
        builder = CheckpointBuilder(writer, compression=request.compression)
        try:
            with PrivateDir() as directory:
                capture = Capture(directory.path, builder)
                try:
                    criu = self._run_criu(directory, capture, builder, writer, report)
                finally:
                    capture.close()
                stats = criu.stats("dump")
        except BaseException as error:
            builder.abort(error)
            raise
        pipeline = builder.pipeline
        assert self._origin_digest is not None
        return DumpResult(
            checkpoint_id=writer.preamble.checkpoint_id,
            origin_digest=self._origin_digest,
            file_size=writer.size,
            plain_size=pipeline.plain_bytes,
            zero_size=pipeline.zero_bytes,
            compressed_size=pipeline.compressed_bytes,
            seconds=time.monotonic() - started,
            left_running=request.leave_running,
            criu=stats,
        )

    def _run_criu(
        self,
        directory: PrivateDir,
        capture: Capture,
        builder: CheckpointBuilder,
        writer: SealedWriter,
        report: Report,
    ) -> CriuRun:
        request = self._request

        def commit() -> bool:
            try:
                capture.wait_complete()
                self._origin_digest = builder.finish(workload=request.workload)
                self._out.commit()
                if request.acknowledge is None:
                    return True
                return request.acknowledge(writer.preamble.checkpoint_id, self._origin_digest)
            except BaseException as error:  # noqa: BLE001 - reported by the main thread
                self._error = error
                capture.fail(error)
                return False

        with Gate(directory.path, "post-dump", commit) as gate:
            criu = CriuRun(request.criu, directory, gate)
            arguments = ["-t", str(request.pid)]
            if request.leave_running:
                arguments.append("--leave-running")
            criu.start("dump", arguments, request.options)
            schema.warm_up()  # while CRIU starts: it takes longer until it freezes the tree
            try:
                code = self._wait(criu, builder, report)
            except BaseException as error:
                capture.fail(error)
                self._stop(criu)
                self._undo()
                raise
            finally:
                if request.criu_log:
                    criu.save_log(request.criu_log)
            if code == 0 and gate.passed:
                return criu
            failed = self._undo()
            cause = self._error or capture.error
            if cause is not None and not _is_echo(cause):
                raise as_sealpoint_error(cause)
            failure = criu.failure("dump", code) if code else _no_gate()
            if failed:
                failure.hint = f"the sealed file was kept as {failed}"
            raise failure

    def _wait(self, criu: CriuRun, builder: CheckpointBuilder, report: Report) -> int:
        while (code := criu.wait(_POLL)) is None:
            pipeline = builder.pipeline
            report(
                Progress(
                    pipeline.plain_bytes,
                    zero=pipeline.zero_bytes,
                    compressed=pipeline.compressed_bytes,
                )
            )
        return code

    def _undo(self) -> str | None:
        return self._out.mark_failed()

    @staticmethod
    def _stop(criu: CriuRun) -> None:
        # CRIU sees its pipes closed, lets the tree run on and ends by itself.
        criu.stop(_GIVE_UP)


def _is_echo(error: BaseException) -> bool:
    # Closed streams are the consequence of CRIU's failure, not its cause.
    return isinstance(error, CriuError)


def _no_gate() -> SealpointError:
    return CriuError("criu dump ended without asking whether the checkpoint is complete")

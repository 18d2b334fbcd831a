"""The sending side of a migration (`migration` has the protocol)."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from sealpoint.checkpoint import migration
from sealpoint.checkpoint.dump import Dump, DumpRequest, DumpResult
from sealpoint.checkpoint.progress import Report, silent
from sealpoint.errors import SealpointError
from sealpoint.store.link import Kind, Link, LinkError, LinkOutput


@dataclass(frozen=True, slots=True)
class MigrateRequest:
    """dump: what to move, and how it is sealed; decision: seconds that the far side has to restore and verify."""

    dump: DumpRequest
    decision: float = 600.0


@dataclass(frozen=True, slots=True)
class MigrateResult:
    """last: the dump that ended the tree here; sent: bytes in all; seconds: in all."""

    last: DumpResult
    sent: int
    seconds: float


class Sender:
    """The near side of one migration.  `run` may be called once."""

    def __init__(self, link: Link, request: MigrateRequest) -> None:
        self._link = link
        self._request = request
        self._session = b""
        self._dump: Dump | None = None
        self._digest = b""  # of the last file's origin, once it was sent as a whole

    def run(self, report: Report = silent) -> MigrateResult:
        """Raises SealpointError: the tree then runs on here, but for UncertainError."""
        started = time.monotonic()
        link = self._link
        try:
            self._session = migration.session_of(link.expect(Kind.HELLO), link.peer)
            result = self._last(report)
        except SealpointError as error:
            self._give_up(error)
            raise
        self._hand_over()
        return MigrateResult(result, link.sent, time.monotonic() - started)

    def _last(self, report: Report) -> DumpResult:
        """The dump that ends the tree, once the far side has proved that it is ready."""
        request = replace(
            self._request.dump,
            leave_running=False,
            acknowledge=self._await_ready,
            properties=migration.properties(self._session, last=True),
        )
        self._dump = Dump(request, LinkOutput(self._link))
        return self._dump.run(report)

    def _await_ready(self, _: bytes, origin_digest: bytes) -> bool:
        self._digest = origin_digest
        payload = self._link.expect(Kind.READY, patience=self._request.decision)
        self._check(payload, Kind.READY)
        return True

    def _key(self) -> bytes:
        dump = self._dump
        assert dump is not None
        assert dump.preamble is not None
        return migration.key_of(dump.roots, dump.preamble, self._session)

    def _check(self, payload: bytes, kind: Kind) -> None:
        migration.check_proof(payload, self._key(), kind, self._digest, self._link.peer)

    def _give_up(self, error: SealpointError) -> None:
        """The tree runs on here.  If the far side may be waiting for our word, it gets it."""
        text = error.message.encode()[:1024]
        if self._digest:
            text = migration.proof(self._key(), Kind.STOP, self._digest)
        try:
            self._link.send(Kind.STOP, text)
        except LinkError:
            pass  # then it hears nothing, and does not run the tree

    def _hand_over(self) -> None:
        """The tree has ended here.  Raises UncertainError."""
        link = self._link
        try:
            link.send(Kind.GO, migration.proof(self._key(), Kind.GO, self._digest))
            self._check(link.expect(Kind.RUNNING), Kind.RUNNING)
        except LinkError as error:
            raise migration.UncertainError(
                f"process {self._request.dump.pid} has ended here, but {link.peer} did not confirm that it runs "
                f"there ({error.message})",
                hint="look there: it runs, or its sealed file was kept and can be restored",
            ) from None

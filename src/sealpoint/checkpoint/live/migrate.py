"""The sending side of a migration (`migration_protocol` has what they say).

First the memory is copied in rounds: each sends the pages that have changed since the one before. The tree stands still
while its memory is read, but not while the link takes it: what was not sent yet waits in memory. When few pages are
left, or their number no longer shrinks, the last round ends the tree here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sealpoint import names, process
from sealpoint.checkpoint.history.increments import Track
from sealpoint.checkpoint.live import migration_protocol, peer
from sealpoint.checkpoint.live.dump import Dump, DumpRequest, DumpResult
from sealpoint.checkpoint.tables import extent
from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import SealpointError
from sealpoint.progress import Report, silent
from sealpoint.store.link import Link, LinkError, LinkOutput, MessageKind
from sealpoint.store.output import Target
from sealpoint.store.queued import HeldOutput

_LITTLE: Final = 8 << 20  # bytes of changed pages that are worth no further round
_SHRINKING: Final = (
    0.7  # a round that sends more than this share of the one before is not worth another
)


@dataclass(frozen=True, slots=True)
class MigrateRequest:
    """dump: what to move, and how it is sealed; rounds: copies beforehand, at most.

    decision: seconds that the far side has to restore and verify; say: gets remarks for the user.
    """

    dump: DumpRequest
    rounds: int = 4
    decision: float = 600.0
    say: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Round:
    """One copy while the tree ran.  pages: that were sent; of: so many; frozen: seconds that it stood still."""

    pages: int
    of: int
    frozen: float


@dataclass(frozen=True, slots=True)
class MigrateResult:
    """rounds: before the last; last: the dump that ended the tree here; sent: bytes in all; seconds: in all."""

    rounds: tuple[Round, ...]
    last: DumpResult
    sent: int
    seconds: float


class Sender:
    """The near side of one migration.  `run` may be called once."""

    def __init__(self, link: Link, request: MigrateRequest) -> None:
        self._link = link
        self._request = request
        self._session = b""
        self._tree = process.Held(request.dump.pid)  # for all rounds
        self._rounds: list[Round] = []
        self._track: Track | None = None  # of the round before
        self._dump: Dump | None = None
        self._digest = b""  # of the last file's origin, once it was sent as a whole
        self._tasks: list[tuple[int, int]] = []  # pid and start time, once READY has come
        self._place = ""  # where the far side keeps the last file
        self._gone = False  # GO was sent, or is about to be

    def run(self, report: Report = silent) -> MigrateResult:
        """Raises SealpointError: the tree then runs on here, or its hint says where it is."""
        started = time.monotonic()
        link = self._link
        try:
            self._session = migration_protocol.session_of(link.expect(MessageKind.HELLO), link.peer)
            signing = self._request.dump.sealing.signing
            link.send(MessageKind.PROOF, peer.prove(signing, peer.MIGRATION, self._session))
            self._copy(report)
            result = self._last(report)
            self._hand_over()
        except BaseException as error:
            if not self._gone:
                self._failed(error)
            raise
        return MigrateResult(tuple(self._rounds), result, link.sent, time.monotonic() - started)

    def _copy(self, report: Report) -> None:
        """Rounds while the tree runs, until the next one would bring little."""
        while len(self._rounds) < self._request.rounds:
            track = self._next_track()
            result = self._round(track, report)
            self._link.expect(MessageKind.HAVE, patience=self._request.decision)
            self._track = track
            pages, total = track.changed
            frozen = result.criu.get("frozen_time", 0) / 1e6
            self._rounds.append(Round(pages, total, frozen))
            if pages * PAGE <= _LITTLE:
                break
            if len(self._rounds) > 1 and pages > _SHRINKING * self._rounds[-2].pages:
                break

    def _next_track(self) -> Track:
        track = Track(None, lambda _: None, self._request.dump.workload)
        if self._track is None:
            track.start(None)
        else:
            track.follow(self._track)
        return track

    def _last(self, report: Report) -> DumpResult:
        """The dump that ends the tree, once the far side has proved that it is ready."""
        track = self._next_track() if self._track is not None else None
        return self._send(track, LinkOutput(self._link), report, leave_running=False)

    def _round(self, track: Track, report: Report) -> DumpResult:
        """A copy that does not wait for the link before the tree runs on."""
        held = HeldOutput(LinkOutput(self._link))
        try:
            result = self._send(track, held, report, leave_running=True)
            process.deliver_dropped()  # a signal that came too late for this round is in time for the next
            held.drain()
        finally:
            held.close()
        return result

    def _send(
        self, track: Track | None, out: Target, report: Report, *, leave_running: bool
    ) -> DumpResult:
        size = extent.bound(self._request.dump.pid)
        self._link.send(MessageKind.OFFER, migration_protocol.offer(size))
        self._link.expect(MessageKind.ROOM, patience=self._request.decision)
        request = self._request.dump._replace(
            leave_running=leave_running,
            track=track,
            acknowledge=None if leave_running else self._await_ready,
            properties=migration_protocol.properties(self._session, last=not leave_running),
        )
        if leave_running and request.sealing.compression == "auto":
            # It follows what is waited for, and of the link nothing is seen here: what costs little.
            request = request._replace(sealing=request.sealing.compressed("lz4"))
        self._dump = Dump(request, out, self._tree)
        return self._dump.run(report)

    def _await_ready(self, _: bytes, origin_digest: bytes) -> bool:
        self._digest = origin_digest
        payload = self._link.expect(MessageKind.READY, patience=self._request.decision)
        self._place = names.text(self._check(payload, MessageKind.READY))
        pid = self._request.dump.pid
        tasks = [(p, process.start_time(p)) for p in [pid, *process.descendants(pid)]]
        self._tasks = [(p, start) for p, start in tasks if start]
        return True

    def _key(self) -> bytes:
        dump = self._dump
        assert dump is not None
        assert dump.preamble is not None
        return migration_protocol.key_of(dump.roots, dump.preamble, self._session)

    def _check(self, payload: bytes, kind: MessageKind) -> bytes:
        return migration_protocol.check_proof(
            payload, self._key(), kind, self._digest, self._link.peer
        )

    def _failed(self, error: BaseException) -> None:
        """Tell the far side what it may rely on: STOP only where the tree runs on here, GO only where it has ended."""
        self._link.resume()  # the dump that failed has cancelled its waits
        if self._dump is None or not self._dump.confirmed or not self._tasks:
            self._give_up(error)
            return
        # CRIU was told to end the tree, and something failed all the same: look how far it came.
        left = [pid for pid, start in self._tasks if process.start_time(pid) == start]
        if len(left) == len(self._tasks):
            self._give_up(error)
        elif left:
            self._tell(
                error,
                f"of {len(self._tasks)} processes {len(left)} are left here ({left[0]}): end them, then restore "
                f"{self._place} on {self._link.peer}",
            )
        else:
            self._hand_over()
            self._tell(error, f"the tree runs on {self._link.peer} anyway")

    def _tell(self, error: BaseException, text: str) -> None:
        if isinstance(error, SealpointError):
            error.hint = text
        else:  # a signal
            self._request.say(text)

    def _give_up(self, error: BaseException) -> None:
        """The tree runs on here.  If the far side may be waiting for our word, it gets it."""
        if self._digest:
            self._link.stop(migration_protocol.proof(self._key(), MessageKind.STOP, self._digest))
        else:
            reason = error.message if isinstance(error, SealpointError) else "interrupted"
            self._link.stop(names.encode(reason))

    def _hand_over(self) -> None:
        """The tree has ended here.  Raises UncertainError."""
        link = self._link
        try:
            with (
                process.DeferredSignals()
            ):  # what is to be said now does not take long, and must be said
                self._gone = True
                link.send(
                    MessageKind.GO,
                    migration_protocol.proof(self._key(), MessageKind.GO, self._digest),
                )
                self._check(link.expect(MessageKind.RUNNING), MessageKind.RUNNING)
        except LinkError as error:
            raise migration_protocol.UncertainError(
                f"process {self._request.dump.pid} has ended here, but {link.peer} did not confirm that it runs "
                f"there ({error.message})",
                hint=f"look there: it runs, or you can restore its sealed file: {self._place}",
            ) from None

"""The receiving side of a migration (`migration_protocol` has what they say).

What arrives is kept on the disk (`store.received`), and is durable before the sender is told that the tree is here.  It
is removed when the tree runs here, or when it is certain that it runs at the sender.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sealpoint import names
from sealpoint.checkpoint.live import migration_protocol, peer
from sealpoint.checkpoint.live.admission import Admission
from sealpoint.checkpoint.live.restore import Restore, RestoreRequest, RestoreResult
from sealpoint.checkpoint.opening.front import Front
from sealpoint.checkpoint.opening.opener import OpenedCheckpoint, Opening
from sealpoint.errors import FileError, PolicyError, SealpointError, SystemEnvironmentError
from sealpoint.format.constants import Role
from sealpoint.format.opened import OpenFile
from sealpoint.format.raw import Descriptor
from sealpoint.progress import Report, silent
from sealpoint.state.released import Released
from sealpoint.store.link import Link, LinkError, LinkInput, MessageKind
from sealpoint.store.output import OutputFile
from sealpoint.store.received import Received, Stage, trim

_MAX_ROUNDS: Final = 64
_STEP: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ReceiveRequest:
    """How to receive.

    opening: how to open each file, without its parents: those came before it.
    admit: called with what is to run, before the sender hears that it can: raises if it shall not.
    max_size: bytes of all files, None for nine tenths of the free space.  keep: directory in which the sealed files are
    kept until the tree runs; state: of what runs here; decision: seconds that the sender has from READY to GO, while it
    ends the tree; say: gets remarks for the user.
    """

    opening: Opening
    admit: Callable[[OpenedCheckpoint], Admission]
    restore: RestoreRequest
    keep: str
    state: str
    max_size: int | None = None
    decision: float = 60.0
    say: Callable[[str], None] = lambda _: None


class _Commit:
    """Makes a complete file durable while it is verified and restored.  `wait` before anybody relies on it."""

    def __init__(self, out: OutputFile) -> None:
        self._out = out
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            trim(self._out)
            self._out.commit()
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            self._error = error

    def wait(self) -> None:
        """Raises SealpointError."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    @property
    def path(self) -> str:
        """Of the file, once it is durable."""
        return self._out.path

    def end(self) -> None:
        """Wait, whatever comes of it."""
        self._thread.join()

    def close(self) -> None:
        """Let go of the file."""
        self.end()
        self._out.close()


class Receiver:
    """The far side of one migration.  `run` may be called once."""

    def __init__(self, link: Link, request: ReceiveRequest) -> None:
        self._link = link
        self._request = request
        self._session = os.urandom(migration_protocol.SESSION_SIZE)
        self._files: list[OpenedCheckpoint] = []  # oldest first
        self._opened: list[OpenFile] = []  # the same
        self._commits: list[_Commit] = []  # the same
        self._stage = Stage.ARRIVING
        self._stopped = False  # the sender has proved that the tree runs on there
        self._key = b""
        self._greeted = False
        self._released = Released(request.state)

    def greet(self) -> None:
        """See that somebody who is trusted sends, before anything is taken.  Raises SealpointError."""
        link = self._link
        try:
            link.send(MessageKind.HELLO, migration_protocol.greeting(self._session))
            proof = link.expect(MessageKind.PROOF)
            peer.check(proof, self._request.opening.trust, peer.MIGRATION, self._session)
        except SealpointError as error:
            link.stop(names.encode(error.message))
            raise
        self._greeted = True

    def run(self, report: Report = silent) -> RestoreResult:
        """Raises SealpointError: nothing of the tree runs here then, or its message says that it does."""
        if not self._greeted:
            self.greet()
        try:
            self._released.prepare()
            name, limit = self._session[:4].hex(), self._request.max_size
            received = Received(self._request.keep, name, limit)
        except SealpointError as error:
            self._link.stop(names.encode(error.message))
            raise
        try:
            return self._run(received, report)
        finally:
            for file in self._files:
                file.close()
            for commit in self._commits:
                commit.close()
            received.close()

    def _run(self, received: Received, report: Report) -> RestoreResult:
        link = self._link
        try:
            while not self._next_file(received):
                link.send(MessageKind.HAVE)
            result = self._restore(received, report)
        except BaseException as error:
            self._failed(received, error)
            raise
        try:
            link.send(
                MessageKind.RUNNING,
                migration_protocol.proof(self._key, MessageKind.RUNNING, self._digest),
            )
        except LinkError:
            pass  # it runs here all the same: GO said that it ended there
        if self._discard(received):
            self._released.forget(self._id)
        return result

    @property
    def _digest(self) -> bytes:
        return self._files[-1].authentic.reference.origin_digest

    @property
    def _id(self) -> bytes:
        return self._files[-1].authentic.origin.checkpoint_id

    def _next_file(self, received: Received) -> bool:
        """Take one more file; whether it was the last."""
        if len(self._files) >= _MAX_ROUNDS:
            raise FileError("the migration has too many rounds")
        if self._commits:
            self._commits[-1].wait()
        bound = migration_protocol.offered(self._link.expect(MessageKind.OFFER), self._link.peer)
        out = received.next_file(bound)
        try:
            self._link.send(MessageKind.ROOM)
            self._take(out, received)
        except BaseException:
            out.close()
            raise
        self._commits.append(_Commit(out))
        file = self._request.opening.take(Descriptor(os.dup(out.fd)))
        self._files.append(file)
        opened = file.file()
        self._check(opened)
        self._opened.append(opened)
        return migration_protocol.is_last(opened.manifests[Role.METADATA].properties)

    def _take(self, out: OutputFile, received: Received) -> None:
        source, front = LinkInput(self._link), Front(self._request.opening.trust)
        buffer = memoryview(bytearray(_STEP))
        while size := source.read_into(buffer):
            front.feed(buffer[:size])
            received.take(size)
            out.write(buffer[:size])
        front.end()

    def _check(self, opened: OpenFile) -> None:
        """Raises PolicyError, FileError: made for another migration, or out of place in this one."""
        if not migration_protocol.is_for(opened.manifests[Role.METADATA].properties, self._session):
            raise PolicyError(
                "the checkpoint was not made for this migration: an older one was sent again"
            )
        before = self._files[-2].authentic.reference if len(self._files) > 1 else None
        if opened.authentic.origin.parent != before:
            raise FileError("the files of the migration do not continue each other")

    def _restore(self, received: Received, report: Report) -> RestoreResult:
        top = self._opened[-1]
        self._key = migration_protocol.key_of(top.roots, top.authentic.file.preamble, self._session)
        admission = self._request.admit(self._files[-1])

        def permitted() -> None:
            admission.permit()  # before the tree may end there
            self._ask(received)

        def approved() -> None:
            admission.passed()  # from now on its file must not run a second time

        request = self._request.restore._replace(
            detach=True,
            permitted=permitted,
            approved=approved,
            given_up=self._link.cancel,
        )
        return Restore(request, self._opened[::-1]).run(report)

    def _ask(self, received: Received) -> None:
        """At the gate: tell that all has verified, and wait for the word that the tree has ended there."""
        link, digest = self._link, self._digest
        for commit in self._commits:
            commit.wait()
        where = migration_protocol.place(self._path)
        self._enter(received, Stage.READY)
        link.send(
            MessageKind.READY, migration_protocol.proof(self._key, MessageKind.READY, digest, where)
        )
        kind, payload = link.receive(patience=self._request.decision)
        if kind is MessageKind.STOP:
            migration_protocol.check_proof(payload, self._key, MessageKind.STOP, digest, link.peer)
            self._stopped = True
            raise SystemEnvironmentError(f"{link.peer} gave up: the tree runs on there")
        migration_protocol.check_proof(payload, self._key, MessageKind.GO, digest, link.peer)
        self._stage = Stage.GONE
        try:
            received.set_stage(Stage.GONE)
        except SealpointError as error:  # the tree is not to be lost for that
            self._request.say(error.message)

    @property
    def _path(self) -> str:
        """Of the last file: what a restore is to be given."""
        return self._commits[-1].path

    def _enter(self, received: Received, stage: Stage) -> None:
        received.set_stage(stage)
        self._stage = stage

    def _failed(self, received: Received, error: BaseException) -> None:
        """Say where the tree is, or the file that is left of it; raises what says it better than `error`."""
        self._link.resume()  # a restore that was given up has cancelled its wait
        if self._stage is Stage.ARRIVING or self._stopped:
            if self._stage is Stage.ARRIVING:
                reason = error.message if isinstance(error, SealpointError) else "interrupted"
                self._link.stop(names.encode(reason))
            for commit in self._commits:
                commit.end()
            self._discard(received)
            return
        record = self._released.of(self._id)
        if record is not None and record.alive():
            self._tell(error, f"the tree runs here anyway; remove {received.path}")
            return
        self._released.forget(self._id)
        if self._stage is Stage.GONE:
            self._link.stop(names.encode(f"the restore failed: its sealed file is {self._path}"))
            self._tell(
                error,
                f"the tree has ended at the sender and does not run here: restore {self._path}",
            )
            return
        text = (
            f"it does not run here, and whether it runs at the sender is unknown: look there; if it ended, restore "
            f"{self._path}"
        )
        if isinstance(error, LinkError):
            raise migration_protocol.UncertainError(
                f"{error.message}, when the tree was ready here: it does not run here, and whether it runs at the "
                "sender is unknown",
                hint=f"look there; if it ended, restore {self._path}",
            ) from None
        self._tell(error, text)

    def _tell(self, error: BaseException, text: str) -> None:
        if isinstance(error, SealpointError):
            error.hint = text
        else:  # a signal
            self._request.say(text)

    def _discard(self, received: Received) -> bool:
        try:
            received.discard()
        except SealpointError as error:
            self._request.say(error.message)
            return False
        return True

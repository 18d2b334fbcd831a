"""The receiving side of a migration (`migration` has the protocol)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from sealpoint.checkpoint import migration
from sealpoint.checkpoint.opening import Checkpoint, Opening
from sealpoint.checkpoint.progress import Report, silent
from sealpoint.checkpoint.restore import Restore, RestoreRequest, RestoreResult
from sealpoint.errors import FileError, PolicyError, SealpointError, SystemEnvironmentError
from sealpoint.format.constants import Role
from sealpoint.format.opened import OpenFile
from sealpoint.store.link import Kind, Link, LinkError, LinkInput
from sealpoint.store.output import OutputFile
from sealpoint.store.source import hold_from, pieces

_MAX_ROUNDS: Final = 64


@dataclass(frozen=True, slots=True)
class ReceiveRequest:
    """How to receive.

    opening: how to open each file, without its parents: those came before it.
    keep: directory for the sealed file if its fate is unknown; spool: where ciphertext is held (memory if None);
    decision: seconds that the sender has from READY to GO, while it ends the tree.
    """

    opening: Opening
    restore: RestoreRequest
    keep: str
    spool: str | None = None
    decision: float = 60.0


class Receiver:
    """The far side of one migration.  `run` may be called once."""

    def __init__(self, link: Link, request: ReceiveRequest) -> None:
        self._link = link
        self._request = request
        self._session = os.urandom(migration.SESSION_SIZE)
        self._files: list[Checkpoint] = []  # oldest first
        self._opened: list[OpenFile] = []  # the same
        self._asked = False
        self._key = b""

    def run(self, report: Report = silent) -> RestoreResult:
        """Raises SealpointError: nothing of the tree runs here then."""
        link = self._link
        try:
            link.send(Kind.HELLO, migration.greeting(self._session))
            while not self._next_file():
                link.send(Kind.HAVE)
            result = self._restore(report)
        except SealpointError as error:
            if not self._asked:
                link.stop(error.message.encode())
            raise
        finally:
            for file in self._files:
                file.close()
        try:
            link.send(Kind.RUNNING, migration.proof(self._key, Kind.RUNNING, self._digest))
        except LinkError:
            pass  # it runs here all the same: GO said that it ended there
        return result

    @property
    def _digest(self) -> bytes:
        return self._files[-1].authentic.reference.origin_digest

    def _next_file(self) -> bool:
        """Take one more file; whether it was the last."""
        if len(self._files) >= _MAX_ROUNDS:
            raise FileError("the migration has too many rounds")
        held = hold_from(LinkInput(self._link).read_into, self._request.spool)
        file = self._request.opening.take(held)
        self._files.append(file)
        opened = file.file()
        self._check(opened)
        self._opened.append(opened)
        return migration.is_last(opened.manifests[Role.METADATA].properties)

    def _check(self, opened: OpenFile) -> None:
        """Raises PolicyError, FileError: made for another migration, or out of place in this one."""
        if not migration.is_for(opened.manifests[Role.METADATA].properties, self._session):
            raise PolicyError(
                "the checkpoint was not made for this migration: an older one was sent again"
            )
        before = self._files[-2].authentic.reference if len(self._files) > 1 else None
        if opened.authentic.origin.parent != before:
            raise FileError("the files of the migration do not continue each other")

    def _restore(self, report: Report) -> RestoreResult:
        top = self._opened[-1]
        self._key = migration.key_of(top.roots, top.authentic.file.preamble, self._session)
        request = self._request.restore._replace(detach=True, permitted=self._ask)
        return Restore(request, self._opened[::-1]).run(report)

    def _ask(self) -> None:
        """At the gate: tell that all has verified, and wait for the word that the tree has ended there."""
        link, digest = self._link, self._digest
        self._asked = True
        try:
            link.send(Kind.READY, migration.proof(self._key, Kind.READY, digest))
            kind, payload = link.receive(patience=self._request.decision)
            if kind is Kind.STOP:
                migration.check_proof(payload, self._key, Kind.STOP, digest, link.peer)
            else:
                migration.check_proof(payload, self._key, Kind.GO, digest, link.peer)
        except LinkError as error:
            try:
                hint = f"look there; if it ended, restore {self._keep()}"
            except SealpointError as problem:
                hint = f"look there; its sealed file could not be kept here: {problem.message}"
            raise migration.UncertainError(
                f"{error.message}, when the tree was ready here: it does not run here, and whether it runs at the "
                "sender is unknown",
                hint=hint,
            ) from None
        if kind is Kind.STOP:
            raise SystemEnvironmentError(f"{link.peer} gave up: the tree runs on there")

    def _keep(self) -> str:
        """Write the sealed files where they can be restored from; returns the path of the last."""
        directory = self._request.keep
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise SystemEnvironmentError(f"cannot make {directory}: {error.strerror}") from None
        path = ""
        for file in self._files:
            path = f"{directory}/{file.authentic.origin.checkpoint_id.hex()}.sealed"
            with OutputFile(path) as out:
                for piece in pieces(file.top.fd):
                    out.write(piece)
                out.commit()
        return path

"""The helper's loop: datagrams between the engine and the real CRIU, with their descriptors.

Every request is looked through first (`requests`).  Then all pass but dumps, pre-dumps and restores (`session`) and
page servers (`page_server`).  Requests that would lead memory past the seal, and those with something unknown in them,
are answered with a failure that says why.
"""

from __future__ import annotations

import array
import os
import select
import socket
from typing import TYPE_CHECKING, Final

from sealpoint import process
from sealpoint.dropin.criu_config import RefusedError
from sealpoint.dropin.requests import Requests
from sealpoint.names import printable, proc_lines, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sealpoint.dropin.session import Session

    Start = Callable[[bytes, process.Held, socket.socket, int], tuple[Session, bytes]]

_MAX: Final = 1024 * 1024  # of one datagram; requests with many external mounts can be large
_NOTIFY = 6
_RESTORE: Final = 2
_SEALED: Final = (1, 2, 4, 13)  # DUMP, RESTORE, PRE_DUMP, SINGLE_PRE_DUMP
_PAGE_SERVER, _PAGE_SERVER_CHILD = 5, 12
_WITH_DIRECTORIES: Final = (
    3,
    7,
    8,
)  # CHECK, CPUINFO_DUMP, CPUINFO_CHECK hold no memory, but name descriptors
_EINVAL: Final = 22


class Proxy:
    """Between two sockets.

    engine: the engine's end of its socket; criu: our end of CRIU's; ended: pidfd of CRIU; start: what makes a session,
    by default `session.start`; requests: what they may hold.
    """

    def __init__(
        self,
        engine: socket.socket,
        criu: socket.socket,
        ended: int,
        start: Start | None = None,
        requests: Requests | None = None,
        guard: socket.socket | None = None,
    ) -> None:
        """guard: what else has to leave the container's cgroups, and takes orders (`shim.obey`)."""
        self._engine = engine
        self._criu = criu
        self._ended = ended
        self._guard = guard
        self._criu_left = False
        with process.Held.of(ended) as younger:  # the engine has started it
            self._parent = process.peer(engine, younger.started)
        self._start = start
        self._requests = requests or Requests()
        self._session: Session | None = None
        self._unanswered = 0  # notifications that the engine got
        self._home = _cgroups(self._parent)

    def run(self) -> None:
        """Until either side is gone."""
        try:
            self._pass_on()
        finally:
            # Both first: a CRIU that waits for an answer must see that none will come, before we wait for its end.
            with self._engine, self._criu:
                if self._session is not None and (reason := self._session.unanswered()):
                    self._refuse(self._session.kind, reason)
            if self._session is not None:
                self._session.close(criu_left=self._criu_left)
            self._parent.close()

    def _pass_on(self) -> None:
        poll = select.poll()
        poll.register(self._engine, select.POLLIN)
        poll.register(self._criu, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                from_engine = fd == self._engine.fileno()
                data, fds = _receive(self._engine if from_engine else self._criu)
                try:
                    if not data:
                        self._criu_left = not from_engine
                        return
                    if from_engine and not self._to_criu(data, fds):
                        return
                    if not from_engine:
                        self._to_engine(data, fds)
                        if self._restored:
                            self._criu_left = True
                            return
                except OSError:  # the other side is gone
                    self._criu_left = from_engine
                    return
                finally:
                    for received in fds:
                        os.close(received)

    def _to_criu(self, data: bytes, fds: list[int]) -> bool:
        kind = request_type(data)
        if kind == _NOTIFY and not self._take_answer():
            return True
        refusal = None
        if kind < 0:
            refusal = "the request cannot be understood"
        elif self._session is not None and kind != _NOTIFY:
            if self._session.answered:  # a pre-dump, after which CRIU waits for the next step
                self._session.close(criu_left=False)
                self._session = None
            else:
                refusal = "another request is still running"
        remarks: list[str] = []
        if refusal is None:
            try:
                data, remarks = self._requests.prepare(data, kind)
            except RefusedError as error:
                refusal = str(error)
                _note(data, self._parent, refusal, "Error")
        server = kind in (_PAGE_SERVER, _PAGE_SERVER_CHILD)
        if refusal is None and (kind in _SEALED or kind in _WITH_DIRECTORIES or server):
            _go_home(self._home, self._guard)
            from sealpoint.dropin import session

            try:
                if server:
                    pid, answer = session.page_server(data, self._parent)
                    _send(self._engine, answer, [])
                    if (
                        kind == _PAGE_SERVER_CHILD
                    ):  # then CRIU is the server itself, and ends with it
                        os.waitpid(pid, 0)
                    return False
                if kind in _WITH_DIRECTORIES:
                    data = session.redirect(data, self._parent)
                else:
                    start = self._start or session.start
                    self._session, data = start(data, self._parent, self._criu, self._ended)
                    if self._session is not None:
                        self._session.remark(remarks)
            except session.RefusedRequestError as error:
                refusal = str(error)
        if refusal is not None:
            self._refuse(max(kind, 0), refusal)
            return False
        _send(self._criu, data, fds)
        return True

    def _take_answer(self) -> bool:
        """Whether the engine answers what it was asked.

        Else CRIU would take it for the answer to its next question, before the answer of our gate.
        """
        if not self._unanswered:
            return False
        self._unanswered -= 1
        return True

    def _to_engine(self, data: bytes, fds: list[int]) -> None:
        if self._session is not None:
            data = self._session.from_criu(data)
        if data:  # else answered by us
            self._unanswered += request_type(data) == _NOTIFY
            _send(self._engine, data, fds)

    @property
    def _restored(self) -> bool:
        """Whether CRIU has answered its last request; what it becomes then (exec_cmd) still holds its end."""
        session = self._session
        return session is not None and session.answered and session.kind == _RESTORE

    def _refuse(self, kind: int, reason: str) -> None:
        # criu_resp {type 1, success 2, cr_errno 7, cr_errmsg 9}
        said = f"sealpoint: {printable(reason)}".encode()[:4000]
        said = said.decode(errors="ignore").encode()  # CRIU's clients insist on whole characters
        body = b"\x08" + bytes([kind]) + b"\x10\x00\x38" + bytes([_EINVAL])
        body += b"\x4a" + _varint(len(said)) + said
        try:
            _send(self._engine, body, [])
        except OSError:
            pass  # nobody is there to be told


def _note(data: bytes, parent: process.Held, reason: str, kind: str) -> None:
    """Where people look: in CRIU's log, if the request says where that is."""
    from sealpoint.criu import schema
    from sealpoint.dropin.descriptors import Journal, RequestDescriptors

    try:
        options = schema.message("criu_req").FromString(data).opts
        descriptors = RequestDescriptors(parent)
        if descriptors.names_directory(options):
            work = descriptors.work_directory(options, descriptors.directory(options))
            journal = Journal()
            journal.open(work, text(options.log_file))
            journal.say(reason, kind)
    except Exception:  # noqa: BLE001 - the client gets the reason all the same
        return


def request_type(data: bytes) -> int:
    """Field 1 of a criu_req as CRIU's parser sees it, wherever it stands; -1 if there is none or it is not one."""
    found, at = -1, 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if at < 0 or number == 0 or (number == 1 and wire != 0):
            return -1
        if wire == 0:
            value, at = _read_varint(data, at)
            if number == 1:
                found = value & 0x7FFFFFFF if value & 0xFFFFFFFF < 1 << 31 else -1
        elif wire == 2:
            size, at = _read_varint(data, at)
            at = at + size if at >= 0 else -1
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            return -1
        if at < 0 or at > len(data):
            return -1
    return found if found < 0x80 else -1


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at` and where it ends; that is -1 where there is none."""
    value = shift = 0
    while 0 <= at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, -1


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _receive(source: socket.socket) -> tuple[bytes, list[int]]:
    try:
        data, ancillary, flags, _ = source.recvmsg(
            _MAX, socket.CMSG_SPACE(64 * 4), socket.MSG_CMSG_CLOEXEC
        )
    except OSError:
        return b"", []
    if flags & socket.MSG_TRUNC:
        data = b""  # a part would be taken for a whole
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)


def _send(target: socket.socket, data: bytes, fds: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    target.sendmsg([data], ancillary)


def _cgroups(held: process.Held) -> list[str]:
    """Files by which a process enters the cgroups of another."""
    found = []
    try:
        lines = held.look(lambda pid: proc_lines(f"/proc/{pid}/cgroup"))
    except OSError:
        return []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        base = "/sys/fs/cgroup"
        if number != "0":
            base += "/" + controllers.removeprefix("name=")
        elif os.path.isdir(base + "/unified"):
            base += "/unified"
        found.append(f"{base}{path.rstrip('/')}/cgroup.procs")
    return found


def _go_home(procs: list[str], guard: socket.socket | None) -> None:
    """Leave the container's cgroups, into which the engine may have moved CRIU and what it forked.

    There /dev/fuse may be forbidden, and the container's memory limit and its kill would reach this process.  The guard
    goes first: when this returns, both are out.
    """
    if guard is not None and procs:
        try:
            guard.send(os.fsencode("\0".join(procs)))
            guard.recv(1)
        except OSError:
            pass  # it is gone
    for path in procs:
        try:
            with open(path, "w") as file:
                file.write("0")
        except OSError:
            continue

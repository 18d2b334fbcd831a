"""One dump or restore through the drop-in: where CRIU's images go to, and when it may go on."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol

from sealpoint import config as configuration, names, process
from sealpoint.checkpoint import PARENT_LINK
from sealpoint.criu import schema
from sealpoint.criu.fuse import FuseServer
from sealpoint.criu.network_lock import NetworkLock
from sealpoint.dropin.descriptors import Freezer, Journal, RequestDescriptors, copy_descriptor
from sealpoint.dropin.leftovers import Leftovers
from sealpoint.errors import SealpointError, UsageError
from sealpoint.process import Held

if TYPE_CHECKING:
    from sealpoint.config import Config
    from sealpoint.dropin.pod import Pod
    from sealpoint.store.page_server import PageServerOutput

_RESTORE, _NOTIFY = 2, 6
# PRE_DUMP, after which CRIU waits for the next request, and SINGLE_PRE_DUMP
_PRE_DUMPS: Final = (4, 13)


class RefusedRequestError(Exception):
    """CRIU must not get this request; the message says why."""


class Work(Protocol):
    """What a session does at CRIU's notifications."""

    server: FuseServer

    @property
    def passed(self) -> bool:
        """Whether CRIU asked if it may go on, and the answer was yes, on evidence."""

    @property
    def error(self) -> BaseException | None:
        """What went wrong while CRIU wrote or read, which CRIU knows as an I/O error only."""

    def notified(self, script: str) -> None:
        """Raises what speaks against going on."""

    def complete(self) -> None:
        """CRIU has written or read everything.  Raises what speaks against success."""

    def ended(self, *, success: bool) -> None:
        """CRIU has answered the request."""

    def close(self) -> None:
        """Let go of everything."""


class Session:
    """Rewrites one request and follows it to its answer.  kind: the request's type."""

    def __init__(
        self,
        kind: int,
        work: Work,
        criu: socket.socket,
        *,
        engine_listens: bool,
        journal: Journal,
        freezer: Freezer,
        network: NetworkLock,
        leftovers: Leftovers,
        tree: Held,
        remarks: list[str],
    ) -> None:
        self.kind = kind
        self._work = work
        self._criu = criu
        self._engine_listens = engine_listens
        self._journal = journal
        self._freezer = freezer
        self._network = network
        self._leftovers = leftovers
        self._tree = tree
        self._remarks = remarks  # for the log, which CRIU empties when it starts
        self._reason = ""
        self._answered = False

    def remark(self, remarks: list[str]) -> None:
        """To be said in CRIU's log at the end."""
        self._remarks += remarks

    def from_criu(self, data: bytes) -> bytes:
        """What the engine gets for a message of CRIU's; empty if it gets none."""
        response = schema.message("criu_resp").FromString(data)
        if response.type == _NOTIFY:
            return self._notification(response, data)
        if response.type == self.kind:
            self._answered = True
            if response.success and self.kind in _PRE_DUMPS:  # which has no hook before its end
                try:
                    self._tree.require()
                    self._work.complete()
                except BaseException as error:  # noqa: BLE001 - the engine gets it in CRIU's answer
                    self._fail(error)
                    response.success = False
            if response.success and not self._work.passed:
                self._unasked(response)
            self._work.ended(success=response.success)
            for remark in self._remarks:
                self._journal.say(remark, "Warn ")
            if not response.success and (reason := self._why()):
                response.cr_errmsg = f"sealpoint: {names.printable(reason)}"
                data = response.SerializeToString()
        return data

    def _unasked(self, response: Any) -> None:
        """CRIU reports success, but has not heard a yes: the engine shall not hear of success."""
        response.success = False
        what = "a complete checkpoint here: no file is made; " + self._tree.fate
        if self.kind == _RESTORE:
            gone = self._leftovers.end_restored(response.restore.pid)
            response.ClearField("restore")
            left = "was ended" if gone else "could not be ended"
            what = f"a yes that everything verified: what it restored {left}"
        before = f"{why}; but " if (why := self._why()) else ""
        self._reason = f"{before}CRIU reported success without {what}"
        self._journal.say(self._reason)

    def _notification(self, response: Any, data: bytes) -> bytes:
        self._leftovers.named(response.notify.pid)
        script = names.text(response.notify.script)
        try:
            if script == "post-dump" and self._tree.pid > 0:
                self._tree.require()
            self._work.notified(script)
        except BaseException as error:  # noqa: BLE001 - the engine gets it in CRIU's answer
            self._fail(error)
            self._answer(success=False)
            return b""
        if self._engine_listens:
            return data
        self._answer(success=True)
        return b""

    def _answer(self, *, success: bool) -> None:
        request = schema.message("criu_req")(type=_NOTIFY, notify_success=success)
        self._criu.send(request.SerializeToString())

    def _fail(self, error: BaseException) -> None:
        if not self._reason:
            self._reason = _reason(error)
            self._journal.say(self._reason)

    def _why(self) -> str:
        if self._work.error is not None:
            self._fail(self._work.error)
        return self._reason

    @property
    def answered(self) -> bool:
        """Whether CRIU has answered."""
        return self._answered

    def unanswered(self) -> str:
        """Why the engine gets no answer from CRIU; empty if it got one."""
        if self._answered:
            return ""
        return self._why() or "CRIU ended before it was done"

    def close(self, *, criu_left: bool) -> None:
        """The connection is over; criu_left: because of CRIU and not of the engine."""
        if not self._answered:
            self._work.ended(success=False)
            if self.kind != _RESTORE:
                self._freezer.restore()
                if self._leftovers.criu_has_ended():
                    self._network.remove()
            elif criu_left:
                self._leftovers.end()
        self._network.close()
        self._tree.close()
        self._work.close()


def _reason(error: BaseException) -> str:
    if isinstance(error, SealpointError):
        return error.message + (f" ({error.hint})" if error.hint else "")
    if isinstance(error, OSError):
        return f"{error.strerror or type(error).__name__}"
    return f"internal error ({type(error).__name__})"


def start(
    data: bytes, parent: Held, criu: socket.socket, ended: int
) -> tuple[Session | None, bytes]:
    """A session for a dump, pre-dump or restore request, and the request as the real CRIU shall get it.

    There is none for a restore that needs none: of plain images, where that is allowed.

    parent: in whose descriptors numbers count; criu: the socket to the real CRIU; ended: its pidfd.
    Raises RefusedError: the engine then gets a failure with the reason, and CRIU nothing.
    """
    process.protect()
    journal = Journal()
    try:
        return _start(data, parent, criu, ended, journal)
    except Exception as error:
        reason = _reason(error)
        journal.say(reason)
        raise RefusedRequestError(reason) from error


def _start(
    data: bytes, parent: Held, criu: socket.socket, ended: int, journal: Journal
) -> tuple[Session | None, bytes]:
    request = schema.message("criu_req").FromString(data)
    options = request.opts
    descriptors = RequestDescriptors(parent)
    directory = descriptors.directory(options)
    work_directory = descriptors.work_directory(options, directory)
    journal.open(work_directory, names.text(options.log_file))
    _check(options, request.type)
    config = configuration.load_system()
    freezer = Freezer(names.text(options.freeze_cgroup))
    tree = Held(options.pid)  # from before anything is looked up by its number
    network = NetworkLock(tree)
    remarks: list[str] = []
    pod = _pod(options, config, restores=request.type == _RESTORE)
    os.chdir("/")  # the engine's directory shall not be busy because of us
    from sealpoint.dropin.increments import Step
    from sealpoint.dropin.work import DumpWork, RestoreWork, is_plain

    work: Work
    if request.type == _RESTORE:
        if config.allow_plain_images and is_plain(directory):
            journal.say(
                "the images are not sealed: nobody vouches for them, but this is allowed here"
            )
            descriptors.redirect(options, directory, work_directory)
            return None, request.SerializeToString()
        work = RestoreWork(
            directory,
            config,
            remarks.append,
            tell=lambda text: journal.say(text, "Info "),
            auto_dedup=options.auto_dedup,
            lazy=work_directory if options.lazy_pages else None,
            pod=pod,
        )
    else:
        step = Step(
            pid=options.pid,
            parent=names.text(options.parent_img),
            track=options.track_mem,
            pre_dump=request.type in _PRE_DUMPS,
            dedup=options.auto_dedup,
            root=os.fsdecode(options.root),
            pod=pod,
        )
        pages_out = _page_server(options, ended)
        work = dump = DumpWork(directory, config, pages_out, step=step, say=remarks.append)
        options.ClearField("parent_img")
        if dump.continues:
            options.parent_img = PARENT_LINK
    try:
        options.ClearField(
            "auto_dedup"
        )  # what parents lose is freed by us, when CRIU has succeeded
        descriptors.redirect(options, work.server.fd, work_directory)
        leftovers = Leftovers(ended, work.server.fd, work_directory, work.server.callers)
        if isinstance(work, RestoreWork):
            work.server.opened_by = leftovers.note
            work.tasks = leftovers.tasks
        session = Session(
            request.type,
            work,
            criu,
            engine_listens=options.notify_scripts,
            journal=journal,
            freezer=freezer,
            network=network,
            leftovers=leftovers,
            tree=tree,
            remarks=remarks,
        )
        options.notify_scripts = True
        return session, request.SerializeToString()
    except BaseException:
        work.close()
        raise


def _pod(options: Any, config: Config, *, restores: bool) -> Pod | None:
    """The pod's container that the request is about, where anything depends on it; in the engine's directory."""
    from sealpoint.dropin import pod as pods

    if not pods.wanted(config):
        return None
    root, here = os.fsdecode(options.root), ""
    if restores:
        with contextlib.suppress(FileNotFoundError):  # it was removed: no bundle either
            here = os.getcwd()
    return pods.find(root, here, 0 if restores else options.pid)


def _page_server(options: Any, criu: int) -> PageServerOutput | None:
    """The far side that a dump request names, connected; CRIU itself is to know of none.

    criu: pidfd of CRIU, in which the number of a socket counts.
    """
    if not options.HasField("ps"):
        return None
    from sealpoint.store import page_server

    if options.ps.HasField("fd"):
        with Held.of(criu) as owner:
            out = page_server.over(copy_descriptor(owner, options.ps.fd))
    else:
        out = page_server.to(names.text(options.ps.address), options.ps.port)
    options.ClearField("ps")
    return out


def page_server(data: bytes, parent: Held) -> tuple[int, bytes]:
    """Starts a page server of ours instead of CRIU's; its pid, and the answer for the engine.  Raises RefusedError."""
    from sealpoint.dropin import page_server as server

    try:
        return server.answer(data, parent)
    except Exception as error:
        raise RefusedRequestError(_reason(error)) from error


def redirect(data: bytes, parent: Held) -> bytes:
    """A request that leads no memory anywhere, with descriptor numbers that CRIU finds in this process.

    Raises RefusedError.
    """
    try:
        request = schema.message("criu_req").FromString(data)
        descriptors = RequestDescriptors(parent)
        if not request.HasField("opts") or not descriptors.names_directory(request.opts):
            return data
        directory = descriptors.directory(request.opts)
        work_directory = descriptors.work_directory(request.opts, directory)
        descriptors.redirect(request.opts, directory, work_directory)
        return bytes(request.SerializeToString())
    except Exception as error:
        raise RefusedRequestError(_reason(error)) from error


def _check(options: Any, kind: int) -> None:
    if options.HasField("ps") and kind == _RESTORE:
        raise UsageError("only a dump can have a page server")
    if options.lazy_pages and kind != _RESTORE:
        raise UsageError("lazy migration would send memory in the clear")

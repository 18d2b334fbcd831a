"""Called as `criu` by an engine that a command of sealpoint runs: CRIU's images go to that command, and come from it.

It has neither keys nor configuration.  Every question goes through the command's socket (`sealpoint.podman.broker`):
where images are, and at CRIU's notifications whether it may go on.  A dump leaves the tree stopped, whatever the engine
asked for: the command says how it goes on when the sealed file is durable.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from sealpoint import names
from sealpoint.dropin import shim

if TYPE_CHECKING:
    from sealpoint import process
    from sealpoint.dropin.session import Session

_KINDS: Final = {1: "dump", 2: "restore"}
_HARMLESS: Final = ("check", "--version", "-V")
_PATIENCE: Final = (
    600.0  # seconds for an answer: at the end of a dump and of a restore there is much to do
)
_MAX: Final = 65536


def main(real: str, address: str) -> NoReturn:
    """real: path of the real CRIU; address: path of the command's socket."""
    shim.usual_children()
    arguments = sys.argv[1:]
    if arguments[:1] == ["swrk"]:
        arguments = shim.serve(arguments, None, real, functools.partial(start, address))
    elif not arguments or arguments[0] not in _HARMLESS:
        shim.fail(f"criu {' '.join(arguments[:1])} was not expected from this engine now")
    shim.become(real, arguments)


class Remote:
    """What a session does at CRIU's notifications: the command decides."""

    def __init__(self, address: str, request: str) -> None:
        """Raises SystemEnvironmentError with what the command says against it."""
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._link.settimeout(_PATIENCE)
        self.images = -1
        self.passed = False
        try:
            self._link.connect(address)
        except OSError:
            self._fail("the command that asked for this has ended")
        self._ask({"begin": request})

    def _ask(self, message: dict[str, Any]) -> None:
        try:
            self._link.send(json.dumps(message).encode())
            data, fds, _, _ = socket.recv_fds(self._link, _MAX, 1)
            answer = json.loads(data)
        except (OSError, ValueError):
            self._fail("the command that asked for this has ended")
        if fds:
            self.images = fds[0]
        if answer.get("error"):
            self._fail(str(answer["error"]))

    @staticmethod
    def _fail(reason: str) -> NoReturn:
        from sealpoint.errors import SystemEnvironmentError

        raise SystemEnvironmentError(reason)

    @property
    def error(self) -> BaseException | None:
        """Why CRIU could not write or read."""
        from sealpoint.errors import SealpointError

        try:
            self._ask({"why": True})
        except SealpointError as error:
            return error
        return None

    def notified(self, script: str) -> None:
        """Ask, at the two that matter."""
        if script in ("post-dump", "post-restore"):
            self._ask({"notified": script})
            self.passed = True

    def complete(self) -> None:
        """After a pre-dump, which there is none of."""

    def ended(self, *, success: bool) -> None:
        """Tell; who does not hear it any more has decided already."""
        from sealpoint.errors import SealpointError

        try:
            self._ask({"ended": success})
        except SealpointError:
            pass

    def close(self) -> None:
        """Hang up."""
        self._link.close()


def start(
    address: str, data: bytes, parent: process.Held, criu: socket.socket, ended: int
) -> tuple[Session, bytes]:
    """As `session.start`, for a dump or restore request.  Raises RefusedError."""
    from sealpoint import process
    from sealpoint.dropin.descriptors import Journal
    from sealpoint.dropin.session import RefusedRequestError
    from sealpoint.errors import SealpointError

    process.protect()
    journal = Journal()
    try:
        return _start(address, data, parent, criu, ended, journal)
    except Exception as error:
        reason = error.message if isinstance(error, SealpointError) else type(error).__name__
        journal.say(reason)
        raise RefusedRequestError(reason) from error


def _start(
    address: str, data: bytes, parent: process.Held, criu: socket.socket, ended: int, journal: Any
) -> tuple[Session, bytes]:
    from sealpoint import process
    from sealpoint.criu import schema
    from sealpoint.criu.network_lock import NetworkLock
    from sealpoint.dropin.descriptors import Freezer, RequestDescriptors
    from sealpoint.dropin.leftovers import Leftovers
    from sealpoint.dropin.session import Session

    request = schema.message("criu_req").FromString(data)
    options = request.opts
    descriptors = RequestDescriptors(parent)
    directory = descriptors.directory(options)
    work_directory = descriptors.work_directory(options, directory)
    journal.open(work_directory, names.text(options.log_file))
    _check(request)
    os.chdir("/")
    tree = process.Held(options.pid)
    remote = Remote(address, _KINDS[request.type])
    try:
        images = remote.images if remote.images >= 0 else directory
        descriptors.redirect(options, images, work_directory)
        session = Session(
            request.type,
            cast("Any", remote),  # all of `Work` but the server, which is elsewhere
            criu,
            engine_listens=options.notify_scripts,
            journal=journal,
            freezer=Freezer(names.text(options.freeze_cgroup)),
            network=NetworkLock(tree),
            leftovers=Leftovers(ended, images, work_directory),
            tree=tree,
            remarks=[],
        )
        options.notify_scripts = True
        if _KINDS[request.type] == "dump":
            options.ClearField("leave_running")
            options.leave_stopped = True
        return session, request.SerializeToString()
    except BaseException:
        remote.close()
        raise


def _check(request: Any) -> None:
    from sealpoint.errors import UsageError

    options = request.opts
    if request.type not in _KINDS or options.HasField("ps"):
        raise UsageError("only whole dumps and restores are sealed")
    for name in ("parent_img", "track_mem", "lazy_pages", "auto_dedup"):
        if getattr(options, name):
            raise UsageError(f"{name} is not sealed with a whole archive")

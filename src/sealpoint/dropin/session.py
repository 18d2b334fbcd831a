"""One dump or restore through the drop-in: where CRIU's images go to, and when it may go on."""

from __future__ import annotations

import ctypes
import os
import socket
from typing import Any, Final, Protocol

from sealpoint import config as configuration
from sealpoint import process
from sealpoint.criu import schema
from sealpoint.criu.fuse import FuseServer
from sealpoint.errors import SealpointError, SystemEnvironmentError, UsageError

IMAGE: Final = "inventory.img"  # the name that podman and CRI-O look for before they call criu
_DUMP, _RESTORE, _NOTIFY = 1, 2, 6
_PIDFD_GETFD: Final = 438


class Work(Protocol):
    """What a session does at CRIU's notifications."""

    server: FuseServer

    def notified(self, script: str) -> None:
        """Raises what speaks against going on."""

    def ended(self, *, success: bool) -> None:
        """CRIU has answered the request."""

    def close(self) -> None:
        """Let go of everything."""


class Session:
    """Rewrites one request and follows it to its answer."""

    def __init__(self, kind: int, work: Work, criu: socket.socket, *, engine_listens: bool) -> None:
        self._kind = kind
        self._work = work
        self._criu = criu
        self._engine_listens = engine_listens
        self._reason = ""

    def from_criu(self, data: bytes) -> bytes:
        """What the engine gets for a message of CRIU's; empty if it gets none."""
        response = schema.message("criu_resp").FromString(data)
        if response.type == _NOTIFY:
            return self._notification(response, data)
        if response.type == self._kind:
            self._work.ended(success=response.success)
            if not response.success and self._reason:
                response.cr_errmsg = self._reason
                data = response.SerializeToString()
        return data

    def _notification(self, response: Any, data: bytes) -> bytes:
        try:
            self._work.notified(response.notify.script)
        except BaseException as error:  # noqa: BLE001 - the engine gets it in CRIU's answer
            self._reason = _reason(error)
            self._answer(success=False)
            return b""
        if self._engine_listens:
            return data
        self._answer(success=True)
        return b""

    def _answer(self, *, success: bool) -> None:
        request = schema.message("criu_req")(type=_NOTIFY, notify_success=success)
        self._criu.send(request.SerializeToString())

    def close(self) -> None:
        """The connection is over."""
        self._work.close()


def _reason(error: BaseException) -> str:
    if isinstance(error, SealpointError):
        return f"sealpoint: {error.message}" + (f" ({error.hint})" if error.hint else "")
    return f"sealpoint: internal error ({type(error).__name__})"


def start(data: bytes, parent: int, criu: socket.socket) -> tuple[Session, bytes]:
    """A session for a dump or restore request, and the request as the real CRIU shall get it.

    Raises SealpointError: the engine then gets a failure with the reason, and CRIU nothing.
    """
    process.protect()
    config = configuration.load_system()
    request = schema.message("criu_req").FromString(data)
    options = request.opts
    _check(options)
    descriptors = Descriptors(parent)
    directory = descriptors.directory(options)
    from sealpoint.dropin.work import DumpWork, RestoreWork

    work: Work = (DumpWork if request.type == _DUMP else RestoreWork)(directory, config)
    descriptors.redirect(options, work.server.fd, directory)
    session = Session(request.type, work, criu, engine_listens=options.notify_scripts)
    options.notify_scripts = True
    return session, request.SerializeToString()


def _check(options: Any) -> None:
    if options.HasField("ps"):
        raise UsageError("a dump to a page server is not sealed by this version of sealpoint")
    for name, what in (
        ("parent_img", "an increment (parent image)"),
        ("lazy_pages", "lazy migration"),
        ("auto_dedup", "auto-dedup"),
    ):
        if options.HasField(name) and getattr(options, name):
            raise UsageError(f"{what} is not sealed by this version of sealpoint")


class Descriptors:
    """Descriptor numbers in a request are the engine's: CRIU looks them up in the maker of its socket, now us."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def directory(self, options: Any) -> int:
        """The engine's images directory, opened here.  Raises SystemEnvironmentError."""
        if options.HasField("images_dir_fd") and options.images_dir_fd >= 0:
            return self._open(f"/proc/{self._parent}/fd/{options.images_dir_fd}")
        if options.images_dir:
            return self._open(f"/proc/{self._parent}/cwd/{options.images_dir}".replace("//", "/"))
        raise SystemEnvironmentError("the request names no images directory")

    def redirect(self, options: Any, images: int, directory: int) -> None:
        """Point every descriptor at ours."""
        options.images_dir_fd = images
        options.ClearField("images_dir")
        work = options.work_dir_fd if options.HasField("work_dir_fd") else -1
        options.work_dir_fd = (
            self._open(f"/proc/{self._parent}/fd/{work}") if work >= 0 else directory
        )
        for name in ("status_fd", "pidfd_store_sk"):
            if options.HasField(name) and getattr(options, name) >= 0:
                setattr(options, name, self._copy(getattr(options, name)))

    @staticmethod
    def _open(path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot open the engine's directory: {error.strerror}"
            ) from None

    def _copy(self, number: int) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        pidfd = os.pidfd_open(self._parent)
        try:
            fd: int = libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
        finally:
            os.close(pidfd)
        if fd < 0:
            raise SystemEnvironmentError("cannot take over a descriptor of the engine")
        return fd

"""`criu dump`, `pre-dump` and `restore` as typed: the sealed file lies in the images directory, CRIU works on a mount.

As with RPC, the real CRIU takes over this process and a helper, nobody's child, serves it; so exit status, signals,
terminal and the parent of a restored tree are those of CRIU itself.  Only where something remains to be done when CRIU
has ended (a pre-dump has no hook; parents are freed last) it runs as a child and is waited for (`supervise`).
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from sealpoint import config as configuration
from sealpoint import process
from sealpoint.checkpoint.capture_fs import PARENT
from sealpoint.criu.gate import Gate
from sealpoint.criu.network_lock import NetworkLock
from sealpoint.criu.private_dir import PrivateDir
from sealpoint.dropin.arguments import CommandLine
from sealpoint.dropin.increments import Step
from sealpoint.dropin.shim import child_environment, release_descriptors
from sealpoint.dropin.work import DumpWork, RestoreWork, is_plain
from sealpoint.errors import SealpointError
from sealpoint.store import page_server
from sealpoint.store.page_server import PageServerOutput

_PATIENCE = 60.0  # seconds for the helper to be ready
_KILL_PATIENCE = 2.0  # seconds after CRIU's end in which a killed tree begins to end
_PF_EXITING = 0x4  # in field 9 of /proc/PID/stat (linux/sched.h)
_MAX_MESSAGE = 65536
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class _PlainImages(Exception):  # noqa: N818 - no error, but no work for us
    """The images are not sealed, and the configuration allows that."""


def run(line: CommandLine, given: list[str], real: str) -> list[str]:
    """Start the helper; returns the arguments for the real CRIU, if that is to take over this process.

    given: all arguments as they were; they are left for a restore of plain images, where that is allowed.

    Raises SealpointError with the helper's reason.
    """
    if line.command == "dedup":
        from sealpoint.dropin.dedup import run as run_dedup

        run_dedup(line)
    arguments, link = _start(line, given)
    if arguments is given:
        return given
    if line.command == "pre-dump" or line.has("auto-dedup"):
        _supervise(real, arguments, link)
    link.close()
    return arguments


def _start(line: CommandLine, given: list[str]) -> tuple[list[str], socket.socket]:
    near, helpers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    images = os.path.abspath(line.images or ".")
    pid = os.getpid()
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            near.close()
            _help(line, images, pid, helpers)
        os._exit(0)
    helpers.close()
    os.waitpid(child, 0)
    answer = _receive(near, _PATIENCE)
    if "plain" in answer:
        sys.stderr.write(
            "criu (sealpoint): warning: the images are not sealed: nobody vouches for them\n"
        )
        sys.stderr.flush()
        return given, near
    if "images" not in answer:
        raise SealpointError(answer.get("error", "sealpoint's helper did not start"))
    work = line.work if line.work is not None else images
    ours = ["-D", answer["images"], "-W", work]
    if "script" in answer:
        ours += ["--action-script", answer["script"]]
    if answer.get("parent"):
        ours += ["--prev-images-dir", PARENT]
    return [*ours, *line.rest], near  # ours first: `--` may end the options


def _receive(link: socket.socket, patience: float | None) -> dict[str, Any]:
    """A message; empty if there comes none."""
    link.settimeout(patience)
    try:
        message = json.loads(link.recv(_MAX_MESSAGE) or b"{}")
    except (OSError, ValueError):
        return {}
    return message if isinstance(message, dict) else {}


def _supervise(real: str, arguments: list[str], link: socket.socket) -> NoReturn:
    """Run CRIU as a child; then let the helper finish, and end as CRIU ended, or with 1 if the helper failed."""
    child = os.fork()
    if child == 0:
        try:
            os.execve(real, ["criu", *arguments], child_environment())  # noqa: S606 - as in shim.run
        finally:
            os._exit(127)
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    code = os.waitstatus_to_exitcode(status)
    _send(link, {"status": code})
    answer = _receive(link, None)  # however long the disk takes
    if code < 0:
        os.kill(os.getpid(), -code)
    if code == 0 and not answer.get("ok"):
        code = 1
    os._exit(code if code >= 0 else 128 - code)


def _help(line: CommandLine, images: str, criu: int, link: socket.socket) -> NoReturn:
    code = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)  # standard error stays: reasons are said there
        keep = [2, link.fileno()]
        if line.has("ps-socket"):
            keep.append(line.number("ps-socket"))
        release_descriptors(sorted(keep))
        process.protect()
        _Helper(line, images, criu).run(link)
        code = 0
    except _PlainImages:
        _send(link, {"plain": True})
    except BaseException as error:  # noqa: BLE001 - there is nobody to raise to
        _send(link, {"error": _reason(error)})
    finally:
        os._exit(code)


def _send(link: socket.socket, message: dict[str, Any]) -> None:
    try:
        link.send(json.dumps(message).encode()[:_MAX_MESSAGE])
    except OSError:
        pass  # nobody is there to be told


def _reason(error: BaseException) -> str:
    if isinstance(error, SealpointError):
        return error.message + (f" ({error.hint})" if error.hint else "")
    return f"internal error: {type(error).__name__}"


def _say(remark: str, kind: str = "Warn ") -> None:
    """Where CRIU's own errors are said."""
    sys.stderr.write(f"{kind} (sealpoint): {remark}\n")
    sys.stderr.flush()


class _Helper:
    """Serves one dump or restore until CRIU, pid `criu`, has ended."""

    def __init__(self, line: CommandLine, images: str, criu: int) -> None:
        self._line = line
        self._criu = criu
        self._said = False
        config = configuration.load()
        try:
            directory = os.open(images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SealpointError(f"cannot open {images}: {error.strerror}") from None
        self._work: DumpWork | RestoreWork
        if line.command == "restore":
            if config.allow_plain_images and is_plain(directory):
                raise _PlainImages
            self._work = RestoreWork(
                directory,
                config,
                _say,
                tell=lambda text: _say(text, "Info "),
                auto_dedup=line.has("auto-dedup"),
                lazy=_lazy(line, images),
            )
            self._action = "post-restore"
            return
        step = Step(
            pid=line.pid,
            parent=line.values.get("prev-images-dir", ""),
            track=line.has("track-mem"),
            pre_dump=line.command == "pre-dump",
            dedup=line.has("auto-dedup"),
            root=line.values.get("root", ""),
        )
        self._work = DumpWork(directory, config, _page_server(line), step=step, say=_say)
        self._action = "post-dump"

    def run(self, link: socket.socket) -> None:
        with NetworkLock(self._line.pid) as network:
            try:
                if self._run(link) and isinstance(self._work, DumpWork):
                    network.remove()
            finally:
                self._work.close()

    def _run(self, link: socket.socket) -> bool:
        """Until CRIU has ended; whether it may not have undone what it did."""
        ended = os.pidfd_open(self._criu)
        self._work.when_failed(self._failed)
        supervised = self._line.command == "pre-dump" or self._line.has("auto-dedup")
        with PrivateDir() as private, Gate(private.path, self._action, self._decide) as gate:
            answer: dict[str, Any] = {"images": self._work.server.path}
            if self._line.command != "pre-dump":
                answer["script"] = gate.script
            if isinstance(self._work, DumpWork):
                answer["parent"] = self._work.continues
            _send(link, answer)
            if supervised:
                status = _receive(link, None).get("status")
                # None: who waits for CRIU was killed, and CRIU may go on.
                done = self._tree_is_gone() if status is None else status == 0
                _send(link, {"ok": self._finish(passed=gate.passed and done, status=status)})
                return isinstance(status, int) and status < 0
            link.close()
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            poll.poll()
            passed = gate.passed
            if self._line.command == "dump":
                passed = passed and self._tree_is_gone()
                self._work.ended(success=passed)
            return not passed

    def _finish(self, *, passed: bool, status: object) -> bool:
        """CRIU, or who waits for it, has ended; returns whether all is well.  status: None if it is not known."""
        try:
            if self._line.command == "pre-dump" and status == 0:
                self._work.complete()
                passed = True
            self._work.ended(success=passed)
        except BaseException as error:  # noqa: BLE001 - said where CRIU's own errors are said
            self._failed(error)
            return False
        return passed

    def _decide(self) -> bool:
        try:
            self._work.notified(self._action)
        except BaseException as error:  # noqa: BLE001 - said where CRIU's own errors are said
            self._failed(error)
            return False
        return True

    def _failed(self, error: BaseException) -> None:
        if self._said:
            return  # what follows is its consequence
        self._said = True
        _say(error.message if isinstance(error, SealpointError) else type(error).__name__, "Error")

    def _tree_is_gone(self) -> bool:
        """Whether CRIU went on to its end after our yes: nobody can wait for another's child, but the tree tells."""
        if self._line.leave_running:
            return True
        deadline = time.monotonic() + _KILL_PATIENCE
        while not _is_ending(self._line.pid):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True


def _lazy(line: CommandLine, images: str) -> int | None:
    """Work directory of `restore --lazy-pages`."""
    if not line.has("lazy-pages"):
        return None
    work = os.path.abspath(line.work) if line.work is not None else images
    try:
        return os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SealpointError(f"cannot open {work}: {error.strerror}") from None


def _page_server(line: CommandLine) -> PageServerOutput | None:
    """The far side of `dump --page-server`, connected."""
    if not line.has("page-server"):
        return None
    if line.has("ps-socket"):
        return page_server.over(line.number("ps-socket"))
    return page_server.to(line.values.get("address", ""), line.number("port"))


def _is_ending(pid: int) -> bool:
    """Whether a process is gone, or on its way: with much memory that takes a while."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)

"""`criu dump`, `pre-dump` and `restore` as typed: the sealed file lies in the images directory, CRIU works on a mount.

CRIU runs as a child of this process (`typed_child`), and a helper, nobody's child, serves it and says in the end
whether all is well.  With `--restore-sibling` CRIU takes over this process: the restored tree becomes its sibling.

CRIU gets the images as its working directory and opens them there, before it changes to the work directory.  Its
action script lies in a directory that only root can enter: CRIU closes all descriptors before it runs one.
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

from sealpoint import config as configuration, process
from sealpoint.checkpoint import PARENT_LINK
from sealpoint.criu import gate as gates
from sealpoint.criu.caller import namespace
from sealpoint.criu.gate import Gate
from sealpoint.criu.network_lock import NetworkLock
from sealpoint.criu.run_dir import RunDirectory
from sealpoint.dropin import typed_child
from sealpoint.dropin.arguments import CommandLine
from sealpoint.dropin.increments import Step
from sealpoint.dropin.inherited import release_descriptors
from sealpoint.dropin.leftovers import Leftovers
from sealpoint.dropin.work import DumpWork, RestoreWork, is_plain
from sealpoint.errors import SealpointError
from sealpoint.names import printable
from sealpoint.store import page_server
from sealpoint.store.page_server import PageServerOutput

_PATIENCE = 60.0  # seconds for the helper to be ready
_KILL_PATIENCE = 2.0  # seconds after CRIU's end in which a killed tree begins to end
_MAX_MESSAGE = 65536
_PREFIX = "sealpoint-gate-"


class _PlainImages(Exception):  # noqa: N818 - no error, but no work for us
    """The images are not sealed, and the configuration allows that."""


def run(line: CommandLine, given: list[str], real: str) -> list[str]:
    """Start the helper, then CRIU.  Returns only for plain images, where they are allowed: the arguments for CRIU.

    given: all arguments as they were.  Raises SealpointError with the helper's reason.
    """
    if line.command == "dedup":
        from sealpoint.dropin.dedup import run as run_dedup

        run_dedup(line)
    images = _absolute(line.images or ".")
    link = _start(line, images)
    answer, fds = _receive(link, _PATIENCE)
    if "plain" in answer:
        sys.stderr.write(
            "criu (sealpoint): warning: the images are not sealed: nobody vouches for them\n"
        )
        sys.stderr.flush()
        return given
    if not fds:
        raise SealpointError(answer.get("error", "sealpoint's helper did not start"))
    arguments = ["-D", ".", "-W", images if line.work is None else _absolute(line.work)]
    if script := answer.get("script"):
        arguments += ["--action-script", script]
    if answer.get("parent"):
        arguments += ["--prev-images-dir", PARENT_LINK]
    # Ours first: `--` may end the options.
    arguments += [_as_typed(word, arguments[3]) for word in line.rest]
    return _become(line, os.path.abspath(real), arguments, link, fds[0], script)


def _as_typed(word: str, work: str) -> str:
    """CRIU looks at the files of --join-ns before it goes to its work directory, where it then opens them."""
    mark = "--join-ns="
    return mark + namespace(word.removeprefix(mark), work) if word.startswith(mark) else word


def _absolute(path: str) -> str:
    """Not `abspath`: before `..` there may be a symbolic link.  Raises SealpointError."""
    try:
        return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    except OSError as error:
        raise SealpointError(f"the working directory: {error.strerror}") from None


def _start(line: CommandLine, images: str) -> socket.socket:
    """The connection to a new helper."""
    near, helpers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            near.close()
            _help(line, images, helpers)
        os._exit(0)
    helpers.close()
    os.waitpid(child, 0)
    return near


def _become(
    line: CommandLine,
    real: str,
    arguments: list[str],
    link: socket.socket,
    images: int,
    script: str | None,
) -> NoReturn:
    """Run CRIU; end as it has ended, or with 1 if the helper does not say that all is well.  Raises SealpointError."""
    if line.has("restore-sibling"):
        with process.Held(os.getpid()) as this:
            _send(link, {"started": True}, this.fd)
        try:
            os.fchdir(images)
            typed_child.become(real, arguments, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        except OSError as error:
            raise SealpointError(f"cannot run {real}: {error.strerror}") from None
    child = typed_child.Child(real, arguments, lambda: os.fchdir(images))
    _send(link, {"started": True}, child.pidfd)
    # Whoever waits for the end of a pipe waits for CRIU alone.
    release_descriptors(sorted((link.fileno(), child.pidfd)))
    code = child.wait()
    _send(link, {"status": code})
    well, passed = _outcome(link)
    if code == 0 and not well:
        code = 1
        if line.command == "restore" and not passed:
            process.kill_descendants()  # nobody vouches for what runs
    if script:
        gates.remove(os.path.dirname(script))  # if the helper was killed
    typed_child.end_as(code)


def _outcome(link: socket.socket) -> tuple[bool, bool]:
    """(whether all is well, whether the gate said yes), as the helper says, however long the disk needs.

    If the helper was killed, what its gate has said counts.
    """
    passed = False
    while True:
        answer, _ = _receive(link, None)
        passed = passed or answer.get("passed") is True
        if "ok" in answer or not answer:
            return answer.get("ok", passed) is True, passed


def _receive(link: socket.socket, patience: float | None) -> tuple[dict[str, Any], list[int]]:
    """A message and its descriptors; empty if there comes none."""
    link.settimeout(patience)
    try:
        data, fds, _, _ = socket.recv_fds(link, _MAX_MESSAGE, 1)
        for fd in fds:
            os.set_inheritable(fd, False)  # `recv_fds` ignores MSG_CMSG_CLOEXEC
        message = json.loads(data or b"{}")
    except (OSError, ValueError):
        return {}, []
    return (message if isinstance(message, dict) else {}), fds


def _help(line: CommandLine, images: str, link: socket.socket) -> NoReturn:
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
        _Helper(line, images).run(link)
        code = 0
    except _PlainImages:
        _send(link, {"plain": True})
    except BaseException as error:  # noqa: BLE001 - there is nobody to raise to
        _send(link, {"error": _reason(error)})
    finally:
        os._exit(code)


def _send(link: socket.socket, message: dict[str, Any], fd: int | None = None) -> None:
    data = json.dumps(message).encode()[:_MAX_MESSAGE]
    try:
        socket.send_fds(link, [data], [] if fd is None else [fd])
    except OSError:
        pass  # nobody is there to be told


def _reason(error: BaseException) -> str:
    if isinstance(error, SealpointError):
        return error.message + (f" ({error.hint})" if error.hint else "")
    return f"internal error: {type(error).__name__}"


def _say(remark: str, kind: str = "Warn ") -> None:
    """Where CRIU's own errors are said."""
    sys.stderr.write(f"{kind} (sealpoint): {printable(remark)}\n")
    sys.stderr.flush()


class _Helper:
    """Serves one dump or restore until CRIU has ended."""

    def __init__(self, line: CommandLine, images: str) -> None:
        self._line = line
        self._place = _absolute(line.work) if line.work is not None else images
        self._said = False
        # From before anything is looked up by its number.
        self._tree = process.Held(line.pid if line.command != "restore" else 0)
        config = configuration.load_system()
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
                siblings=line.has("restore-sibling"),
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
        with NetworkLock(self._tree) as network:
            try:
                if self._run(link) and isinstance(self._work, DumpWork):
                    network.remove()
            finally:
                self._work.close()

    def _run(self, link: socket.socket) -> bool:
        """Until CRIU has ended; whether it may not have undone what it did."""
        self._work.when_failed(self._failed)
        with (
            RunDirectory(_PREFIX, gates.remove, executable=True) as directory,
            Gate(
                directory.path, self._action, self._decide, confirm=lambda: self._confirm(link)
            ) as gate,
        ):
            answer: dict[str, Any] = {}
            if self._line.command != "pre-dump":
                answer["script"] = f"{directory.path}/{gates.SCRIPT}"
            if isinstance(self._work, DumpWork):
                answer["parent"] = self._work.continues
            _send(link, answer, self._work.server.fd)
            _, fds = _receive(link, None)
            if not fds:
                return False  # CRIU was never started
            leftovers = self._leftovers(fds[0])
            message, _ = _receive(link, None)
            status = message.get("status")
            if status is None:  # who waits for CRIU has become CRIU, or was killed
                _await(fds[0])
            # CRIU has ended.
            done = self._tree_is_gone() if status is None else status == 0
            well = self._finish(passed=gate.passed and done, status=status)
            if leftovers is not None and not gate.passed:
                leftovers.end()
            _send(link, {"ok": well})
            return not well and (status is None or status < 0)

    def _leftovers(self, criu: int) -> Leftovers | None:
        """Of a restore: who has opened an image is a part of CRIU or a task.  criu: its pidfd."""
        if not isinstance(self._work, RestoreWork):
            return None
        work = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            server = self._work.server
            leftovers = Leftovers(criu, server.fd, work, server.callers)
        finally:
            os.close(work)
        self._work.server.opened_by = leftovers.note
        self._work.tasks = leftovers.tasks
        return leftovers

    def _confirm(self, link: socket.socket) -> bool:
        _send(link, {"passed": True})
        return True

    def _finish(self, *, passed: bool, status: int | None) -> bool:
        """CRIU has ended; returns whether all is well.  status: None if it is not known."""
        try:
            if self._line.command == "pre-dump" and status == 0:
                self._tree.require()
                self._work.complete()
                passed = True
            self._work.ended(success=passed)
        except BaseException as error:  # noqa: BLE001 - said where CRIU's own errors are said
            self._failed(error)
            return False
        if status == 0 and not passed:
            if not self._said:
                self._failed(SealpointError("CRIU ended without asking for approval"))
            if isinstance(self._work, DumpWork):
                _say(f"CRIU reported success, but no file is made; {self._tree.fate}", "Error")
        return passed

    def _decide(self) -> bool:
        try:
            if self._action == "post-dump":
                self._tree.require()
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
        """Whether CRIU went on to its end after our yes: its status is not known, but the tree tells."""
        if self._line.leave_running or self._line.command != "dump":
            return True
        deadline = time.monotonic() + _KILL_PATIENCE
        while not self._tree.is_ending:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True


def _await(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()


def _lazy(line: CommandLine, images: str) -> int | None:
    """Work directory of `restore --lazy-pages`."""
    if not line.has("lazy-pages"):
        return None
    work = _absolute(line.work) if line.work is not None else images
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

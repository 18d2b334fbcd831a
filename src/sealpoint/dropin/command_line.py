"""`criu dump` and `criu restore` as typed: the sealed file lies in the images directory, CRIU works on a FUSE mount.

As with RPC, the real CRIU takes over this process and a helper, nobody's child, serves it; so exit status, signals,
terminal and the parent of a restored tree are those of CRIU itself.  Runs only when such a command is called.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from typing import NoReturn

from sealpoint import config as configuration
from sealpoint import process
from sealpoint.criu.gate import Gate
from sealpoint.criu.private_dir import PrivateDir
from sealpoint.dropin.arguments import CommandLine
from sealpoint.dropin.shim import release_descriptors
from sealpoint.dropin.work import DumpWork, RestoreWork
from sealpoint.errors import SealpointError
from sealpoint.store import page_server
from sealpoint.store.page_server import PageServerOutput

_PATIENCE = 60.0  # seconds for the helper to be ready
_KILL_PATIENCE = 2.0  # seconds after CRIU's end in which a killed tree begins to end
_PF_EXITING = 0x4  # in field 9 of /proc/PID/stat (linux/sched.h)
_MAX_MESSAGE = 65536


def interpose(line: CommandLine) -> list[str]:
    """Start the helper; returns the arguments for the real CRIU.  Raises SealpointError with the helper's reason."""
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
    with near:
        near.settimeout(_PATIENCE)
        try:
            answer = json.loads(near.recv(_MAX_MESSAGE) or b"{}")
        except (OSError, ValueError):
            answer = {}
    if "images" not in answer:
        raise SealpointError(answer.get("error", "sealpoint's helper did not start"))
    work = line.work if line.work is not None else images
    ours = ["-D", answer["images"], "-W", work, "--action-script", answer["script"]]
    return [*ours, *line.rest]  # first: `--` may end the options


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
    except SealpointError as error:
        hint = f" ({error.hint})" if error.hint else ""
        link.send(json.dumps({"error": f"{error.message}{hint}"}).encode()[:_MAX_MESSAGE])
    except BaseException as error:  # noqa: BLE001 - there is nobody to raise to
        link.send(json.dumps({"error": f"internal error: {type(error).__name__}"}).encode())
    finally:
        os._exit(code)


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
        if line.command == "dump":
            self._work = DumpWork(directory, config, _page_server(line))
            self._action = "post-dump"
        else:
            self._work = RestoreWork(directory, config)
            self._action = "post-restore"

    def run(self, link: socket.socket) -> None:
        ended = os.pidfd_open(self._criu)
        self._work.when_failed(self._say)
        with PrivateDir() as private, Gate(private.path, self._action, self._decide) as gate:
            answer = {"images": self._work.server.path, "script": gate.script}
            link.send(json.dumps(answer).encode())
            link.close()
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            poll.poll()
            if self._line.command == "dump":
                self._work.ended(success=gate.passed and self._tree_is_gone())
        self._work.close()

    def _decide(self) -> bool:
        try:
            self._work.notified(self._action)
        except BaseException as error:  # noqa: BLE001 - said where CRIU's own errors are said
            self._say(error)
            return False
        return True

    def _say(self, error: BaseException) -> None:
        if self._said:
            return  # what follows is its consequence
        self._said = True
        reason = error.message if isinstance(error, SealpointError) else type(error).__name__
        sys.stderr.write(f"Error (sealpoint): {reason}\n")
        sys.stderr.flush()

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

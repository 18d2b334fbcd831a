"""`criu lazy-pages` as typed: post-copy from a sealed file, each page authenticated before a restored task gets it.

The real daemon reads its images from a mount of ours and fills the tasks' memory through their userfaultfds.  When it
ends too early, the kernel fills the rest with zeros and the tasks run on with them.  So the connection from
`criu restore` is led through this process, which learns of every task: on a bad page it ends the tree before the daemon
gets an answer, and if it is killed itself, a guard ends the tree while the daemon still waits.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from typing import Final, NoReturn

from sealpoint import config as configuration, process
from sealpoint.config import Config
from sealpoint.criu.private_dir import PrivateDir
from sealpoint.dropin import background, lazy_link
from sealpoint.dropin.arguments import CommandLine
from sealpoint.dropin.lazy_guard import LazyGuard, Tree
from sealpoint.dropin.work import RestoreWork, is_plain, require_lazy
from sealpoint.environment import environment
from sealpoint.errors import SealpointError, SystemEnvironmentError

_PATIENCE: Final = 20.0  # seconds for the real daemon to listen
_OURS: Final = (
    "images-dir",
    "work-dir",
    "log-file",
    "pidfile",
    "status-fd",
    "daemon",
    "restore-detached",
)


def run(line: CommandLine, real: str) -> NoReturn:
    """Ends the process, with the status of the real daemon."""
    try:
        config = configuration.load_system()
        images = os.path.abspath(line.images or ".")
        directory = _open(images)
        if config.allow_plain_images and is_plain(directory):
            os.execve(  # noqa: S606 - it is the user's wish
                real,
                ["criu", "--no-default-config", *line.words],
                environment(criu_fault=config.criu_fault),
            )
        require_lazy(config)
        work = _open(os.path.abspath(line.work or images))
        with background.Launch(line, os.readlink(f"/proc/self/fd/{work}")) as launch:
            guard = LazyGuard.start()  # while there are no threads
            try:
                code = _Daemon(line, real, directory, work, config, guard).run(launch.ready)
            finally:
                guard.close()
    except SealpointError as error:
        background.say_error(error)
        os._exit(1)
    except BaseException as error:  # noqa: BLE001 - a traceback helps nobody
        background.say(f"Error (sealpoint): internal error: {type(error).__name__}")
        os._exit(1)
    os._exit(code)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SystemEnvironmentError(f"cannot open {path}: {error.strerror}") from None


class _Daemon:
    """One lazy restore: from listening to the last page, or to the end of the tree."""

    def __init__(
        self, line: CommandLine, real: str, images: int, work: int, config: Config, guard: LazyGuard
    ) -> None:
        """Raises SealpointError: all but pages is verified here."""
        process.protect()
        self._line = line
        self._real = real
        self._tree = Tree()
        self._guard = guard
        self._directory = work
        self._work = RestoreWork(images, config)
        self._work.when_failed(self._bad_page)
        self._fault = config.criu_fault
        self._failed = False

    def run(self, ready: background.Ready) -> int:
        with PrivateDir() as private:
            daemon = self._start(private)
            with process.Held(daemon.pid) as held:  # a child of ours that nobody has waited for
                self._guard.watch(held, self._work.server.device)
            try:
                _await_socket(private, daemon)
                with lazy_link.Listener(self._directory, self._work.reference) as link:
                    threading.Thread(target=self._relay, args=(link, private), daemon=True).start()
                    ready()
                    code = daemon.wait()
            except BaseException:
                daemon.kill()
                daemon.wait()
                raise
        if code != 0 or self._failed:
            self._end(f"the daemon ended with status {code}")
            code = 1
        self._guard.done()
        self._tree.release()
        self._work.close()
        return code

    def _start(self, work: PrivateDir) -> subprocess.Popen[bytes]:
        # The daemon opens both as it starts: its images are where it is started, `work` is inherited.
        arguments = [*self._line.without(*_OURS), "-D", ".", "-W", work.path]
        if self._line.has("log-file"):
            place = os.readlink(f"/proc/self/fd/{self._directory}")
            arguments += ["-o", os.path.join(place, self._line.values["log-file"])]
        return subprocess.Popen(
            ["criu", *arguments],
            executable=os.path.abspath(self._real),
            cwd=self._work.server.path,
            pass_fds=(work.fd,),
            stdin=subprocess.DEVNULL,
            env=environment(criu_fault=self._fault),
        )

    def _relay(self, link: lazy_link.Listener, private: PrivateDir) -> None:
        """Hand on what `criu restore` tells the daemon, and keep a hold on the tasks."""
        try:
            with link.accept() as restore, lazy_link.connect(private.fd) as daemon:
                while message := lazy_link.receive(restore):
                    if message.descriptors:
                        self._tree.add(message.sender.fd)
                        self._guard.add(message.sender)
                    lazy_link.forward(daemon, message)
        except OSError as error:
            self._end(f"the connection to the tasks: {error.strerror}")

    def _bad_page(self, error: BaseException) -> None:
        """Before the daemon is told: it would close what the tasks wait for."""
        reason = error.message if isinstance(error, SealpointError) else type(error).__name__
        self._end(reason)

    def _end(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            background.say(f"Error (sealpoint): {reason}: the tree is ended")
        self._tree.kill()


def _await_socket(private: PrivateDir, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not os.path.exists(f"{private.path}/{lazy_link.NAME}"):
        if daemon.poll() is not None:
            raise SystemEnvironmentError(
                "CRIU's lazy-pages daemon does not start; its log says why"
            )
        if time.monotonic() > deadline:
            raise SystemEnvironmentError("CRIU's lazy-pages daemon does not listen")
        time.sleep(0.005)

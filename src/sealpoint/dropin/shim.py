"""Called as `criu`: become the real CRIU, and for `criu swrk FD` leave a helper between it and the engine.

The real CRIU keeps this process's pid, so that everything that the engine knows of its child stays true: exit status,
standard streams, inherited descriptors, parent of the restored task.  The helper is nobody's child but a guard's.  It
owns the socket pair whose other end CRIU gets, because CRIU looks up descriptor numbers of requests in the process that
made the pair.
Out of scope: what the helper does (`proxy` for RPC, `command_line` for `criu dump` and `criu restore` as typed).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from sealpoint.dropin.inherited import child_environment, release_descriptors
from sealpoint.names import printable

if TYPE_CHECKING:
    from sealpoint.dropin.arguments import CommandLine
    from sealpoint.dropin.proxy import Start
    from sealpoint.dropin.requests import Requests


def run() -> NoReturn:
    """Never returns."""
    usual_children()
    fill_standard_descriptors()
    words = sys.argv[1:]
    real = ""
    line = None
    if words[:1] != ["swrk"]:
        line = _parse(words)
        if line.command == "page-server":
            from sealpoint.dropin import page_server

            page_server.run(line)
    real = real_criu()
    if line is None or line.command == "swrk":
        become(real, serve(words, line, real))
    if line.command == "lazy-pages":
        from sealpoint.dropin import lazy_pages

        lazy_pages.run(line, real)
    become(real, _arguments(line, words, real))


def usual_children() -> None:
    """Whoever starts us may ignore SIGCHLD: then the kernel keeps no exit status, and nobody learns how CRIU ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def fill_standard_descriptors() -> None:
    """Put /dev/null where the caller closed 0, 1 or 2: else our sockets get these numbers and are overwritten later."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            lowest = os.open(os.devnull, os.O_RDWR)  # fd: the kernel gives the lowest free number
            os.set_inheritable(lowest, True)
    # Python made none of these for a descriptor that was closed when it started.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for the whole life of the process
    sys.stderr = sys.stderr or open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115 - and this


def become(real: str, arguments: list[str]) -> NoReturn:
    """Be the real CRIU, in this process."""
    try:
        os.execve(real, ["criu", *arguments], child_environment())  # noqa: S606 - that is the point
    except OSError as error:
        fail(f"cannot run {real}: {error.strerror}")


def _parse(arguments: list[str]) -> CommandLine:
    from sealpoint.dropin import arguments as parser

    try:
        return parser.parse(arguments)
    except parser.RefusedError as error:
        fail(str(error))


def serve(
    words: list[str], line: CommandLine | None, real: str, start: Start | None = None
) -> list[str]:
    """Leave a helper for `criu [OPTIONS] swrk FD`; returns the arguments for the real CRIU.

    line: of `words`, None where they begin with the command.  start: what makes a session for a dump or restore, by
    default `session.start`.  What is wrong with configuration files, the helper says in answers to requests.
    """
    from sealpoint.dropin import criu_config
    from sealpoint.dropin.requests import Requests, memory_file

    number = line.operand if line is not None else words[1] if len(words) == 2 else ""
    if not (number.isascii() and number.isdigit()):
        fail("usage: criu swrk FD")
    settings, problem = [], ""
    try:
        settings = line.settings if line is not None else criu_config.defaults(os.environ)
    except criu_config.RefusedError as error:
        problem = str(error)
    memory = memory_file()
    _interpose(int(number), memory, Requests(memory, settings, problem, real), start)
    arguments = [setting.word for setting in criu_config.remaining(settings)]
    return ["--no-default-config", *arguments, "swrk", number]


def _arguments(line: CommandLine, given: list[str], real: str) -> list[str]:
    """The arguments for the real CRIU; for a dump or restore a helper serves them then."""
    if line.command not in ("dump", "pre-dump", "restore", "dedup"):
        return given
    from sealpoint.dropin.command_line import run as run_line
    from sealpoint.errors import SealpointError

    try:
        return run_line(line, ["--no-default-config", *line.words], real)
    except SealpointError as error:
        fail(error.message + (f" ({error.hint})" if error.hint else ""))


def fail(message: str) -> NoReturn:
    """End as CRIU does when it cannot work."""
    sys.stderr.write(f"criu (sealpoint): {printable(message)}\n")
    sys.stderr.flush()
    os._exit(1)


def real_criu() -> str:
    """Path of the real CRIU: `criu` in the system's configuration, else that of the bundle that this runs from.

    Else the next one in PATH after this executable.  A configuration with mistakes is no obstacle here: a dump or
    restore says what is wrong with it, where the engine hears it, and everything else needs none.  For root, either has
    to be root's alone.
    """
    from sealpoint import config
    from sealpoint.errors import SealpointError

    reason = f"install it, or set criu in {config.SYSTEM_PATH}"
    try:
        if configured := config.load_system().criu:
            return _own(configured)
    except SealpointError as error:
        reason = error.message
    bundle = os.path.realpath(
        sys.prefix
    )  # the very version that runs, whatever is installed meanwhile
    beside = os.path.join(bundle, "bin", "criu")
    if os.path.exists(os.path.join(bundle, ".sealpoint-bundle")) and os.access(beside, os.X_OK):
        return _own(beside)
    own = os.path.realpath(sys.argv[0])
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/usr/bin:/sbin"
    for directory in path.split(":"):
        candidate = os.path.join(directory or ".", "criu")
        usable = os.path.isfile(candidate) and os.access(candidate, os.X_OK)
        if usable and os.path.realpath(candidate) != own:
            return _own(candidate)
    fail(f"there is no CRIU beside sealpoint's drop-in: {reason}")


def _own(path: str) -> str:
    """A path that nobody but root can make lead elsewhere, where root is to run it; ends the process if it is not."""
    from sealpoint import ownership
    from sealpoint.errors import PolicyError

    try:
        ownership.require(path, "CRIU")
    except PolicyError as error:
        fail(f"{error.message} ({error.hint})")
    except (OSError, ValueError):
        pass  # running it says more
    return path


def _interpose(number: int, memory: int, requests: Requests, start: Start | None) -> None:
    """Put the helper between the engine's socket, descriptor `number`, and this process."""
    ours, helpers = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    criu = os.getpid()
    child = os.fork()
    if child == 0:
        # Twice, so that what follows is nobody's child: neither the engine nor CRIU may wait for it.
        if os.fork() == 0:
            ours.close()
            _guard(number, helpers, criu, memory, requests, start)
        os._exit(0)
    helpers.close()
    os.waitpid(child, 0)
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        fail("its helper did not start")
    os.dup2(fds[0], number, inheritable=True)
    os.close(fds[0])


def _guard(
    number: int,
    link: socket.socket,
    criu: int,
    memory: int,
    requests: Requests,
    start: Start | None,
) -> NoReturn:
    """Be the helper's parent, and reap it only when CRIU has ended.

    Whatever ends the helper, its pid stays taken as long as CRIU may look up /proc/PID/fd (ADR 0041).  CRIU itself
    cannot be the parent: before it ends it waits for every child that it has.
    """
    try:
        ended = os.pidfd_open(criu)  # now, while that process waits for the helper
        orders, helpers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        helper = os.fork()
        if helper == 0:
            orders.close()
            _helper(number, link, ended, helpers, memory, requests, start)
        os.setsid()
        release_descriptors(sorted((ended, orders.fileno())))
        _spare_from_oom()
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(orders, select.POLLIN)
        while not any(fd == ended for fd, _ in poll.poll()):
            if not obey(orders):
                poll.unregister(orders)
        os.waitpid(helper, 0)
    finally:
        os._exit(0)


def _spare_from_oom() -> None:
    """It is small, and the helper's death is when it is needed.  Root may; others go without."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
    except OSError:
        pass


def obey(orders: socket.socket) -> bool:
    """Enter the cgroups that the helper names, and answer; whether there is a helper."""
    try:
        data = orders.recv(1 << 16)
        for path in filter(None, data.split(b"\0")):
            try:
                with open(path, "w") as file:
                    file.write("0")  # the writer itself: no number could become another's
            except OSError:
                continue
        orders.send(b"1")
    except OSError:
        return False
    return bool(data)


def _helper(
    number: int,
    link: socket.socket,
    ended: int,
    guard: socket.socket,
    memory: int,
    requests: Requests,
    start: Start | None,
) -> NoReturn:
    """ended: pidfd of what becomes CRIU; guard: takes orders."""
    code = 1
    try:
        os.setsid()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(link, [b"1"], [far.fileno()])
        far.close()
        link.close()
        keep = sorted({number, near.fileno(), ended, memory, guard.fileno()})
        release_descriptors(keep)
        from sealpoint.dropin.proxy import Proxy

        Proxy(socket.socket(fileno=number), near, ended, start, requests, guard).run()
        code = 0
    except BaseException as error:  # noqa: BLE001 - there is nobody to raise to
        _log(f"helper: {type(error).__name__}")
    finally:
        os._exit(code)


def _log(message: str) -> None:
    import syslog

    syslog.openlog("sealpoint", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, message)

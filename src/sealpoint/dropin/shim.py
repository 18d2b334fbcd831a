"""Called as `criu`: become the real CRIU, and for `criu swrk FD` leave a helper between it and the engine.

The real CRIU keeps this process's pid, so that everything that the engine knows of its child stays true: exit status,
standard streams, inherited descriptors, parent of the restored task.  The helper is an orphan that owns the socket pair
whose other end CRIU gets, because CRIU looks up descriptor numbers of requests in the process that made the pair.
Out of scope: what the helper does (`proxy` for RPC, `command_line` for `criu dump` and `criu restore` as typed).
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sealpoint.dropin.arguments import CommandLine
    from sealpoint.dropin.proxy import Start


def run() -> NoReturn:
    """Never returns."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["swrk"]:  # CRIU takes it in this place only
        if len(arguments) < 2 or not arguments[1].isdigit():
            fail("usage: criu swrk FD")
        real = real_criu()
        interpose(int(arguments[1]))
    else:
        line = _parse(arguments)
        if line.command == "page-server":
            from sealpoint.dropin import page_server

            page_server.run(line)
        real = real_criu()
        if line.command == "lazy-pages":
            from sealpoint.dropin import lazy_pages

            lazy_pages.run(line, arguments, real)
        arguments = _arguments(line, arguments, real)
    os.environ.pop(
        "CRIU_CONFIG_FILE", None
    )  # its options would override the ones that lead into the seal
    try:
        os.execv(real, ["criu", *arguments])  # noqa: S606 - in this pid, that is the point
    except OSError as error:
        fail(f"cannot run {real}: {error.strerror}")


def _parse(arguments: list[str]) -> CommandLine:
    from sealpoint.dropin import arguments as parser

    try:
        return parser.parse(arguments)
    except parser.RefusedError as error:
        fail(str(error))


def _arguments(line: CommandLine, given: list[str], real: str) -> list[str]:
    """The arguments for the real CRIU; for a dump or restore a helper serves them then."""
    if line.command not in ("dump", "pre-dump", "restore", "dedup"):
        return given
    from sealpoint.dropin.command_line import run as run_line
    from sealpoint.errors import SealpointError

    try:
        return run_line(line, given, real)
    except SealpointError as error:
        fail(error.message + (f" ({error.hint})" if error.hint else ""))


def fail(message: str) -> NoReturn:
    """End as CRIU does when it cannot work."""
    sys.stderr.write(f"criu (sealpoint): {message}\n")
    sys.stderr.flush()
    os._exit(1)


def real_criu() -> str:
    """Path of the real CRIU: `criu` in the system's configuration, else the next one in PATH after this executable.

    A configuration with mistakes is no obstacle here: a dump or restore says what is wrong with it, where the engine
    hears it, and everything else needs none.
    """
    from sealpoint import config
    from sealpoint.errors import SealpointError

    reason = f"install it, or set criu in {config.SYSTEM_PATH}"
    try:
        if configured := config.load_system().criu:
            return configured
    except SealpointError as error:
        reason = error.message
    own = os.path.realpath(sys.argv[0])
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/usr/bin:/sbin"
    for directory in path.split(":"):
        candidate = os.path.join(directory or ".", "criu")
        usable = os.path.isfile(candidate) and os.access(candidate, os.X_OK)
        if usable and os.path.realpath(candidate) != own:
            return candidate
    fail(f"there is no CRIU beside sealpoint's drop-in: {reason}")


def interpose(number: int, start: Start | None = None) -> None:
    """Put the helper between the engine's socket, descriptor `number`, and this process.

    start: what makes a session for a dump or restore, by default `session.start`.
    """
    ours, helpers = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    engine, criu = os.getppid(), os.getpid()
    child = os.fork()
    if child == 0:
        # Twice, so that the helper is nobody's child: neither the engine nor CRIU shall wait for it.
        if os.fork() == 0:
            ours.close()
            _helper(number, helpers, engine, criu, start)
        os._exit(0)
    helpers.close()
    os.waitpid(child, 0)
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        fail("its helper did not start")
    os.dup2(fds[0], number, inheritable=True)
    os.close(fds[0])


def _helper(
    number: int, link: socket.socket, engine: int, criu: int, start: Start | None
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        ended = os.pidfd_open(criu)  # now, while that process waits for us
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(link, [b"1"], [far.fileno()])
        far.close()
        link.close()
        keep = sorted({number, near.fileno(), ended})
        release_descriptors(keep)
        from sealpoint.dropin.proxy import Proxy

        Proxy(socket.socket(fileno=number), near, ended, engine, start).run()
        code = 0
    except BaseException as error:  # noqa: BLE001 - there is nobody to raise to
        _log(f"helper: {type(error).__name__}")
    finally:
        os._exit(code)


def release_descriptors(keep: list[int]) -> None:
    """Let go of the engine's pipes and of everything else that was inherited."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in keep:
            os.dup2(null, fd)
    low = 3
    for fd in keep:
        os.closerange(low, fd)
        low = max(low, fd + 1)
    os.closerange(low, os.sysconf("SC_OPEN_MAX") if low < 1 << 16 else low)


def _log(message: str) -> None:
    import syslog

    syslog.openlog("sealpoint", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, message)

"""The helper is killed while CRIU may still look up descriptors in it: nobody else can have its pid by then.

CRIU opens the directories of a request as /proc/PID/fd/N, PID being the helper's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc
from tests.engines.rpc_calls import client, dump, places
from tests.real import harness

__all__ = ["places"]  # a fixture

StartWorkload = Callable[..., harness.Workload]
TRIES = 20


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def is_criu(pid: int) -> bool:
    """Whether the drop-in has become the real CRIU, which then waits for its first request."""
    name = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    return not name.startswith(("python", "dash", "bash", "sh", "busybox"))  # or its wrapper


def helper_of(connection: rpc.Client) -> int:
    """The process that made the socket pair of which CRIU has one end: the kernel notes it."""
    with socket_of_criu(connection) as end:
        peer = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(peer[:4], sys.byteorder)


def request_has_arrived(connection: rpc.Client) -> bool:
    """Whether something waits for CRIU in its socket."""
    with socket_of_criu(connection) as end:
        return fcntl.ioctl(end, termios.FIONREAD, bytes(4)) != bytes(4)


def socket_of_criu(connection: rpc.Client) -> socket.socket:
    """A copy of the one that CRIU has."""
    pidfd = os.pidfd_open(connection.process.pid)
    try:
        for number in sorted(map(int, os.listdir(f"/proc/{connection.process.pid}/fd"))):
            if not os.readlink(f"/proc/{connection.process.pid}/fd/{number}").startswith("socket:"):
                continue
            libc = ctypes.CDLL(None, use_errno=True)
            copy = libc.syscall(438, pidfd, number, 0)  # pidfd_getfd
            assert copy >= 0, os.strerror(ctypes.get_errno())
            return socket.socket(fileno=copy)
    finally:
        os.close(pidfd)
    raise AssertionError("CRIU has no socket")


def take(pid: int) -> bool:
    """Whether a new process gets that pid.  In a pid namespace of our own nobody else forks meanwhile."""
    for _ in range(TRIES):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            pytest.skip("pids cannot be chosen here")
        with subprocess.Popen([sys.executable, "-S", "-c", "pass"]) as process:
            if process.pid == pid:
                return True
    return False


@pytest.mark.parametrize("kind", ["dump", "restore"])
@pytest.mark.parametrize("sent", [False, True], ids=["before the request", "after it was sent on"])
@pytest.mark.parametrize("ignored", [False, True], ids=["", "SIGCHLD ignored"])
def test_its_pid_stays_taken_until_criu_has_ended(
    dropin: dropin_tools.DropIn,
    places: dict[str, int],
    images: Path,
    workload: StartWorkload,
    kind: str,
    sent: bool,
    ignored: bool,
) -> None:
    running = workload("secret")
    if kind == "restore":
        assert dump(dropin, running, leave_running=True, **places).success
    before = sorted(os.listdir(images))
    options = {"pid": running.pid} if kind == "dump" else {}
    number = rpc.DUMP if kind == "dump" else rpc.RESTORE
    with contextlib.ExitStack() as stack:
        usual = signal.signal(signal.SIGCHLD, signal.SIG_IGN if ignored else signal.SIG_DFL)
        try:
            connection = stack.enter_context(client(dropin))
        finally:
            signal.signal(signal.SIGCHLD, usual)
        criu = connection.process.pid
        until(lambda: is_criu(criu), "the drop-in did not become CRIU")
        helper = helper_of(connection)
        os.kill(criu, signal.SIGSTOP)
        until(lambda: harness.process_state(criu) == "T", "CRIU does not stop")
        if sent:
            connection.send(rpc.request(number, **options, **places))
            until(lambda: request_has_arrived(connection), "the request is not sent on")
        os.kill(helper, signal.SIGKILL)
        until(lambda: harness.process_state(helper) in ("Z", None), "the helper does not die")
        assert not take(helper), "a stranger has the pid in which CRIU looks up its directories"
        with pytest.raises(OSError):
            os.open(f"/proc/{helper}/fd/3", os.O_RDONLY)
        os.kill(criu, signal.SIGCONT)
        until(lambda: connection.process.poll() is not None, "CRIU does not end")
        assert connection.process.returncode != 0 or not sent
    assert sorted(os.listdir(images)) == before
    running.assert_intact()

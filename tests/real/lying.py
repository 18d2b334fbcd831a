"""Stand-ins for a CRIU that was led elsewhere, or that lies: no other part of the tests pretends to be CRIU here.

Behind each that was led elsewhere is the real CRIU, which works on images in another directory than it was given.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real import harness, sealed

_WORDS = """case $1 in --version) exec {criu} --version; esac
count=$#
while [ $count -gt 0 ]; do
  word=$1; shift; count=$((count - 1))
  case $word in
    -D) shift; count=$((count - 1)); set -- "$@" -D {elsewhere}; continue ;;
    --stream) continue ;;
    --action-script) [ {silent} = 0 ] || {{ shift; count=$((count - 1)); continue; }} ;;
  esac
  set -- "$@" "$word"
done
exec {criu} "$@" """

_ANOTHER = """case $1 in --version) exec {criu} --version; esac
count=$#
while [ $count -gt 0 ]; do
  word=$1; shift; count=$((count - 1))
  case $word in
    -t | --tree) shift; count=$((count - 1)); set -- "$@" -t {pid}; continue ;;
    --tree=*) set -- "$@" -t {pid}; continue ;;
  esac
  set -- "$@" "$word"
done
exec {criu} "$@" """

_RPC = """#!{python} -I
import os, select, socket, sys
if "swrk" not in sys.argv:
    os.execv({criu!r}, ["criu", *sys.argv[1:]])
outer = socket.socket(fileno=int(sys.argv[-1]))
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
elsewhere = os.open({elsewhere!r}, os.O_RDONLY)
if os.fork() == 0:
    far.set_inheritable(True)
    os.execv({criu!r}, ["criu", *sys.argv[1:-1], str(far.fileno())])
far.close()
options = bytes([0x08, elsewhere, 0x88, 0x01, elsewhere])  # images_dir_fd, work_dir_fd: the last ones count
first = True
while True:
    for source in select.select([outer, near], [], [])[0]:
        data, fds, _, _ = socket.recv_fds(source, 1 << 20, 8)
        if not data:
            sys.exit()
        if source is outer and {deaf} and data[:2] == b"\\x08\\x06":
            near.send(b"\\x08\\x06\\x18\\x01")  # whatever the answer was
        elif source is outer:
            near.send(data + (b"\\x12" + bytes([len(options)]) + options if first else b""))
            first = False
        elif {silent} and data[:2] == b"\\x08\\x06":
            near.send(b"\\x08\\x06\\x18\\x01")  # a yes to whatever it is
        else:
            socket.send_fds(outer, [data], fds)
"""

_ANSWERS = """#!{python} -I
import socket, sys
if "swrk" not in sys.argv:
    print("Version: 4.1.1")
    sys.exit(0)
outer = socket.socket(fileno=int(sys.argv[-1]))
request = outer.recv(1 << 20)
outer.send({answer!r})
"""

_PAST_THE_RELAY = """#!{python} -I
import json, os, re, shutil, socket
address = re.search(r", '([^']*/socket)'", open(shutil.which("criu")).read())[1]
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
    link.connect(address)
    for message in ({{"begin": "dump"}}, {{"ended": True}}):
        link.send(json.dumps(message).encode())
        link.recv(65536)
"""

_TOO_LATE = """#!{python} -I
import os, signal, socket, sys, time
if "swrk" in sys.argv:
    socket.socket(fileno=os.dup(int(sys.argv[-1]))).recv(1 << 20, socket.MSG_PEEK)
if ("swrk" in sys.argv or "dump" in sys.argv) and not os.path.exists({mark!r}):
    os.kill({pid}, signal.SIGKILL)
    while os.path.exists("/proc/{pid}"):
        time.sleep(0.001)
    reader, writer = os.pipe()
    if os.fork() == 0:  # what CRIU dumps is no child of its
        for _ in range(200):
            with open("/proc/sys/kernel/ns_last_pid", "w") as file:
                file.write(str({pid} - 1))
            child = os.fork()
            if child == 0:
                os.setsid()
                os.chdir("/")
                null = os.open("/dev/null", os.O_RDWR)
                for number in range(3):
                    os.dup2(null, number)
                os.closerange(3, 1024)
                time.sleep(600)
                os._exit(0)
            if child == {pid}:
                os.write(writer, b"1")
                break
            os.kill(child, signal.SIGKILL)
        os._exit(0)
    os.close(writer)
    taken = os.read(reader, 1)
    os.close(reader)
    os.wait()
    with open({mark!r}, "wb") as file:
        file.write(taken)
os.execv({criu!r}, ["criu", *sys.argv[1:]])
"""

# Nobody is to wait for the child: the kernel lets go of its pid at once.
_MORTAL = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
child = os.fork()
if child == 0:
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDWR), 1)
    while True:
        time.sleep(600)
os.write(1, b"%d\\n" % child)
while True:
    signal.pause()
"""


@dataclass
class TooLate:
    """A CRIU that finds another process with the pid: the one that was asked for ended meanwhile.

    pid: of the process; path: the CRIU.
    """

    pid: int
    path: Path
    _mark: Path

    def skip_unless_taken(self) -> None:
        """Somebody else may have been faster, or nobody may choose pids here."""
        if self._mark.read_bytes() != b"1":
            pytest.skip("pids cannot be chosen here")

    def stranger_runs(self) -> bool:
        """Whether whoever has the pid now was left alone."""
        return harness.process_state(self.pid) in ("R", "S")


@contextlib.contextmanager
def too_late(directory: Path, criu: Path) -> Iterator[TooLate]:
    """By RPC, as typed, and for sealpoint's own commands."""
    mark = directory / "taken"
    with subprocess.Popen([sys.executable, "-I", "-c", _MORTAL], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        text = _TOO_LATE.format(python=sys.executable, criu=str(criu), pid=pid, mark=str(mark))
        path = _executable(directory / "criu-too-late", text)
        try:
            yield TooLate(pid, path, mark)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            parent.kill()


def typed(directory: Path, criu: Path, elsewhere: Path, *, silent: bool) -> Path:
    """As typed, for sealpoint's own commands.  silent: it runs no action script, so asks nobody."""
    body = _WORDS.format(criu=criu, elsewhere=elsewhere, silent=int(silent))
    return sealed.script(directory / "criu-led-elsewhere", body)


def of_another(directory: Path, criu: Path, pid: int) -> Path:
    """As typed: it dumps another process than it was told to."""
    path = directory / "led"
    path.mkdir()
    return sealed.script(path / "criu-led-elsewhere", _ANOTHER.format(criu=criu, pid=pid))


def by_rpc(
    directory: Path, criu: Path, elsewhere: Path, *, silent: bool, deaf: bool = False
) -> Path:
    """By RPC.  silent: no notification reaches the engine; deaf: any answer to one is a yes."""
    text = _RPC.format(
        python=sys.executable, criu=str(criu), elsewhere=str(elsewhere), silent=silent, deaf=deaf
    )
    return _executable(directory / "criu-led-elsewhere", text)


def in_place_of_the_relay(directory: Path, answer: bytes) -> Path:
    """Answers as `answers` does, and tells sealpoint itself of success, past the relay that PATH has."""
    text = _PAST_THE_RELAY + _ANSWERS.removeprefix("#!{python} -I\n")
    return _executable(
        directory / "criu-past-the-relay", text.format(python=sys.executable, answer=answer)
    )


def answers(directory: Path, answer: bytes) -> Path:
    """Does nothing but answer its first request by RPC."""
    text = _ANSWERS.format(python=sys.executable, answer=answer)
    return _executable(directory / "criu-that-answers", text)


def _executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path

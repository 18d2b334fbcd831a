"""Stand-ins for a CRIU that was led elsewhere, or that lies: no other part of the tests pretends to be CRIU here.

Behind each that was led elsewhere is the real CRIU, which works on images in another directory than it was given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sealed

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

"""Taking away the network lock that a killed CRIU leaves behind in a container's network namespace.

While CRIU dumps a tree that has a network namespace of its own, no packet passes there but CRIU's (net.c, netfilter.c):
with iptables by a chain CRIU of the table filter, with nftables by a table CRIU-… of the family inet.  A CRIU that ends
by itself undoes that.  Of one that was killed it would stay, and the container would run on without its network.
Out of scope: rules for single connections in a namespace that the tree shares with the machine, where they may belong
to another dump.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from sealpoint import ownership
from sealpoint.environment import environment
from sealpoint.errors import PolicyError
from sealpoint.names import text
from sealpoint.process import Held

_CLONE_NEWNET: Final = 0x40000000
_NETLINK_NETFILTER: Final = 12
_NFTABLES: Final = 10  # linux/netfilter/nfnetlink.h: NFNL_SUBSYS_NFTABLES
_BEGIN, _END, _GET_TABLES, _DELETE_TABLE = 0x10, 0x11, _NFTABLES << 8 | 1, _NFTABLES << 8 | 2
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_INET: Final = 1  # NFPROTO_INET
_TABLE_NAME: Final = 1  # NFTA_TABLE_NAME
_HEADER: Final = struct.Struct("=IHHII")
_FAMILY: Final = struct.Struct("=BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR_NUMBER: Final = struct.Struct("=i")

# Each set is undone as a whole where a part of it is not there, so nothing is made where there is no lock.  CRIU takes
# the lock away in several steps and may have been killed between any two.
_STEPS: Final = (
    b"*filter\n-D INPUT -j CRIU\nCOMMIT\n",
    b"*filter\n-D OUTPUT -j CRIU\nCOMMIT\n",
    b"*filter\n-F CRIU\n-X CRIU\nCOMMIT\n",
)
_SECONDS: Final = 10.0  # for iptables, which waits for others that change the same table


class NetworkLock:
    """That of the tree with this root, from before its dump on."""

    def __init__(self, root: Held) -> None:
        self._namespace = -1
        self._removed = False
        try:
            fd = root.namespace("net")
        except OSError:
            return  # no such process: CRIU will say so
        own = os.stat("/proc/self/ns/net")
        if os.fstat(fd).st_ino == own.st_ino:
            os.close(fd)
        else:
            self._namespace = fd

    def remove(self) -> bool:
        """After CRIU's end; whether one was taken away.  What it cannot take away stays as CRIU has left it."""
        if self._namespace < 0:
            return False
        worker = threading.Thread(target=self._work, name="network lock")  # a thread has its own
        worker.start()
        worker.join()
        return self._removed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """The dump is over."""
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1

    def _work(self) -> None:
        if ctypes.CDLL(None, use_errno=True).setns(self._namespace, _CLONE_NEWNET) != 0:
            return
        try:
            self._removed = _delete_tables()
        except OSError:
            pass  # this kernel has no nftables
        for program in ("iptables-restore", "ip6tables-restore"):
            for rules in _STEPS:
                if _feed(program, rules):
                    self._removed = True


def _feed(program: str, rules: bytes) -> bool:
    try:
        done = subprocess.run(
            [ownership.program(program), "-w", "--noflush"],
            check=False,
            input=rules,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError, PolicyError):
        return False
    return done.returncode == 0


def _delete_tables() -> bool:
    """Delete the tables of the family inet that are CRIU's, in the calling thread's network namespace.

    Whether one was deleted.  Raises OSError.
    """
    found = False
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_SECONDS)
        netlink.bind((0, 0))
        netlink.send(_message(_GET_TABLES, _REQUEST | _DUMP, _INET))
        for name in [n for n in _tables(netlink) if n == "CRIU" or n.startswith("CRIU-")]:
            raw = name.encode() + b"\0"
            attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(raw), _TABLE_NAME) + raw
            attribute += bytes(-len(attribute) % 4)
            netlink.send(
                _message(_BEGIN, _REQUEST, 0, subsystem=_NFTABLES)
                + _message(_DELETE_TABLE, _REQUEST | _ACK, _INET, attribute)
                + _message(_END, _REQUEST, 0, subsystem=_NFTABLES)
            )
            found |= _acknowledged(netlink.recv(65536))
    return found


def _acknowledged(answer: bytes) -> bool:
    """Whether the first message is the kernel's word that it was done (linux/netlink.h: nlmsgerr with error 0)."""
    if len(answer) < _HEADER.size + _ERROR_NUMBER.size:
        return False
    kind: int = _HEADER.unpack_from(answer)[1]
    number: int = _ERROR_NUMBER.unpack_from(answer, _HEADER.size)[0]
    return kind == _ERROR and number == 0


def _message(
    kind: int, flags: int, family: int, attributes: bytes = b"", *, subsystem: int = 0
) -> bytes:
    body = _FAMILY.pack(family, 0, socket.htons(subsystem)) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def _tables(netlink: socket.socket) -> Iterator[str]:
    """Names of the tables in the answer.  Raises OSError."""
    while True:
        data, at = netlink.recv(1 << 20), 0
        while at + _HEADER.size <= len(data):
            size, kind, *_ = _HEADER.unpack_from(data, at)
            if kind in (_ERROR, _DONE) or size < _HEADER.size:
                return
            yield from _names(data[at + _HEADER.size + _FAMILY.size : at + size])
            at += size + -size % 4


def _names(attributes: bytes) -> Iterator[str]:
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        size, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if size < _ATTRIBUTE.size:
            return
        if kind == _TABLE_NAME:
            value = attributes[at + _ATTRIBUTE.size : at + size]
            yield text(value.rstrip(b"\0"))
        at += size + -size % 4

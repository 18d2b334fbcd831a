"""CRIU's network lock is taken away whole, whatever CRIU had done of it, or undone, when it was killed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from sealpoint.criu.network_lock import NetworkLock
from sealpoint.process import Held
from tests.real import sealed

TOOLS = ("iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save", "nft")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

# As CRIU's netfilter.c writes them.
LOCKED = """\
*filter
:CRIU - [0:0]
-I INPUT -j CRIU
-I OUTPUT -j CRIU
-A CRIU -m mark --mark 0xC114 -j ACCEPT
-A CRIU -j DROP
COMMIT
"""
NO_JUMPS = "*filter\n:CRIU - [0:0]\n-D INPUT -j CRIU\n-D OUTPUT -j CRIU\nCOMMIT\n"
ONE_JUMP = "*filter\n-D {} -j CRIU\nCOMMIT\n"
IPV4, IPV6 = "iptables-restore", "ip6tables-restore"
TABLE = """\
table inet CRIU-{number} {{
    chain output {{
        type filter hook output priority -100; policy drop;
        meta mark 0xc114 accept
    }}
}}
"""

State = list[tuple[str, str]]
"""(program, its input), one after the other."""
STATES: dict[str, State] = {
    "locked": [(IPV4, LOCKED), (IPV6, LOCKED)],
    "locked for IPv4 only": [(IPV4, LOCKED)],
    "jumps of IPv4 gone": [(IPV4, LOCKED), (IPV6, LOCKED), (IPV4, NO_JUMPS)],
    "jumps of both gone": [
        (IPV4, LOCKED),
        (IPV6, LOCKED),
        (IPV4, NO_JUMPS),
        (IPV6, NO_JUMPS),
    ],
    "jump of INPUT gone": [(IPV4, LOCKED), (IPV4, ONE_JUMP.format("INPUT"))],
    "jump of OUTPUT gone": [(IPV6, LOCKED), (IPV6, ONE_JUMP.format("OUTPUT"))],
    "table of nftables": [("nft", TABLE.format(number=7))],
    "two tables, and chains": [
        ("nft", TABLE.format(number=1)),
        ("nft", TABLE.format(number=22)),
        (IPV4, LOCKED),
    ],
}


@pytest.fixture
def namespace() -> Iterator[int]:
    """Pid of a process with a network namespace that is its alone."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    try:
        sealed.wait_until(
            lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("sleep"),
            "it has its namespace",
        )
        yield process.pid
    finally:
        process.kill()
        process.wait()


def run(pid: int, *command: str, given: str | None = None) -> str:
    words = ["nsenter", "--target", str(pid), "--net", *command]
    return subprocess.run(words, check=True, input=given, stdout=subprocess.PIPE, text=True).stdout


def make(pid: int, state: State) -> None:
    for program, given in state:
        options = ("-f", "-") if program == "nft" else ("-w", "--noflush")
        run(pid, program, *options, given=given)


def rules(pid: int) -> str:
    """All rules of its namespace."""
    return "".join(
        run(pid, *command)
        for command in (["iptables-save"], ["ip6tables-save"], ["nft", "list", "ruleset"])
    )


def take_away(pid: int) -> bool:
    with Held(pid) as held, NetworkLock(held) as lock:
        return lock.remove()


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_whatever_is_there_of_the_lock_is_taken_away(namespace: int, state: State) -> None:
    make(namespace, state)
    assert "CRIU" in rules(namespace)
    assert take_away(namespace)
    assert "CRIU" not in rules(namespace)
    assert not take_away(namespace)


def test_where_there_is_no_lock_nothing_is_made(namespace: int) -> None:
    assert not take_away(namespace)
    assert run(namespace, "nft", "list", "ruleset") == ""


def test_rules_of_others_stay(namespace: int) -> None:
    make(
        namespace,
        [(IPV4, "*filter\n:CRIUS - [0:0]\n-A INPUT -j CRIUS\n-A OUTPUT -j CRIUS\nCOMMIT\n")],
    )
    make(namespace, [("nft", "table inet CRIUS-1 {}\ntable ip6 CRIU-1 {}\n")])
    before = run(namespace, "nft", "list", "ruleset")
    make(namespace, [(IPV4, LOCKED)])
    assert take_away(namespace)
    assert run(namespace, "nft", "list", "ruleset") == before


def test_a_lock_that_others_still_refer_to_is_not_called_taken_away(namespace: int) -> None:
    make(namespace, [(IPV4, "*filter\n:CRIU - [0:0]\n-A FORWARD -j CRIU\nCOMMIT\n")])
    assert not take_away(namespace)
    assert "-j CRIU" in run(namespace, "iptables-save")

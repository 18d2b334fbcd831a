"""Another machine, as far as one machine can be two: its own network, processes, mounts and host name, the same files.

The two are joined by a virtual cable (veth) whose rate the kernel limits in both directions (tc-tbf).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from bench import tools, tree
from bench.measure import BenchError
from bench.tools import SSH, Tools

_TOOLS = dict.fromkeys(("ip", "tc"), "iproute2")
_TOOLS |= dict.fromkeys(("unshare", "nsenter"), "util-linux")
SSH_PORT = 2222
_READY = "ready\n"


def why_not() -> str:
    """Why there can be no other machine on this one; empty if it is worth trying."""
    return tools.missing(_TOOLS)


class FarSide:
    """A context manager. directory: in memory, that of the run. rate: bits a second. address: of that machine."""

    def __init__(self, instruments: Tools, directory: Path, rate: int) -> None:
        self._tools = instruments
        self._directory = directory
        self._rate = rate
        self._cable = f"bench{secrets.token_hex(3)}"
        # RFC 3927, link-local: on this cable only. The last byte is 1 and 2 of four.
        network = f"169.254.{1 + secrets.randbelow(254)}.{4 * secrets.randbelow(64)}"
        start, _, last = network.rpartition(".")
        self._here, self.address = f"{start}.{int(last) + 1}", f"{start}.{int(last) + 2}"
        self._sshd: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        script = f"echo {_READY.strip()}; exec sleep 100000"
        # Its current directory is the run's: should this be killed, the next run finds it.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child",
             "--mount-proc", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self._directory, text=True,
        )  # fmt: skip
        try:
            assert self._holder.stdout is not None
            if self._holder.stdout.readline() != _READY:
                raise BenchError(f"no namespaces can be made here: {self._holder.communicate()[1]}")
            wait_until(lambda: len(tree.children(self._holder.pid)) == 1, "the other side starts")
            [self.init] = tree.children(self._holder.pid)
            self._plug()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()  # and with it everything over there, and the cable
        self._holder.communicate()
        if self._sshd is not None:
            self._sshd.communicate()

    def _plug(self) -> None:
        here, call = self._cable, self._tools.call
        peer = ["peer", "name", "far0", "netns", str(self.init)]
        call(["ip", "link", "add", here, "type", "veth", *peer])
        call(["ip", "address", "add", f"{self._here}/30", "dev", here])
        call(["ip", "link", "set", here, "up"])
        call(self.command("ip", "address", "add", f"{self.address}/30", "dev", "far0"))
        for device in ("far0", "lo"):
            call(self.command("ip", "link", "set", device, "up"))
        # Burst: what may pass at once, some milliseconds' worth; limit: what waits, before packets are dropped.
        burst, waiting = max(self._rate // 8 // 500, 128 * 1024), 4 << 20
        limit = [
            "root",
            "tbf",
            "rate",
            f"{self._rate}bit",
            "burst",
            str(burst),
            "limit",
            str(waiting),
        ]
        call(["tc", "qdisc", "add", "dev", here, *limit])
        call(self.command("tc", "qdisc", "add", "dev", "far0", *limit))

    def command(self, *words: str) -> list[str]:
        """argv of what is to run over there."""
        namespaces = ["--net", "--pid", "--mount", "--uts"]
        return ["nsenter", "--target", str(self.init), *namespaces, "--", *words]

    def bytes_on_wire(self) -> int:
        """So far, in both directions, with all headers."""
        # Not /sys/class/net, which may have been mounted in another network namespace. The fields are those of
        # proc_pid_net(5): received bytes first, sent bytes ninth.
        for line in Path("/proc/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == self._cable:
                return sum(int(numbers.split()[field]) for field in (0, 8))
        raise BenchError(f"the cable {self._cable} is gone")

    def pid_of(self, inside: int) -> int:
        """The pid here of a process that has the pid `inside` over there. Raises BenchError."""
        mine = os.readlink(f"/proc/{self.init}/ns/pid")
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == mine:
                    status = Path(f"/proc/{entry}/status").read_text()
                    numbers = status.partition("NSpid:")[2].partition("\n")[0].split()
                    if int(numbers[-1]) == inside:
                        return int(entry)
        raise BenchError(f"process {inside} does not run on the far side")

    def listens(self, port: int) -> bool:
        """Whether somebody over there waits for connections to a port (state 0A in /proc/net/tcp)."""
        lines = Path(f"/proc/{self.init}/net/tcp").read_text().splitlines()[1:]
        return any(
            int(f[1].rpartition(":")[2], 16) == port and f[3] == "0A" for f in map(str.split, lines)
        )

    # ssh

    def start_sshd(self) -> None:
        """An ssh daemon over there, which knows nothing of this machine's accounts but root, and none of its keys."""
        home = self._directory / "far-home"
        (home / ".ssh").mkdir(mode=0o700, parents=True)
        home.chmod(0o700)
        call = self._tools.call
        key, host = self._directory / "ssh.key", self._directory / "ssh-host.key"
        call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
        call(["dropbearkey", "-t", "ed25519", "-f", str(host)])
        shutil.copy(f"{key}.pub", home / ".ssh/authorized_keys")
        (home / ".ssh/authorized_keys").chmod(0o600)
        accounts = self._directory / "passwd"
        accounts.write_text(f"root:x:0:0:root:{home}:/bin/sh\n")
        call(self.command("mount", "--bind", str(accounts), "/etc/passwd"))
        daemon = str(tools.find("dropbear"))
        words = [daemon, "-F", "-E", "-s", "-j", "-k", "-r", str(host), "-P", f"{host}.pid"]
        self._sshd = subprocess.Popen(
            self.command(*words, "-p", f"{self.address}:{SSH_PORT}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self._directory / "sshd.log").open("wb"),
            env=self._tools.environment,
        )
        wait_until(lambda: self.listens(SSH_PORT), "the ssh daemon listens")

    def ssh_options(self) -> list[str]:
        """For ssh and scp, but for the port: nobody's configuration and keys."""
        known = self._directory / "known_hosts"
        options = ["-F", "/dev/null", "-i", str(self._directory / "ssh.key")]
        for option in ("StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={known}",
                       "IdentitiesOnly=yes", "BatchMode=yes", "LogLevel=ERROR"):  # fmt: skip
            options += ["-o", option]
        return options


def wait_until(condition: Callable[[], object], what: str, timeout: float = 30.0) -> None:
    """Raises BenchError."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"in vain waited until {what}")
        time.sleep(0.005)


def why_no_ssh() -> str:
    """Why nothing can be sent by scp; empty if it can."""
    return tools.missing(SSH)

"""Another machine, as far as a test can make one: its own network, processes and host name, the same files.

The two are joined by a virtual cable, which can be cut.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Self

import pytest

from tests.real import sealed

HERE_ADDRESS, FAR_ADDRESS = (
    "169.254.77.1",
    "169.254.77.2",
)  # RFC 3927: link-local, on this cable only


class FarSide:
    """A context manager. command(...): argv that runs there; address: its own, for those on this cable (RFC 3927)."""

    def __init__(self) -> None:
        for tool in ("ip", "unshare", "nsenter"):
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} (package iproute2 or util-linux) is missing")
        self.cable = f"seal{secrets.token_hex(3)}"
        net = f"169.254.{secrets.choice(range(1, 255))}.{4 * secrets.randbelow(64)}"
        start, _, last = net.rpartition(".")
        self._here, self.address = f"{start}.{int(last) + 1}", f"{start}.{int(last) + 2}"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc",
             "--propagation", "private", "sh", "-c", "echo ready; sleep 100000 & wait"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        if self._holder.stdout.readline() != b"ready\n":
            pytest.skip(f"no namespaces can be made here: {self._holder.stderr.read().decode()}")
        [self.init] = sealed.wait_until(lambda: sealed.children(self._holder.pid), "it has an init")

    def __enter__(self) -> Self:
        try:
            self._ip(
                "link",
                "add",
                self.cable,
                "type",
                "veth",
                "peer",
                "name",
                "far0",
                "netns",
                str(self.init),
            )
            self._ip("address", "add", f"{self._here}/30", "dev", self.cable)
            self.plug()
            for words in (("address", "add", f"{self.address}/30", "dev", "far0"), ("link", "set", "far0", "up"),
                          ("link", "set", "lo", "up")):  # fmt: skip
                subprocess.run(self.command("ip", *words), check=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()  # and with it everything over there, and the cable
        self._holder.communicate()

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def plug(self) -> None:
        self._ip("link", "set", self.cable, "up")

    def cut(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        self._ip("link", "set", self.cable, "down")

    def command(self, *words: str | Path) -> list[str]:
        return [
            "nsenter",
            "--target",
            str(self.init),
            "--net",
            "--pid",
            "--mount",
            "--uts",
            "--",
            *map(str, words),
        ]

    def pids(self) -> set[int]:
        """All processes over there, by their pids here."""
        found = set()
        mine = os.readlink(f"/proc/{self.init}/ns/pid")
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    if os.readlink(f"/proc/{entry}/ns/pid") == mine:
                        found.add(int(entry))
                except OSError:
                    continue
        return found

"""The drop-in `criu` for those who type its command line: first in PATH, with a configuration of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.real import harness, sealed


class DropIn:
    """The executable named criu that seals.  settings: of its configuration, besides the keys; each a TOML value."""

    def __init__(self, directory: Path, criu: Path, keys: sealed.Keys, **settings: str) -> None:
        self.home = directory / "config"
        self.keys = keys
        (self.home / "sealpoint").mkdir(parents=True)
        self.config = self.home / "sealpoint/config.toml"
        self.configure(**settings)
        sbin = directory / "sbin"
        sbin.mkdir()
        self.path = sbin / "criu"
        self.path.write_text(
            f"#!{sys.executable} -I\nfrom sealpoint import config\nfrom sealpoint.dropin import main\n\n"
            f"config.SYSTEM_PATH = {str(self.config)!r}\nmain()\n"
        )
        self.path.chmod(0o755)
        path = f"{sbin}:{criu.parent}:{os.environ['PATH']}"
        self.environment = {"PATH": path, "HOME": str(directory)}
        self.output = directory / "dropin-output"

    def configure(self, **settings: str) -> None:
        """Write the configuration anew; "" leaves a setting out."""
        values = {
            "recipients": f'["{self.keys.path("recipient.pub")}"]',
            "signer": f'"{self.keys.path("signer.key")}"',
            "identities": f'["{self.keys.path("identity.key")}"]',
            "trust": f'["{self.keys.path("signer.pub")}"]',
            "state": f'"{self.home.parent / "state"}"',
        } | settings
        self.config.write_text(
            "".join(f"{name} = {value}\n" for name, value in values.items() if value)
        )

    def run(
        self, *arguments: object, cwd: Path | None = None, fds: tuple[int, ...] = ()
    ) -> tuple[int, str]:
        """Exit status and all that was printed.  Into a file: a restored tree may hold the descriptor for ever."""
        with self.output.open("wb") as out:
            done = subprocess.run(
                [str(self.path), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=cwd,
                timeout=120,
                pass_fds=fds,
            )
        return done.returncode, self.output.read_text(errors="replace")

    def start(
        self, *arguments: object, log: Path, fds: tuple[int, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """In the background, in a process group of its own as a shell's job; what it prints goes to `log`.

        Where the tests run without a shell their own group is orphaned, and the kernel drops SIGTSTP to such.
        """
        with log.open("wb") as out:
            return subprocess.Popen(
                [str(self.path), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                pass_fds=fds,
                process_group=0,
            )

    def processes(self) -> list[int]:
        """Those that still are the interpreter with our script: helpers, and what is not CRIU (yet)."""
        return harness.processes_with(str(self.path), "cmdline")

    def settle(self) -> None:
        """No helper and no mount is left."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.processes():
            time.sleep(0.05)
        assert self.processes() == []
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()  # of others, too
        assert [
            m for m in mounts if "fuse.sealpoint" in m and str(self.home.parent.parent) in m
        ] == []

    def kill(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

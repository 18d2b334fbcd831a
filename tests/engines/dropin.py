"""The drop-in as an administrator sets it up, but all of it in one directory, and what is left of it afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import time
from pathlib import Path

from tests.real import harness, sealed

MARK = "SEALTEST_DROPIN"

# The configuration that services use is a file of the system's; here each test has its own.
_SCRIPT = """#!{python} -I
from sealpoint import config
config.SYSTEM_PATH = {config!r}
from sealpoint.dropin import main
main()
"""


class DropIn:
    """An executable `criu` that seals, first in PATH of `environment`, and its configuration."""

    def __init__(self, directory: Path, criu: Path, keys: sealed.Keys) -> None:
        self.real = criu
        self.keys = keys
        self.mark = secrets.token_hex(16)
        self.config = directory / "config.toml"
        self.temporary = directory / "tmp"
        self.temporary.mkdir(parents=True)
        self.configure()
        bin_directory = directory / "bin"
        bin_directory.mkdir()
        self.path = bin_directory / "criu"
        self.path.write_text(_SCRIPT.format(python=sys.executable, config=str(self.config)))
        self.path.chmod(0o755)
        real_bin = directory / "real"
        real_bin.mkdir()
        (real_bin / "criu").symlink_to(criu)
        self.environment = {
            "PATH": f"{bin_directory}:{real_bin}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(directory),
            "TMPDIR": str(self.temporary),
            MARK: self.mark,
        }
        self.stock_environment = self.environment | {
            "PATH": f"{criu.parent}:{os.environ.get('PATH', os.defpath)}"
        }

    def configure(self, **settings: object) -> None:
        """Write the configuration: what works, with `settings` changed; None leaves one out."""
        values: dict[str, object] = {
            "recipients": [self.keys.path("recipient.pub")],
            "signer": self.keys.path("signer.key"),
            "identities": [self.keys.path("identity.key")],
            "trust": [self.keys.path("signer.pub")],
            "criu": str(self.real),
            "state": str(self.config.parent / "state"),
        } | settings
        lines = [
            f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None
        ]
        self.config.write_text("".join(lines))

    # What runs

    def processes(self) -> list[int]:
        """Live processes that come from a call of the drop-in: helpers, real CRIUs and what those forked."""
        return harness.processes_with(f"{MARK}={self.mark}")

    def helpers(self) -> list[int]:
        """Those that still are the interpreter with our script: helpers, and a process that is not CRIU yet."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if os.fsencode(self.path) in command and b"swrk" in command:
                    found.append(pid)
        return found

    def settle(self, timeout: float = 20.0) -> None:
        """Wait until nothing of it runs any more, and see that nothing is left."""
        deadline = time.monotonic() + timeout
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert left == [], [(p, Path(f"/proc/{p}/cmdline").read_bytes()) for p in left]
        assert list(self.temporary.iterdir()) == []
        assert sealed_mounts() == []

    def kill(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def sealed_mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if " fuse.sealpoint " in line]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

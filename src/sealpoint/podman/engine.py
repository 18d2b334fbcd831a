"""Calling podman, and what it says of a container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sealpoint import ownership
from sealpoint.environment import environment
from sealpoint.errors import CriuError, PolicyError, SystemEnvironmentError, UsageError
from sealpoint.process import Held

_PATIENCE: Final = 300.0  # seconds for a call that is no checkpoint
_MAX_LINES: Final = 4  # of what podman said, in an error
_OURS: Final = (
    *("all", "compress", "export", "import", "keep", "latest", "leave-running", "name"),
)
_UNSEALED: Final = ("create-image", "pre-checkpoint", "with-previous", "import-previous")
_SHORT: Final = {
    "e": "export",
    "i": "import",
    "c": "compress",
    "R": "leave-running",
    "k": "keep",
    "a": "all",
    "l": "latest",
    "n": "name",
    "p": "publish",
    "P": "pre-checkpoint",
}
_KNOWN: Final = (
    "file-locks",
    "ignore-rootfs",
    "ignore-static-ip",
    "ignore-static-mac",
    "ignore-volumes",
    "pod",
    "print-stats",
    "publish",
    "tcp-close",
    "tcp-established",
)
_WITH_VALUE: Final = ("--pod", "--publish", "-p")  # in the next word


class PodmanError(CriuError):
    """podman failed.  A container that was to be checkpointed runs on; one that was to be restored does not."""


@dataclass(frozen=True, slots=True)
class PodmanContainer:
    """userdata: podman's directory for it; pid: of its first process; own_network: its network namespace is its own."""

    id: str
    name: str
    pid: int
    userdata: str
    own_network: bool


class Podman:
    """The executable and the options that stand before each command."""

    def __init__(self, path: str = "", options: Sequence[str] = ()) -> None:
        """Raises SystemEnvironmentError."""
        try:
            found = shutil.which(path) if path else ownership.program("podman")
        except FileNotFoundError:
            found = None
        except PolicyError as error:
            raise SystemEnvironmentError(
                error.message, hint=f"{error.hint}; or name it with --podman"
            ) from None
        if found is None:
            raise SystemEnvironmentError(
                f"{path or 'podman'} is not installed", hint="name it with --podman"
            )
        if os.geteuid() != 0:
            raise SystemEnvironmentError(
                "only root can checkpoint containers", hint="run it with sudo"
            )
        self.command = [found, *options]

    def run(self, *arguments: str) -> str:
        """Standard output.  Raises PodmanError."""
        try:
            done = subprocess.run(
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE,
                check=False,
                env=environment(own=True),
            )
        except (OSError, subprocess.TimeoutExpired):
            raise PodmanError(f"podman {arguments[0]} did not finish in time") from None
        if done.returncode:
            raise PodmanError(explain(arguments[0], done.stderr))
        return done.stdout.decode(errors="replace")

    def exists(self, name: str) -> bool:
        """Whether there is a container of that name or id.  Raises PodmanError."""
        done = subprocess.run(
            [*self.command, "container", "exists", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
            env=environment(own=True),
        )
        if done.returncode not in (0, 1):
            raise PodmanError(explain("container exists", done.stderr))
        return done.returncode == 0

    def running(self, name: str) -> PodmanContainer:
        """What a checkpoint must know.  Raises UsageError unless it runs, PodmanError."""
        if not self.exists(name):
            raise UsageError(f"there is no container {name}")
        try:
            (values,) = json.loads(self.run("container", "inspect", name))
            status, pid = str(values["State"]["Status"]), int(values["State"]["Pid"])
            mode = str(values["HostConfig"]["NetworkMode"])
            container = PodmanContainer(
                str(values["Id"]),
                str(values["Name"]),
                pid,
                str(values["StaticDir"]),
                not mode.startswith(("host", "container:", "ns:")) and not values.get("Pod"),
            )
        except (ValueError, KeyError, TypeError):
            raise PodmanError(
                "podman container inspect printed something that sealpoint does not understand"
            ) from None
        if status != "running" or pid <= 0:
            raise UsageError(f"container {name} does not run: it is {status}")
        return container

    def hold(self, name: str) -> tuple[PodmanContainer, Held]:
        """As `running`, and its first process, to be closed.  Raises UsageError, PodmanError."""
        container = self.running(name)
        root = Held(container.pid)
        try:
            # Podman names a number: whoever holds that process must hear once more that it is the one.
            if self.running(container.id).pid != container.pid or not root.runs:
                raise UsageError(f"container {name} has ended meanwhile, or was started anew")
        except BaseException:
            root.close()
            raise
        return container, root


def check_options(options: Sequence[str]) -> None:
    """Options of podman's own, given by the user.  Raises UsageError for those that would lead past the seal."""
    before = ""
    for word in options:
        is_value, before = before in _WITH_VALUE, word
        if is_value:
            before = ""
            continue
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
        elif word.startswith("-"):
            name = _SHORT.get(word[1:2], word[1:2])
        else:
            raise UsageError(f"{word} is not an option of podman that can be used here")
        if name in _OURS:
            raise UsageError(f"podman's option {word} is set by sealpoint itself")
        if name in _UNSEALED:
            raise UsageError(f"podman's option {word} is not sealed by this version of sealpoint")
        if name not in _KNOWN:
            raise UsageError(f"podman's option {word} is not known to sealpoint")


def explain(what: str, said: bytes) -> str:
    """A message with the end of what podman said."""
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return f"podman {what} failed: " + (" / ".join(lines[-_MAX_LINES:])[-2000:] or "without a word")


def parse(data: bytes, what: str) -> dict[str, Any]:
    """One of podman's JSON members.  Raises UsageError."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UsageError(f"{what} of the archive is not podman's")
    return values

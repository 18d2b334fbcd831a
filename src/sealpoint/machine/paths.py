"""Who finds which `criu`, and who else could change what root runs or believes."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from typing import Final

from sealpoint import ownership
from sealpoint.environment import environment
from sealpoint.machine.real import DEFAULT_PATH, which
from sealpoint.names import proc, text

_TIMEOUT: Final = 10.0


def unsafe(path: str) -> str:
    """Who else could change a file or directory, by it or by what is above it; empty if root alone can."""
    try:
        problem = ownership.problem_of(path)
    except OSError as error:
        return f"{path} cannot be examined: {error.strerror}"
    return problem.text if problem is not None else ""


def path_problems(executable: str, real: str) -> list[str]:
    """Where root or services would find another `criu` than the drop-in."""
    found = []
    places = {"a login of root": root_path(), "a systemd service": service_path()}
    for who, path in places.items():
        first = which(path)
        if first is None:
            found.append(f"{who} finds no criu: its PATH is {path}")
        elif not os.path.samefile(first, executable):
            place = "the real one" if os.path.realpath(first) == os.path.realpath(real) else "it"
            found.append(
                f"{who} finds {first} before the drop-in: {place} writes plain checkpoints "
                f"(its PATH is {path})"
            )
    return found


def root_path() -> str:
    """The PATH that login gives to root (login.defs, /etc/environment)."""
    path = DEFAULT_PATH
    with contextlib.suppress(OSError), open("/etc/login.defs", errors="surrogateescape") as file:
        for line in file:
            words = line.split()
            if len(words) == 2 and words[0] == "ENV_SUPATH":
                path = words[1].removeprefix("PATH=")
    with contextlib.suppress(OSError), open("/etc/environment", errors="surrogateescape") as file:
        for line in file:
            name, _, value = line.strip().removeprefix("export ").partition("=")
            if name == "PATH":
                path = value.strip("\"'")
    return path


def service_path() -> str:
    """The PATH that systemd gives to services which set none."""
    for line in _systemctl("show-environment").splitlines():
        name, _, value = line.partition("=")
        if name == "PATH":
            return value
    return DEFAULT_PATH


def unit(name: str) -> dict[str, str] | None:
    """LoadState, MainPID and Environment of a systemd service that exists, else None."""
    output = _systemctl(
        "show",
        "-p",
        "LoadState",
        "-p",
        "MainPID",
        "-p",
        "Environment",
        "-p",
        "EnvironmentFiles",
        name,
    )
    values = dict(line.partition("=")[::2] for line in output.splitlines())
    return values if values.get("LoadState") == "loaded" else None


def unit_path(values: dict[str, str]) -> tuple[str, bool]:
    """The PATH of a service, and whether that is what its running process really has."""
    pid = values.get("MainPID", "0")
    if pid.isdigit() and int(pid) and (path := process_path(int(pid))) is not None:
        return path, True
    path = service_path()
    for word in _words(values.get("Environment", "")):
        if word.startswith("PATH="):
            path = word.removeprefix("PATH=")
    for word in _words(values.get("EnvironmentFiles", "")):
        path = _path_in(word) or path
    return path, False


def process_path(pid: int) -> str | None:
    """PATH in the environment that a process was started with."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return None
    return next((os.fsdecode(v[5:]) for v in variables if v.startswith(b"PATH=")), "")


def processes(name: str) -> list[int]:
    """Pids of the programs of that name."""
    found = []
    comm = os.fsdecode(os.fsencode(name)[:15])  # as the kernel cuts it
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if proc(f"/proc/{entry}/comm").removesuffix("\n") == comm:
                    found.append(int(entry))
    return sorted(found)


def _path_in(file_name: str) -> str:
    if not file_name.startswith("/"):
        return ""
    with contextlib.suppress(OSError), open(file_name, errors="surrogateescape") as file:
        for line in file:
            if line.startswith("PATH="):
                return line.strip().removeprefix("PATH=").strip("\"'")
    return ""


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _systemctl(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["systemctl", "--no-pager", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            env=environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return text(done.stdout) if done.returncode == 0 else ""

"""Which container engines are on this machine, and which `criu` each of them would run.

All look for `criu` in their own PATH: runc, podman and go-criu by name, crun through libcriu.  A service has the PATH
that systemd gave it, which its running process shows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sealpoint.environment import environment
from sealpoint.machine import paths
from sealpoint.machine.finding import Finding, fail, ok, warn
from sealpoint.machine.real import DEFAULT_PATH, is_dropin, which

_TOPIC: Final = "engines"
_TIMEOUT: Final = 20.0


@dataclass(frozen=True, slots=True)
class Engine:
    """programs: called by hand, they use the caller's PATH; daemons: processes with a PATH of their own."""

    name: str
    programs: tuple[str, ...] = ()
    daemons: tuple[str, ...] = ()
    units: tuple[str, ...] = ()


ENGINES: Final = (
    Engine("podman", programs=("podman",), units=("podman.service",)),
    Engine("runc", programs=("runc",)),
    Engine("crun", programs=("crun",)),
    Engine("docker", daemons=("dockerd",), units=("docker.service",)),
    Engine("containerd", daemons=("containerd",), units=("containerd.service",)),
    Engine("cri-o", daemons=("crio",), units=("crio.service", "cri-o.service")),
)


def engines(*, installed: bool) -> list[Finding]:
    """One or more findings for each engine that is there.  installed: the drop-in is, so others are mistakes."""
    found: list[Finding] = []
    search = f"{os.environ.get('PATH', '')}:{DEFAULT_PATH}"
    for engine in ENGINES:
        found += _engine(engine, search, installed=installed)
    if shutil.which("buildah", path=search):
        found.append(ok(_TOPIC, "buildah is here; it takes no checkpoints"))
    if not found:
        found.append(ok(_TOPIC, "no container engine is installed"))
    if shutil.which("crun", path=search):
        found += _crun(search)
    return found


def _engine(engine: Engine, search: str, *, installed: bool) -> list[Finding]:
    found = []
    for program in engine.programs:
        if shutil.which(program, path=search):
            for who, path in _callers(program).items():
                found.append(_judge(who, path, installed=installed))
    for unit in engine.units:
        if (values := paths.unit(unit)) is not None:
            path, running = paths.unit_path(values)
            who = unit if running else f"{unit} (when it runs)"
            found.append(_judge(who, path, installed=installed))
    for daemon in engine.daemons:
        pids = paths.processes(daemon)
        known = {process for process in map(paths.process_path, pids) if process is not None}
        if not found:
            found += [_judge(f"the running {daemon}", p, installed=installed) for p in known]
        if not found and shutil.which(daemon, path=search):
            path = paths.service_path()
            found.append(_judge(f"{daemon}, if started as a service", path, installed=installed))
    return found


def _callers(program: str) -> dict[str, str]:
    own = os.environ.get("PATH", "")
    callers = {f"{program} in a login of root": paths.root_path()}
    if which(own) != which(paths.root_path()):
        callers[f"{program} called from here"] = own
    return callers


def _judge(who: str, path: str, *, installed: bool) -> Finding:
    criu = which(path)
    if criu is not None and is_dropin(criu):
        return ok(_TOPIC, f"{who} uses the drop-in {criu}")
    if criu is None:
        hint = f"its PATH is {path or 'empty'}"
        return warn(_TOPIC, f"{who} finds no criu: it can take no checkpoints", hint)
    text = f"{who} uses {criu}: its checkpoints are plain"
    say: Callable[[str, str, str], Finding] = fail if installed else warn
    hint = f"put the drop-in first in its PATH ({path})" if installed else "sealpoint install-criu"
    return say(_TOPIC, text, hint)


def _crun(search: str) -> list[Finding]:
    program = shutil.which("crun", path=search) or "crun"
    if b"+CRIU" not in _output([program, "--version"]):
        return [warn(_TOPIC, "crun was built without CRIU: it can take no checkpoints", "use runc")]
    listed = _output([shutil.which("ldconfig", path=search) or "ldconfig", "-p"])
    if listed and b"libcriu.so.2 " not in listed:
        text = "crun finds no libcriu.so.2: it can take no checkpoints"
        return [warn(_TOPIC, text, "install libcriu2")]
    return []


def _output(argv: list[str]) -> bytes:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            env=environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout

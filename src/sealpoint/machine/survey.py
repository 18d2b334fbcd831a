"""What `sealpoint doctor` looks at: the drop-in, the real CRIU, and by other modules engines, keys and the machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from sealpoint import config as configuration
from sealpoint.config import SYSTEM_PATH, Config
from sealpoint.criu.binary import CriuBinary
from sealpoint.dropin import criu_config
from sealpoint.environment import environment
from sealpoint.errors import SealpointError
from sealpoint.machine import record, survey_engines, survey_keys, survey_machine
from sealpoint.machine.finding import Finding, fail, guarded, ok, warn
from sealpoint.machine.paths import path_problems, unsafe
from sealpoint.machine.real import find_real, is_dropin, problem_of, supports
from sealpoint.machine.record import InstallationRecord

_TIMEOUT = 30.0


def survey() -> Iterator[Finding]:
    """Every finding, as soon as it is known.  Tries the real things, so it needs root for most."""
    root = os.geteuid() == 0
    if not root:
        yield fail("root", "not run as root: most checks cannot be made", "run it with sudo")
    config, problems = _configuration()
    yield from problems
    installed, found = _record()
    yield from found
    yield from guarded("drop-in", lambda: _dropin(installed))
    criu, found = _criu(config, root=root)
    yield from found
    yield from guarded("drop-in", lambda: _first_in_path(installed, criu))
    yield from guarded("engines", lambda: survey_engines.engines(installed=installed is not None))
    yield from survey_keys.check(config, installed=installed is not None)
    yield from survey_machine.check(root=root)
    if criu is not None and root:
        real = criu
        yield from guarded("kernel", lambda: _features(real))


def _configuration() -> tuple[Config, list[Finding]]:
    topic = "config"
    if os.path.lexists(SYSTEM_PATH) and (reason := unsafe(SYSTEM_PATH)):
        # It is read by nobody then.
        said = f"{SYSTEM_PATH} says what runs as root, but {reason}"
        return Config(), [fail(topic, said, "chown root, chmod 644")]
    try:
        config = configuration.load_system()
    except SealpointError as error:
        return Config(), [fail(topic, error.message, error.hint or "")]
    if not os.path.lexists(SYSTEM_PATH):
        return config, [warn(topic, f"there is no {SYSTEM_PATH}", "run `sealpoint install-criu`")]
    return config, [ok(topic, f"{SYSTEM_PATH} is valid"), *_ways_around(config)]


def _ways_around(config: Config) -> Iterator[Finding]:
    """Settings that let through what is refused otherwise."""
    topic = "config"
    if config.allow_criu_fields:
        names = ", ".join(config.allow_criu_fields)
        text = f"allow_criu_fields lets unknown fields of CRIU's requests through: {names}"
        yield warn(topic, text, "remove it when sealpoint knows them")
    if config.criu_fault:
        text = (
            "criu_fault lets CRIU_FAULT through: anyone who calls CRIU can make it fail on purpose"
        )
        yield warn(topic, text, "remove it when CRIU's own tests are done")


def _record() -> tuple[InstallationRecord | None, list[Finding]]:
    try:
        return record.load(), []
    except SealpointError as error:
        return None, [fail("drop-in", error.message, error.hint or "")]


def _dropin(installed: InstallationRecord | None) -> list[Finding]:
    topic = "drop-in"
    if installed is None:
        text = "the drop-in criu is not installed: engines on this machine write plain checkpoints"
        return [warn(topic, text, "run `sealpoint install-criu`")]
    again = "run `sealpoint install-criu` again, or `sealpoint uninstall-criu`"
    if installed.criu is None:
        return [fail(topic, "an installation was interrupted", again)]
    path = installed.criu.path
    if not os.path.lexists(path):
        return [fail(topic, f"{path} is gone", again)]
    if not is_dropin(path):
        return [fail(topic, f"{path} was replaced by something else", "see where it came from")]
    if record.content_hash(path) not in installed.criu.ours:
        return [fail(topic, f"{path} was changed since it was installed", again)]
    if reason := unsafe(path):
        return [fail(topic, f"{path} runs as root, but {reason}", "chown root, chmod 755")]
    done = subprocess.run(
        [path, "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT,
        check=False,
        env=environment(own=True),
    )
    if done.returncode or b"Version:" not in done.stdout:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        return [fail(topic, f"{path} does not answer: {said}", again)]
    return [ok(topic, f"{path} is installed and leads to the real CRIU")]


def _first_in_path(installed: InstallationRecord | None, criu: CriuBinary | None) -> list[Finding]:
    if installed is None or installed.criu is None or not os.path.exists(installed.criu.path):
        return []
    problems = path_problems(installed.criu.path, criu.path if criu else "")
    hint = "put the drop-in's directory first there, or install it with another --prefix"
    return [fail("drop-in", text, hint) for text in problems]


def _criu(config: Config, *, root: bool) -> tuple[CriuBinary | None, list[Finding]]:
    topic = "criu"
    try:
        criu = find_real(config.criu)
    except SealpointError as error:
        return None, [fail(topic, error.message, error.hint or "")]
    version = ".".join(map(str, criu.version))
    found = guarded(topic, lambda: _works(criu, version)) if root else []
    if reason := unsafe(criu.path):
        found.append(fail(topic, f"{criu.path} runs as root, but {reason}", "install it as root"))
    found += guarded(topic, _settings)
    return criu, found


def _settings() -> list[Finding]:
    """What CRIU's own configuration files say that a dump by the drop-in would stumble over."""
    found = []
    for files in ("criu", "runc"):
        try:
            if files == "criu":
                criu_config.defaults(os.environ)
            else:
                criu_config.read(criu_config.OF_RUNC)
        except criu_config.RefusedError as error:
            found.append(fail("criu", str(error), "remove the option there"))
    return found


def _works(criu: CriuBinary, version: str) -> list[Finding]:
    reason = problem_of(criu)
    if reason:
        return [
            fail(
                "criu",
                f"{criu.path} (CRIU {version}) cannot dump and restore a process here: {reason}",
                "install CRIU 4.0 or newer, and name it as criu in /etc/sealpoint/config.toml",
            )
        ]
    return [ok("criu", f"{criu.path} (CRIU {version}) dumped and restored a process")]


def _features(criu: CriuBinary) -> list[Finding]:
    topic = "kernel"
    found = []
    if supports(criu, "mem_dirty_track"):
        found.append(ok(topic, "soft-dirty tracking: pre-dump chains work"))
    else:
        text = "no soft-dirty tracking (CONFIG_MEM_SOFT_DIRTY): no pre-dumps, no increments"
        found.append(warn(topic, text))
    if supports(criu, "uffd-noncoop"):
        found.append(ok(topic, "userfaultfd: lazy restores work"))
    else:
        text = "no userfaultfd for other processes: no lazy restores"
        found.append(warn(topic, text, "sysctl vm.unprivileged_userfaultfd, CAP_SYS_PTRACE"))
    return found

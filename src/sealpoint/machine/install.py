"""`install-criu` and `uninstall-criu`: the executable `criu` in front of the real one, and the system's configuration.

Everything is checked before anything is changed; what is changed is in the record (`record`) first.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import sysconfig
from dataclasses import dataclass, field
from typing import Final

import sealpoint
from sealpoint import config as configuration
from sealpoint.config import SYSTEM_PATH, Config
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.machine import configure, record
from sealpoint.machine.paths import path_problems, unsafe
from sealpoint.machine.real import MARK, find_real, is_dropin, problem_of
from sealpoint.machine.record import FileRecord, InstallationRecord

_PREFIX_MARK: Final = ".sealpoint-prefix"  # of `make install`
_MAX_SHEBANG: Final = 200  # the kernel reads 256 bytes of the first line


@dataclass(frozen=True, slots=True)
class Request:
    """What to install.  settings: those given, the others empty.

    force: replace a configuration that is not ours, and install beside a CRIU that does not work here.
    from_checkout: let the executable depend on a checkout.
    """

    prefix: str
    settings: Config = field(default_factory=Config)
    force: bool = False
    from_checkout: bool = False


@dataclass(frozen=True, slots=True)
class Installed:
    """What came of it.  config_written: False where the existing one stays as it is."""

    executable: str
    criu: str
    version: str
    config_written: bool
    can_seal: bool
    can_open: bool
    warnings: list[str]


def existing_config() -> Config:
    """The system's configuration as it is.  Raises UsageError."""
    return configuration.load_system()


def install(request: Request) -> Installed:
    """Raises SealpointError; then nothing has changed."""
    _require_root()
    interpreter = _interpreter(from_checkout=request.from_checkout)
    executable = os.path.join(os.path.abspath(request.prefix), "criu")
    before = existing_config()
    wanted = configure.merged(before, request.settings)
    criu = find_real(wanted.criu)
    if os.path.realpath(criu.path) == os.path.realpath(executable):
        raise UsageError(f"{executable} is the real CRIU: choose another prefix")
    warnings = configure.validate(wanted._replace(criu=criu.path))
    if reason := problem_of(criu):
        said = f"{criu.path} does not work here ({reason})"
        if not request.force:
            raise SystemEnvironmentError(
                said, hint="name a newer CRIU with --criu; --force installs anyway"
            )
        warnings.append(said)
    if reason := unsafe(criu.path):
        warnings.append(f"{criu.path} runs as root, but {reason}")
    missing = _missing(record.DIRECTORY) + _missing(os.path.dirname(executable))
    with record.locked():
        old = record.load()
        _check_executable(executable, old)
        change = wanted != before or not os.path.lexists(SYSTEM_PATH)
        if change:
            _check_config(request, old)
            wanted = wanted._replace(criu=criu.path)
        elif not wanted.criu:
            warnings.append(
                f"{SYSTEM_PATH} does not say which CRIU to run: the next one in the engine's PATH "
                f'will be taken; add: criu = "{criu.path}"'
            )
        new = old if old is not None else InstallationRecord()
        try:
            _make_directories(new, missing)
            if change:
                _write_config(new, configure.render(wanted))
            _write_executable(new, executable, _script(interpreter))
        except BaseException:
            if old is None:
                record.undo(new)
            raise
    warnings += path_problems(executable, criu.path)
    return Installed(
        executable,
        criu.path,
        ".".join(map(str, criu.version)),
        change,
        configure.can_seal(wanted),
        configure.can_open(wanted),
        warnings,
    )


def uninstall() -> tuple[list[str], list[str]]:
    """Returns what was undone, and what was left and why.  Raises SealpointError: nothing is installed."""
    _require_root()
    nothing = UsageError(
        f"nothing is installed: there is no {record.RECORD_PATH}",
        hint="if you put a drop-in criu there by hand, remove it by hand",
    )
    if not os.path.isdir(record.DIRECTORY):
        raise nothing
    with record.locked():
        installed = record.load()
        if installed is None:
            raise nothing
        return record.undo(installed)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise SystemEnvironmentError("only root can do this", hint="run it with sudo")


def _interpreter(*, from_checkout: bool) -> str:
    """The interpreter that finds this installation, by a path that outlives an upgrade.  Raises UsageError."""
    package = os.path.dirname(os.path.realpath(sealpoint.__file__))
    homes = {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    if os.path.dirname(package) not in homes and not from_checkout:
        raise UsageError(
            f"sealpoint runs from {package}, which is not an installation: the engines of this machine "
            "would depend on it",
            hint="run `make install`, and then the installed sealpoint",
        )
    prefix = sys.prefix
    release = os.path.dirname(os.path.realpath(prefix))
    current = os.path.join(release, "current")
    if os.path.exists(os.path.join(release, _PREFIX_MARK)) and os.path.exists(current):
        prefix = current
    interpreter = os.path.join(prefix, "bin", "python3")
    if not os.access(interpreter, os.X_OK):
        interpreter = sys.executable
    if any(c.isspace() for c in interpreter) or len(interpreter) > _MAX_SHEBANG:
        raise UsageError(
            f"{interpreter}: the kernel cannot start scripts by such a path",
            hint="install into a directory with a short name without spaces",
        )
    if not from_checkout:
        for path in (os.path.realpath(interpreter), os.path.join(package, "__init__.py")):
            if reason := unsafe(path):
                raise UsageError(
                    f"{path} would run as root, but {reason}",
                    hint="install sealpoint as root, by `make install`",
                )
    return interpreter


def _script(interpreter: str) -> bytes:
    text = f"#!{interpreter} -I\n{MARK.decode()}\n"
    text += "# Made by `sealpoint install-criu`; `sealpoint uninstall-criu` removes it.\n"
    return (text + "from sealpoint.dropin import main\n\nmain()\n").encode()


def _missing(directory: str) -> list[str]:
    """The directory and those above it that do not exist, the outermost first."""
    found: list[str] = []
    while not os.path.lexists(directory):
        found.insert(0, directory)
        directory = os.path.dirname(directory)
    return found


def _check_executable(executable: str, old: InstallationRecord | None) -> None:
    prefix = os.path.dirname(executable)
    if old is not None and old.criu is not None and old.criu.path != executable:
        raise UsageError(
            f"the drop-in is installed as {old.criu.path}",
            hint="run `sealpoint uninstall-criu` first",
        )
    if os.path.lexists(executable) and (os.path.islink(executable) or not is_dropin(executable)):
        raise UsageError(
            f"{executable} exists and is not sealpoint's drop-in",
            hint="choose another prefix that comes before it in PATH",
        )
    if os.path.isdir(prefix) and (reason := unsafe(prefix)):
        raise UsageError(f"what is in {prefix} runs as root, but {reason}")


def _check_config(request: Request, old: InstallationRecord | None) -> None:
    """Whether the configuration may be written."""
    now = record.content_hash(SYSTEM_PATH)
    mine = old.config if old is not None else None
    if not now or (mine is not None and now in mine.ours):
        return
    if mine is not None and now != mine.before:
        raise UsageError(
            f"{SYSTEM_PATH} was changed since it was installed",
            hint="change it there and give no options, or run `sealpoint uninstall-criu` first",
        )
    if not request.force:
        raise UsageError(
            f"{SYSTEM_PATH} exists",
            hint="to use it as it is, give no options; --force adds these options to its settings, and "
            "uninstall-criu puts it back",
        )
    backup = SYSTEM_PATH + record.BACKUP_SUFFIX
    if os.path.lexists(backup) and not os.path.samefile(backup, SYSTEM_PATH):
        raise UsageError(f"{backup} exists and is not overwritten", hint="move it away")


def _make_directories(new: InstallationRecord, missing: list[str]) -> None:
    new.directories += [d for d in missing if d not in new.directories]
    new.save()
    for directory in missing:
        record.make_directory(directory)


def _write_config(new: InstallationRecord, data: bytes) -> None:
    if new.config is None:
        new.config = FileRecord(SYSTEM_PATH, before=record.content_hash(SYSTEM_PATH))
    file = new.config
    now = record.content_hash(SYSTEM_PATH)
    _announce(new, file, data)
    if now and now == file.before and not os.path.lexists(file.backup):
        record.link_backup(file)
    record.write_file(SYSTEM_PATH, data, mode=0o644)


def _write_executable(new: InstallationRecord, path: str, data: bytes) -> None:
    if new.criu is None:
        new.criu = FileRecord(path)
    _announce(new, new.criu, data)
    record.write_file(path, data, mode=0o755)
    if not stat.S_IMODE(os.stat(path).st_mode) & 0o111 or not is_dropin(path):
        raise SystemEnvironmentError(f"{path} was not written as it should be")


def _announce(new: InstallationRecord, file: FileRecord, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest not in file.ours:
        file.ours.append(digest)
    new.save()

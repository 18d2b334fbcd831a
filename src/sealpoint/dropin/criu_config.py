"""CRIU's configuration files: read once, by us, and handed to CRIU as arguments or in a sealed memfd.

CRIU itself never opens one, so that what was checked is what CRIU gets.  The grammar is that of CRIU's config.c, 3.17
to 4.2.1; where that drops or cuts a part without a word, the file is refused here.  Only settings that say *how* CRIU
works come from a file: what names libraries, programs, descriptors, directories or hosts is refused.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from sealpoint.criu.options import (
    END,
    OPTIONS,
    SWITCHES,
    UnknownError,
    Value,
    names_configuration,
    scan,
)

_GLOBAL: Final = "/etc/criu/default.conf"
_HOME: Final = ".criu/default.conf"
OF_RUNC: Final = "/etc/criu/runc.conf"  # runc and crun name it in every request, unless a container names another
_MAX: Final = 64 * 1024 * 1024
_MAX_WORDS: Final = 8192
_NAME: Final = re.compile(r"-{1,2}[A-Za-z0-9-]{1,40}(=.{0,80})?")
_NULL_DEVICE: Final = os.makedev(1, 3)
_SPACE: Final = " \t\v\f\r"  # isspace() but the end of the line
_DIRECTORY: Final = "CRIU's caller decides where images and logs go"
_SERVER: Final = "memory would leave unsealed"
_RUNS: Final = "it makes CRIU load or run something"
_NUMBER: Final = "the number of a descriptor means nothing in a file"
_CALLER: Final = "CRIU's caller decides this"
_TLS: Final = "it is not needed, because what is sent is sealed, and not built"
# Why an option is never taken from a file.  What is neither here nor in ALLOWED does not exist.
REFUSED: Final = {
    **dict.fromkeys(("images-dir", "work-dir", "prev-images-dir"), _DIRECTORY),
    **dict.fromkeys(("page-server", "ps-socket", "address", "port"), _SERVER),
    "stream": "an image streamer would get memory in the clear",
    **dict.fromkeys(("libdir", "action-script", "exec-cmd"), _RUNS),
    **dict.fromkeys(("inherit-fd", "status-fd", "close"), _NUMBER),
    **dict.fromkeys(("tree", "root", "pidfile", "feature"), _CALLER),
    **dict.fromkeys(("tls", "tls-cacert", "tls-cacrl", "tls-cert", "tls-key"), _TLS),
    "tls-no-cn-verify": _TLS,
    **dict.fromkeys(("config", "no-default-config"), "a configuration file cannot name other ones"),
    **dict.fromkeys(("help", "version", "ms"), "CRIU would end at once"),
}
# fmt: off
ALLOWED: Final = frozenset((
    "all", "allow-uprobes", "auto-dedup", "cgroup-dump-controller", "cgroup-props", "cgroup-props-file", "cgroup-root",
    "cgroup-yard", "cpu-cap", "daemon", "deprecated", "display-stats", "empty-ns", "enable-external-masters",
    "enable-external-sharing", "enable-fs", "evasive-devices", "experimental", "ext-mount-map", "ext-unix-sk",
    "external", "extra", "file-locks", "file-validation", "force-irmap", "freeze-cgroup", "ghost-fiemap",
    "ghost-limit", "irmap-scan-path", "join-ns", "lazy-pages", "leave-running", "leave-stopped", "link-remap",
    "log-file", "log-pid", "lsm-mount-context", "lsm-profile", "manage-cgroups", "mntns-compat-mode", "network-lock",
    "pre-dump-mode", "restore-detached", "restore-sibling", "shell-job", "skip-file-rwx-check", "skip-in-flight",
    "skip-mnt", "tcp-close", "tcp-established", "timeout", "track-mem", "unprivileged", "verbosity", "veth-pair",
    "weak-sysctls",
))
# fmt: on


class RefusedError(Exception):
    """CRIU must not run with this file or these options; the message says why."""


class Setting(NamedTuple):
    """One option that CRIU shall have.  name: in full, perhaps with "no-"; origin: file and line, for messages."""

    name: str
    value: str | None
    origin: str

    @property
    def word(self) -> str:
        """As an argument."""
        return f"--{self.name}" if self.value is None else f"--{self.name}={self.value}"


def defaults(environ: Mapping[str, str], *, skip_standard: bool = False) -> list[Setting]:
    """What CRIU would read by itself, in its order: the system's file, the user's, that of CRIU_CONFIG_FILE.

    skip_standard: without the first two, as `--no-default-config` and `--config` mean.  Raises RefusedError.
    """
    paths = [] if skip_standard else [_GLOBAL]
    if not skip_standard and "HOME" in environ:
        paths.append(f"{environ['HOME']}/{_HOME}")
    if "CRIU_CONFIG_FILE" in environ:
        paths.append(environ["CRIU_CONFIG_FILE"])
    return [setting for path in paths for setting in read(path)]


def read(path: str) -> list[Setting]:
    """The settings of one file; none if there is no such file, as with CRIU.  Raises RefusedError."""
    words = split(_content(path), path)
    try:
        given = list(scan([word for word, _ in words]))
    except UnknownError as error:
        word, number = words[error.at]
        # Whoever names a file must not learn what is in it, if it is none of settings.
        reason = str(error) if _NAME.fullmatch(word) else "this is not an option of CRIU"
        raise RefusedError(f"{path}, line {number}: {reason}") from None
    return [
        checked(option.name, option.value, f"{path}, line {words[option.at][1]}")
        for option in given
        if option.name  # CRIU passes over other words
    ]


def checked(name: str, value: str | None, origin: str) -> Setting:
    """An option that comes from elsewhere than from who calls CRIU.  Raises RefusedError."""
    base = name[3:] if name not in (*ALLOWED, *REFUSED) and name[3:] in SWITCHES else name
    if base not in ALLOWED:
        raise RefusedError(
            f"{origin}: the option {name} cannot be combined with sealing there: {REFUSED[base]}"
        )
    if base == "log-file" and "/" in (value or ""):
        raise RefusedError(
            f"{origin}: the option log-file cannot name a directory there: CRIU's log stays in its work directory"
        )
    if base == "log-file":
        check_log(value or "", origin)
    setting = Setting(name, value, origin)
    if names_configuration(setting.word):
        raise RefusedError(f"{origin}: CRIU would take the value of {name} for --config")
    return setting


def check_log(name: str, origin: str) -> None:
    """CRIU empties its log when it starts: it must not be an image, nor a sealed file.  Raises RefusedError."""
    if name.endswith((".img", ".sealed")):
        raise RefusedError(f"{origin}: the log {name} would take the place of a checkpoint")


def split(content: bytes, path: str) -> list[tuple[str, int]]:
    """The words that CRIU makes of a file, each with the number of its line.  Raises RefusedError."""
    words: list[tuple[str, int]] = []
    for number, raw in enumerate(io.BytesIO(content), 1):
        line = os.fsdecode(raw.removesuffix(b"\n")).lstrip(_SPACE)
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        if "\0" in line or "\r" in line:
            what = "a zero byte" if "\0" in line else "a carriage return"
            raise RefusedError(f"{where}: there is {what} in the line")
        mark = " " if " " in line else "\t"  # a space counts first, as in CRIU
        if len(words) >= _MAX_WORDS:
            raise RefusedError(f"{where}: more than {_MAX_WORDS // 2} options")
        name, _, rest = line.partition(mark)
        words.append((f"--{name}", number))
        value = _value(rest.lstrip(_SPACE), where) if mark in line else None
        if value == END:
            raise RefusedError(f"{where}: CRIU would not read what follows")
        if value is not None:
            words.append((value, number))
    return words


def _value(text: str, where: str) -> str | None:
    """What stands behind an option and a space; None if that is a comment."""
    if text.startswith("#"):
        return None
    if not text.startswith('"'):
        value, _, rest = text.partition("#")[0].partition(" ")
        _nothing(rest, where)
        return value.replace('\\"', '"')
    if text.startswith('""'):
        _nothing(text[2:], where)
        return ""
    end = 1
    while (end := text.find('"', end + 1)) > 0 and text[end - 1] == "\\":
        pass
    if end < 0:
        raise RefusedError(f"{where}: a quotation mark is not closed")
    _nothing(text[end + 1 :], where)
    return text[1:end].replace('\\"', '"').partition("#")[0]  # CRIU ends a value at # even here


def _nothing(text: str, where: str) -> None:
    if text.strip(_SPACE) and not text.lstrip(_SPACE).startswith("#"):
        raise RefusedError(f"{where}: more than one option and its value")


def _content(path: str) -> bytes:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path"
        raise RefusedError(f"{path}: cannot be read: {reason}") from None
    try:
        info = os.fstat(fd)
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == _NULL_DEVICE:
            return b""
        if not stat.S_ISREG(info.st_mode):
            raise RefusedError(f"{path}: not a regular file")
        parts, size = [], 0
        while part := os.read(fd, 1 << 20):
            parts.append(part)
            size += len(part)
            if size > _MAX:
                raise RefusedError(f"{path}: larger than {_MAX} bytes")
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    return b"".join(parts)


def written(settings: Iterable[Setting]) -> bytes:
    """A file of CRIU's with these settings, in the one spelling that all versions read alike.  Raises RefusedError."""
    lines = []
    for name, value, origin in settings:
        line = name if value is None else f"{name}={value}"
        if value is not None and (" " in value or "\t" in value):
            if OPTIONS[name] is not Value.NEEDED or any(mark in value for mark in '"#'):
                raise RefusedError(f"{origin}: the value of {name} cannot be handed on to CRIU")
            line = f'{name} "{value}"'
        lines.append(line + "\n")
    return os.fsencode("".join(lines))


# Settings that we must see ourselves are made fields of the request: option -> field.
_FIELDS: Final = {
    "leave-running": "leave_running",
    "leave-stopped": "leave_stopped",
    "track-mem": "track_mem",
    "auto-dedup": "auto_dedup",
    "lazy-pages": "lazy_pages",
    "log-file": "log_file",
    "freeze-cgroup": "freeze_cgroup",
}
_LEAVES: Final = ("leave-running", "leave-stopped")


def fold(options: Any, settings: Iterable[Setting], *, overrides: bool) -> None:
    """Put the settings that we must see ourselves into a request's criu_opts.

    overrides: they come from the request's own file, which CRIU applies last; else from a default file, which CRIU
    applies before the request.
    """
    last: dict[str, str | bool] = {}
    for name, value, _ in settings:
        base = name.removeprefix("no-")
        if base in _LEAVES:  # the later one counts
            for leave in _LEAVES:
                last.pop(_FIELDS[leave], None)
        if base in _FIELDS:
            last[_FIELDS[base]] = value if value is not None else name == base
    leaves = {_FIELDS[leave] for leave in _LEAVES}
    said = any(getattr(options, field) for field in leaves)
    for field, wanted in last.items():
        if field in leaves:
            if not overrides and said:  # CRIU takes what a request says only where it says true
                continue
            for other in leaves:
                options.ClearField(other)
        elif not overrides and (
            options.HasField(field) or (field == "log_file" and options.log_to_stderr)
        ):
            continue
        try:
            setattr(options, field, wanted)
        except ValueError:  # CRIU's requests know proper characters only
            raise RefusedError(
                f"the value of {field} in a configuration file is not text"
            ) from None


def remaining(settings: Iterable[Setting]) -> list[Setting]:
    """Those that CRIU itself must get beside the request's fields.

    That the tree is left stopped is among them, if nothing else is said later: CRIU 3.17 has no field for it.  That it
    is left running never is: CRIU applies a file last, and where sealpoint itself stops the tree it would run on.
    """
    given = list(settings)
    last = next((s.name for s in reversed(given) if s.name in _LEAVES), "")
    return [
        s
        for s in given
        if s.name.removeprefix("no-") not in _FIELDS or s.name == last == "leave-stopped"
    ]

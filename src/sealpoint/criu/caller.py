"""Options of CRIU's that mean the caller's directory or descriptors, for a CRIU that works in another directory.

`sealpoint dump` and `restore` start CRIU in a private directory and without the caller's descriptors.  What an option
names is found where stock CRIU would find it that was started in the caller's directory.  `PATHS`, `DESCRIPTORS` and
`OTHERS` together hold every option that CRIU knows and that is not refused: a test keeps it so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
from types import TracebackType
from typing import Final, Self

from sealpoint.criu.options import END, Given, scan
from sealpoint.errors import SystemEnvironmentError, UsageError

_MAX_FD: Final = 2**31 - 1
_STANDARD: Final = 2  # the last of the standard streams
_INHERIT: Final = re.compile(r"fd\[([0-9]{1,20})\]:(?=.)", re.DOTALL)
_NUMBER: Final = re.compile(r"[0-9]{1,20}(?!.)", re.DOTALL)
_EXTERNAL: Final = re.compile(r"(?:mnt|dev)\[[^]]+\]:", re.DOTALL)

# The value is a path of the caller's, as a whole.
PATHS: Final = ("cgroup-props-file", "cgroup-yard", "freeze-cgroup", "libdir", "pidfile", "root")
# A part of the value is one, or the rest of the line a command.
PARTS: Final = ("action-script", "exec-cmd", "ext-mount-map", "external", "join-ns")
# The value names a descriptor of the caller's.
DESCRIPTORS: Final = ("inherit-fd", "status-fd")
# fmt: off
# No path, or one of the dumped tree's.  CRIU has none of the caller's descriptors that `close` could name.
OTHERS: Final = frozenset((
    "address", "all", "allow-uprobes", "cgroup-dump-controller", "cgroup-props", "cgroup-root", "close", "cpu-cap",
    "daemon", "deprecated", "display-stats", "empty-ns", "enable-external-masters", "enable-external-sharing",
    "enable-fs", "evasive-devices", "experimental", "ext-unix-sk", "extra", "feature", "file-locks",
    "file-validation", "force-irmap", "ghost-fiemap", "ghost-limit", "help", "irmap-scan-path", "leave-stopped",
    "link-remap", "log-pid", "lsm-mount-context", "lsm-profile", "manage-cgroups", "mntns-compat-mode", "ms",
    "network-lock", "no-default-config", "port", "pre-dump-mode", "restore-sibling", "shell-job",
    "skip-file-rwx-check", "skip-in-flight", "skip-mnt", "tcp-close", "tcp-established", "timeout", "tls",
    "tls-cacert", "tls-cacrl", "tls-cert", "tls-key", "tls-no-cn-verify", "unprivileged", "verbosity", "version",
    "veth-pair", "weak-sysctls",
))
# fmt: on


class Caller:
    """Context manager.  CRIU's options, as a CRIU in another directory must get them, and what goes with them.

    words: the options; scripts: the caller's action scripts, as commands of a shell; descriptors: for the child to
    inherit; terminal: CRIU needs the caller's standard input, from which a restored shell job gets its terminal.
    """

    def __init__(self, command: str, options: tuple[str, ...], *, streams: bool) -> None:
        """command: "dump" or "restore"; options: that `check_options` accepts; streams: CRIU gets the caller's three.

        Raises UsageError, SystemEnvironmentError.
        """
        self._restores = command == "restore"
        self._streams = streams
        self._copies = contextlib.ExitStack()
        self.scripts: tuple[str, ...] = ()
        self.descriptors: tuple[int, ...] = ()
        given = list(scan(options))
        operands = [option.value or "" for option in given if not option.name]
        executes = any(option.name == "exec-cmd" for option in given)
        if operands and not (executes and self._restores):
            raise UsageError(
                f"criu {command} takes no argument {operands[0]!r}",
                hint="after -- come CRIU's options, each value after its option",
            )
        try:
            words = [self._word(o) for o in given if o.name not in ("", END, "action-script")]
        except BaseException:
            self._copies.close()
            raise
        self._scripts(given)
        self.terminal = self._restores and any(option.name == "shell-job" for option in given)
        self.words = (*words, *(self._command(operands) if executes else ()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._copies.close()

    def _word(self, option: Given) -> str:
        value = option.value or ""
        if option.name in PATHS:
            value = absolute(value)
        elif option.name == "join-ns":
            value = namespace(value)
        elif option.name == "external" and self._restores and (found := _EXTERNAL.match(value)):
            value = found[0] + absolute(value[found.end() :])
        elif option.name == "ext-mount-map" and self._restores and ":" in value:
            key, _, path = value.partition(":")
            value = f"{key}:{absolute(path)}"
        elif option.name == "inherit-fd":
            found = _INHERIT.match(value)
            if found is None:
                raise UsageError(f"--inherit-fd {value}: is not of the form fd[NUMBER]:NAME")
            value = f"fd[{self._inherit(option, found[1])}]:{value[found.end() :]}"
        elif option.name == "status-fd":
            if not _NUMBER.match(value):
                raise UsageError(f"--status-fd {value}: is not the number of a descriptor")
            value = str(self._inherit(option, value))
        else:
            return option.word
        return option._replace(value=value).word

    def _inherit(self, option: Given, digits: str) -> int:
        """The number that the child has a descriptor of the caller's under.

        All that this process opens for itself is closed on exec: nothing of that can be handed on.
        """
        number = int(digits)
        try:
            inherited = number <= _MAX_FD and os.get_inheritable(number)
        except OSError:
            inherited = False
        if not inherited:
            raise UsageError(
                f"--{option.name} {option.value}: descriptor {number} is not open",
                hint="open it in the shell, as in: sealpoint restore FILE -- --inherit-fd 'fd[7]:NAME' 7<PATH",
            )
        if number <= _STANDARD:
            if self._streams:
                return number
            number = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _STANDARD + 1)
            self._copies.callback(os.close, number)
        self.descriptors = (*self.descriptors, number)
        return number

    def _scripts(self, given: list[Given]) -> None:
        scripts = [option.value or "" for option in given if option.name == "action-script"]
        if "" in scripts:
            raise UsageError("CRIU's option --action-script needs a file")
        # CRIU looks for a name without a slash along PATH, as the shell does.
        found = [shlex.quote(absolute(s) if "/" in s else s) for s in scripts]
        if found:
            place = shlex.quote(_directory())
            self.scripts = tuple(f"(cd -- {place} && {script})" for script in found)

    @staticmethod
    def _command(operands: list[str]) -> list[str]:
        change = 'cd -- "$0" && exec "$@"'
        return [END, "/bin/sh", "-c", change, _directory(), *operands] if operands else []


def absolute(path: str, directory: str | None = None) -> str:
    """As seen from `directory`, by default the working directory.  Not `abspath`: before `..` may be a symbolic link.

    Raises SystemEnvironmentError.
    """
    if not path or os.path.isabs(path):
        return path  # CRIU itself says what it thinks of an empty one
    return os.path.join(_directory() if directory is None else directory, path)


def namespace(value: str, directory: str | None = None) -> str:
    """The value of --join-ns, KIND:PID or KIND:FILE[,MORE], with an absolute path.  Raises as `absolute`."""
    kind, colon, rest = value.partition(":")
    file, comma, more = rest.partition(",")
    if not colon or not file or file.isdigit() or os.path.isabs(file):
        return value
    path = absolute(file, directory)
    if "," in path:
        raise UsageError(
            f"--join-ns {value}: CRIU cannot take a comma in the path {path}",
            hint="name the namespace by a path without a comma",
        )
    return f"{kind}:{path}{comma}{more}"


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise SystemEnvironmentError(f"the working directory: {error.strerror}") from None

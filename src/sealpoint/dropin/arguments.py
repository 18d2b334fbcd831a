"""CRIU's own command line, as far as the drop-in must understand it (CRIU's config.c: short_opts and long options).

Standard library only.  Options that would lead memory past the seal are refused by name, by abbreviation, and in
CRIU's default configuration files.  The command is the first word that is no option and no value of one, so the table
of options must be right: a test compares it with the real CRIU.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

COMMANDS: Final = ("dump", "pre-dump", "restore", "dedup", "page-server", "lazy-pages")
_REFUSED_COMMANDS: Final = {
    "service": "it would write images in the clear; clients that run criu themselves are served",
}
_REFUSED: Final = {
    "stream": "an image streamer would get memory in the clear; use sealpoint dump",
    "config": "it could name options that lead past the seal; give CRIU's options one by one",
}
_REFUSED_FOR: Final = {
    ("dump", "lazy-pages"): "post-copy from a running process would send its memory in the clear",
    ("pre-dump", "lazy-pages"): "CRIU has no such pre-dump",
    ("page-server", "lazy-pages"): "it would send memory in the clear",
    ("lazy-pages", "page-server"): "memory would come from there in the clear",
    ("restore", "page-server"): "CRIU has no such restore",
}
_TLS: Final = "it is not needed, because what is sent is sealed, and not built"
_PAGE_SERVER: Final = ("page-server", "ps-socket", "address", "port")
# Long options that take a value, and those that take none or one after "=" only.
# fmt: off
WITH_VALUE: Final = frozenset(
    (
        "action-script", "address", "cgroup-dump-controller", "cgroup-props",
        "cgroup-props-file", "cgroup-root", "cgroup-yard", "close", "config", "empty-ns",
        "enable-fs", "ext-mount-map", "external", "feature", "file-validation",
        "freeze-cgroup", "ghost-limit", "images-dir", "inherit-fd", "irmap-scan-path",
        "join-ns", "libdir", "log-file", "lsm-mount-context", "lsm-profile", "network-lock",
        "pidfile", "port", "pre-dump-mode", "prev-images-dir", "ps-socket", "root", "skip-mnt",
        "status-fd", "timeout", "tls-cacert", "tls-cacrl", "tls-cert", "tls-key", "tree",
        "veth-pair", "work-dir",
    )
)
FLAGS: Final = frozenset(
    (
        "all", "auto-dedup", "cpu-cap", "daemon", "deprecated", "display-stats",
        "enable-external-masters", "enable-external-sharing", "evasive-devices", "exec-cmd",
        "experimental", "ext-unix-sk", "extra", "file-locks", "force-irmap", "ghost-fiemap",
        "help", "lazy-pages", "leave-running", "leave-stopped", "link-remap", "log-pid",
        "manage-cgroups", "mntns-compat-mode", "ms", "no-default-config", "page-server",
        "restore-detached", "restore-sibling", "shell-job", "skip-file-rwx-check",
        "skip-in-flight", "stream", "tcp-close", "tcp-established", "tls", "tls-no-cn-verify",
        "track-mem", "unprivileged", "verbosity", "version", "weak-sysctls",
    )
)
# fmt: on
_LONG_OF: Final = {
    "t": "tree",
    "D": "images-dir",
    "W": "work-dir",
    "o": "log-file",
    "r": "root",
    "J": "join-ns",
    "L": "libdir",
    "M": "ext-mount-map",
    "d": "restore-detached",
    "R": "leave-running",
    "s": "leave-stopped",
}
_SHORT_WITH_VALUE: Final = "tDorJWLM"
_SHORT_WITH_OPTIONAL: Final = "vx"
# What the drop-in does itself or must know of: CRIU is not to find it in a file that only CRIU reads.
_OURS: Final = ("images-dir", "leave-running", "prev-images-dir", "track-mem", "auto-dedup")
_DEFAULTS: Final = ("/etc/criu/default.conf", "~/.criu/default.conf")


class RefusedError(Exception):
    """The real CRIU must not run with these arguments; the message says why."""


@dataclass(slots=True)
class CommandLine:
    """A command line of CRIU.

    command: one of COMMANDS, or another word that passes on; values: {long option: its value, "" for a flag}, the last
    of each; rest: all arguments but the directories, the page server and --auto-dedup.
    """

    command: str = ""
    values: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)

    @property
    def images(self) -> str | None:
        """The images directory as given, None if it was not."""
        return self.values.get("images-dir")

    @property
    def work(self) -> str | None:
        """The work directory as given, None if it was not."""
        return self.values.get("work-dir")

    @property
    def pid(self) -> int:
        """Of `--tree`; 0 if there is none."""
        return self.number("tree")

    @property
    def leave_running(self) -> bool:
        """Whether the tree lives on after a dump."""
        return self.has("leave-running") or self.has("leave-stopped")

    def has(self, name: str) -> bool:
        """Whether an option was given."""
        return name in self.values

    def without(self, *names: str) -> list[str]:
        """All arguments but those options."""
        queue, kept = list(self.rest), []
        while queue and queue[0] != "--":
            word = queue.pop(0)
            value = [queue.pop(0)] if len(word) == 2 and word[1] in _SHORT_WITH_VALUE else []
            name = word[2:].partition("=")[0] if word.startswith("--") else _LONG_OF.get(word[1:])
            if not word.startswith("-") or name not in names:
                kept += [word, *value]
        return kept + queue

    def number(self, name: str) -> int:
        """Value of an option as a number; 0 if there is none."""
        value = self.values.get(name, "")
        return int(value) if value.isascii() and value.isdigit() else 0


def parse(arguments: list[str]) -> CommandLine:
    """Raises RefusedError."""
    line = CommandLine()
    doubt = ""
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word == "--":
            line.command = line.command or (queue[0] if queue else "")
            line.rest += [word, *queue]
            break
        if word.startswith("--"):
            unknown = _long(line, word, queue)
            doubt = doubt or unknown
        elif word.startswith("-") and len(word) > 1:
            _short(line, word, queue)
        else:
            line.command = line.command or word
            line.rest.append(word)
    sealed = (*COMMANDS, *_REFUSED_COMMANDS)
    if doubt and any(word in sealed for word in arguments):
        # CRIU takes abbreviations, and newer ones know more options: their values could be taken for the command.
        raise RefusedError(f"the option {doubt} is not known to sealpoint: write it in full")
    _check(line)
    return line


def _check(line: CommandLine) -> None:
    if line.command in _REFUSED_COMMANDS:
        raise RefusedError(
            f"criu {line.command}: {_REFUSED_COMMANDS[line.command]}: this version of sealpoint does not seal it"
        )
    if line.command not in COMMANDS:
        return
    for name in line.values:
        if reason := _REFUSED.get(name) or _REFUSED_FOR.get((line.command, name)):
            raise RefusedError(f"--{name}: {reason}")
        if name.startswith("tls"):
            raise RefusedError(f"--{name}: {_TLS}")
    check_defaults()


def _long(line: CommandLine, word: str, queue: list[str]) -> str:
    """Returns the option if it is not known."""
    name, equals, value = word[2:].partition("=")
    takes = name in WITH_VALUE
    if takes and not equals:
        value = queue.pop(0) if queue else ""
    if takes or name in FLAGS:
        _take(line, name, value, [f"--{name}={value}" if takes or equals else word])
        return ""
    line.rest.append(word)
    return "" if name.startswith("no-") and name[3:] in FLAGS else f"--{name}"


def _short(line: CommandLine, word: str, queue: list[str]) -> None:
    for at, letter in enumerate(word[1:], 1):
        attached = word[at + 1 :]
        if letter in _SHORT_WITH_VALUE:
            value = attached or (queue.pop(0) if queue else "")
            _take(line, _LONG_OF[letter], value, [f"-{letter}", value])
            return
        if letter in _SHORT_WITH_OPTIONAL:
            line.rest.append(f"-{letter}{attached}")
            return
        _take(line, _LONG_OF.get(letter, letter), "", [f"-{letter}"])


def _take(line: CommandLine, name: str, value: str, words: list[str]) -> None:
    line.values[name] = value
    # CRIU itself is to know of no page server.
    if name not in ("images-dir", "work-dir", "prev-images-dir", "auto-dedup", *_PAGE_SERVER):
        line.rest += words


def check_defaults() -> None:
    """CRIU's default configuration files.  Raises RefusedError."""
    for path in _DEFAULTS:
        check_file(os.path.expanduser(path))


def check_file(path: str) -> None:
    """A configuration file of CRIU's, which need not exist.  Raises RefusedError."""
    try:
        with open(path, errors="replace") as file:
            lines = file.read(1 << 20).splitlines()
    except (OSError, ValueError):
        return
    for number, text in enumerate(lines, 1):
        word = text.split("#", 1)[0].strip().split(" ", 1)[0].lstrip("-")
        name = word.split("=", 1)[0]
        if name in _REFUSED or name in (*_OURS, "lazy-pages", *_PAGE_SERVER):
            raise RefusedError(
                f"{path}, line {number}: the option {name} cannot be combined with sealing"
            )

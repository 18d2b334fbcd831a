"""CRIU's own command line, as far as the drop-in must understand it (CRIU's config.c: short_opts and long options).

Standard library only.  Options that would lead memory past the seal are refused by name, by abbreviation, and in
CRIU's default configuration files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

COMMANDS: Final = ("dump", "restore")
_REFUSED_COMMANDS: Final = ("pre-dump", "page-server", "lazy-pages", "dedup", "service")
_REFUSED: Final = {
    "page-server": "a page server would get memory in the clear",
    "ps-socket": "a page server would get memory in the clear",
    "lazy-pages": "lazy migration would send memory in the clear",
    "stream": "an image streamer would get memory in the clear; use sealpoint dump",
    "prev-images-dir": "increments are not sealed by this version of sealpoint",
    "track-mem": "increments are not sealed by this version of sealpoint",
    "auto-dedup": "auto-dedup is not sealed by this version of sealpoint",
    "config": "it could name options that lead past the seal; give CRIU's options one by one",
}
_TAKEN: Final = {"images-dir": "D", "work-dir": "W", "tree": "t"}
_SHORT_WITH_VALUE: Final = "tDorJWLM"
_SHORT_WITH_OPTIONAL: Final = "vx"
_DEFAULTS: Final = ("/etc/criu/default.conf", "~/.criu/default.conf")


class RefusedError(Exception):
    """The real CRIU must not run with these arguments; the message says why."""


@dataclass(slots=True)
class CommandLine:
    """A command line of CRIU.

    command: "dump", "restore", or another word that passes on; images, work: directories as given, None if not; pid: of
    `--tree`; leave_running: the tree lives on after the dump; rest: all arguments but the two directories.
    """

    command: str = ""
    images: str | None = None
    work: str | None = None
    pid: int = 0
    leave_running: bool = False
    rest: list[str] = field(default_factory=list)


def parse(arguments: list[str]) -> CommandLine:
    """Raises RefusedError."""
    line = CommandLine()
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word == "--":
            line.rest += [word, *queue]
            break
        if word.startswith("--"):
            _long(line, word, queue)
        elif word.startswith("-") and len(word) > 1:
            _short(line, word, queue)
        else:
            line.command = line.command or word
            line.rest.append(word)
    if line.command in _REFUSED_COMMANDS:
        raise RefusedError(
            f"criu {line.command} would write or send images in the clear: this version of sealpoint does not seal it"
        )
    if line.command in COMMANDS:
        check_defaults()
    return line


def _long(line: CommandLine, word: str, queue: list[str]) -> None:
    name, equals, value = word[2:].partition("=")
    for known in (*_REFUSED, *_TAKEN, "leave-running"):
        if known.startswith(name) and name not in (known, "") and name not in _REFUSED:
            raise RefusedError(f"write the option --{known} in full")  # CRIU takes abbreviations
    if name in _REFUSED:
        raise RefusedError(f"--{name}: {_REFUSED[name]}")
    if name in _TAKEN:
        if not equals:
            value = queue.pop(0) if queue else ""
        _take(line, _TAKEN[name], value)
        return
    line.leave_running |= name in ("leave-running", "leave-stopped")
    line.rest.append(word)


def _short(line: CommandLine, word: str, queue: list[str]) -> None:
    kept = "-"
    for at, letter in enumerate(word[1:], 1):
        attached = word[at + 1 :]
        if letter in _TAKEN.values():
            _take(line, letter, attached or (queue.pop(0) if queue else ""))
            break
        kept += letter
        line.leave_running |= letter in "Rs"
        if letter in _SHORT_WITH_OPTIONAL:
            kept += attached
            break
        if letter in _SHORT_WITH_VALUE:
            line.rest += [kept + attached] if attached else [kept, *queue[:1]]
            if not attached:
                del queue[:1]
            return
    if kept != "-":
        line.rest.append(kept)


def _take(line: CommandLine, letter: str, value: str) -> None:
    if letter == "D":
        line.images = value
    elif letter == "W":
        line.work = value
    else:
        line.pid = int(value) if value.isascii() and value.isdigit() else 0
        line.rest += ["-t", value]


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
        if name in _REFUSED or name in ("images-dir", "leave-running"):
            raise RefusedError(
                f"{path}, line {number}: the option {name} cannot be combined with sealing"
            )

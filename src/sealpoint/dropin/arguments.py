"""CRIU's own command line, as far as the drop-in must understand it.

Standard library only.  The words are taken apart as CRIU does (`sealpoint.criu.options`) and written anew in full, with
the settings of CRIU's configuration files before them, so that CRIU itself reads none.  Options and commands that would
lead memory past the seal, and those that are not known, are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sealpoint.criu.options import (
    END,
    SWITCHES,
    Given,
    UnknownError,
    asks_for_help,
    names_configuration,
    scan,
)
from sealpoint.dropin import criu_config
from sealpoint.dropin.criu_config import RefusedError, Setting

__all__ = ["COMMANDS", "CommandLine", "RefusedError", "parse"]

COMMANDS: Final = ("dump", "pre-dump", "restore", "dedup", "page-server", "lazy-pages")
RPC: Final = "swrk"
# Neither memory nor another process is in these.
_HARMLESS: Final = ("", "check", "cpuinfo", "exec", "show")
_REFUSED_COMMANDS: Final = {
    "service": "it would write images in the clear; clients that run criu themselves are served",
}
_REFUSED: Final = {
    "stream": "an image streamer would get memory in the clear; use sealpoint dump",
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
_INT_MAX: Final = 2**31 - 1
_DIGITS: Final = 20
# What we read ourselves, and CRIU by atoi, which makes something of every text.
_NUMBERS: Final = {"tree": _INT_MAX, "port": 65535, "ps-socket": _INT_MAX, "status-fd": _INT_MAX}
# CRIU itself is to know of no page server, and gets directories from us.
_TAKEN: Final = ("images-dir", "work-dir", "prev-images-dir", "auto-dedup", *_PAGE_SERVER)


@dataclass(slots=True)
class CommandLine:
    """A command line of CRIU.

    command: one of COMMANDS, RPC, or another word that passes on; operand: the word behind it; values: {long option:
    its value, "" for a flag}, the last of each; from_files: those of them that only a configuration file names; words:
    all arguments but those that name a configuration file, in full; rest: what is left for CRIU of them without the
    directories, the page server and --auto-dedup, with the settings of configuration files first; settings: those.
    """

    command: str = ""
    operand: str = ""
    values: dict[str, str] = field(default_factory=dict)
    from_files: frozenset[str] = frozenset()
    words: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)

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
        """The arguments for CRIU but those options."""
        end = self.rest.index(END) if END in self.rest else len(self.rest)
        kept = [
            word
            for word in self.rest[:end]
            if not (word.startswith("--") and word[2:].partition("=")[0] in names)
        ]
        return kept + self.rest[end:]

    def number(self, name: str, otherwise: int = 0) -> int:
        """Value of an option as a number, `otherwise` if it is none."""
        value = self.values.get(name, "")
        known = value.isascii() and value.isdigit() and len(value) <= _DIGITS
        return int(value) if known else otherwise


def parse(words: list[str], environ: Mapping[str, str] = os.environ) -> CommandLine:
    """The command line, with what configuration files add to it.  environ: says which.  Raises RefusedError."""
    if asks_for_help(words):  # CRIU looks for that first, everywhere, and does nothing else
        return CommandLine()
    try:
        given = list(scan(words))
    except UnknownError as error:
        return _doubtful(words, error)
    if any(option.name in ("help", "version") for option in given):
        return CommandLine()
    others = [option for option in given if not option.name]
    line = CommandLine(
        command=(others[0].value or "") if others else "",
        operand=(others[1].value or "") if len(others) > 1 else "",
    )
    if line.command in _REFUSED_COMMANDS:
        raise RefusedError(
            f"criu {line.command}: {_REFUSED_COMMANDS[line.command]}: this version of sealpoint does not seal it"
        )
    if line.command in _HARMLESS:
        return line
    if line.command not in (*COMMANDS, RPC):
        raise RefusedError(
            f"criu {line.command}: this command is not known to sealpoint: use a newer sealpoint, or call the real "
            "CRIU by its path if it handles no memory"
        )
    _fill(line, words, given, environ)
    _check(line)
    return line


def _doubtful(words: list[str], error: UnknownError) -> CommandLine:
    """Something is not as we know it: pass it on where no word could be a command that handles memory."""
    if any(word and not word.startswith("-") and word not in _HARMLESS for word in words):
        raise RefusedError(f"{error}: write it in full, or leave it out") from None
    return CommandLine()


def _fill(
    line: CommandLine, words: list[str], given: list[Given], environ: Mapping[str, str]
) -> None:
    file = _configuration_file(words, given)
    line.settings = criu_config.defaults(
        environ, skip_standard=file is not None or "--no-default-config" in words
    )
    if file is not None:
        line.settings += criu_config.read(file)
    line.rest.append("--no-default-config")
    for setting in line.settings:
        _take(line, setting.name, setting.value, setting.word)
    line.from_files = frozenset(line.values)
    for option in given:
        if option.name in ("config", "no-default-config"):
            continue
        line.words.append(option.word)
        if line.command == RPC and option.name not in ("", END):
            line.settings.append(
                criu_config.checked(option.name, option.value, "the command line of swrk")
            )
        if option.name not in ("", END):
            _take(line, option.name, option.value, option.word)
            line.from_files -= {option.name}
        else:
            line.rest.append(option.word)


def _configuration_file(words: list[str], given: list[Given]) -> str | None:
    """What `--config` names; the last one counts, as with CRIU.  Raises RefusedError."""
    found, own = None, set()
    for option in given:
        if option.name == "config":
            if not option.exact:
                raise RefusedError("the option --config is not written in full")
            found = option.value
            own.add(option.at)
    for at, word in enumerate(words):
        if names_configuration(word) and at not in own:
            raise RefusedError(
                f"the word {word!r}: CRIU would take it for --config and read a file, wherever it stands"
            )
    return found


def _check(line: CommandLine) -> None:
    for name in line.values:
        if reason := _REFUSED.get(name) or _REFUSED_FOR.get((line.command, name)):
            raise RefusedError(f"--{name}: {reason}")
        if name.startswith("tls"):
            raise RefusedError(f"--{name}: {_TLS}")
        if name in _NUMBERS and not 0 <= line.number(name, -1) <= _NUMBERS[name]:
            raise RefusedError(
                f"--{name}: {line.values[name][:40]!r} is not a number from 0 to {_NUMBERS[name]}"
            )
    criu_config.check_log(line.values.get("log-file", ""), "--log-file")


def _take(line: CommandLine, name: str, value: str | None, word: str) -> None:
    if name.startswith("no-") and name[3:] in SWITCHES:
        line.values.pop(name[3:], None)
    else:
        line.values[name] = value or ""
    if name.removeprefix("no-") not in _TAKEN:
        line.rest.append(word)

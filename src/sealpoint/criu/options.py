"""The options of CRIU's command line, 3.17 to 4.2.1, and how CRIU finds them among words (getopt_long of glibc).

Facts that a test compares with those versions.  CRIU's configuration files hold the same options.  Standard library
only: this loads at every start of the drop-in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Final, NamedTuple


class Value(Enum):
    """Whether an option has a value: an optional one stands behind "=" or in the same word."""

    NONE = "none"
    NEEDED = "needed"
    OPTIONAL = "optional"


# fmt: off
_NEEDED: Final = (
    "action-script", "address", "cgroup-dump-controller", "cgroup-props", "cgroup-props-file", "cgroup-root",
    "cgroup-yard", "close", "config", "empty-ns", "enable-fs", "ext-mount-map", "external", "feature",
    "file-validation", "freeze-cgroup", "ghost-limit", "images-dir", "inherit-fd", "irmap-scan-path", "join-ns",
    "libdir", "log-file", "lsm-mount-context", "lsm-profile", "network-lock", "pidfile", "port", "pre-dump-mode",
    "prev-images-dir", "ps-socket", "root", "skip-mnt", "status-fd", "timeout", "tls-cacert", "tls-cacrl",
    "tls-cert", "tls-key", "tree", "veth-pair", "work-dir",
)
_OPTIONAL: Final = ("cpu-cap", "ext-unix-sk", "manage-cgroups", "verbosity")
# Each of these exists with "no-" in front as well.
SWITCHES: Final = (
    "allow-uprobes", "auto-dedup", "daemon", "deprecated", "display-stats", "evasive-devices", "experimental",
    "extra", "file-locks", "force-irmap", "ghost-fiemap", "link-remap", "log-pid", "mntns-compat-mode",
    "page-server", "restore-detached", "restore-sibling", "shell-job", "skip-file-rwx-check", "skip-in-flight",
    "stream", "tcp-close", "tcp-established", "tls", "track-mem", "unprivileged", "weak-sysctls",
)
_FLAGS: Final = (
    "all", "enable-external-masters", "enable-external-sharing", "exec-cmd", "help", "lazy-pages", "leave-running",
    "leave-stopped", "ms", "no-default-config", "tls-no-cn-verify", "version",
)
# fmt: on
OPTIONS: Final = {
    **dict.fromkeys(_NEEDED, Value.NEEDED),
    **dict.fromkeys(_OPTIONAL, Value.OPTIONAL),
    **dict.fromkeys(SWITCHES, Value.NONE),
    **dict.fromkeys((f"no-{name}" for name in SWITCHES), Value.NONE),
    **dict.fromkeys(_FLAGS, Value.NONE),
}
# Options that a version after 3.17 added; an older CRIU refuses them itself.
SINCE: Final = {
    "skip-file-rwx-check": (4, 1, 1),
    "unprivileged": (4, 1, 1),
    "ghost-fiemap": (4, 1, 1),
    "allow-uprobes": (4, 2, 1),
}
SHORT: Final = {
    "t": "tree",
    "D": "images-dir",
    "W": "work-dir",
    "o": "log-file",
    "r": "root",
    "J": "join-ns",
    "L": "libdir",
    "M": "ext-mount-map",
    "d": "restore-detached",
    "S": "restore-sibling",
    "s": "leave-stopped",
    "R": "leave-running",
    "h": "help",
    "V": "version",
    "v": "verbosity",
    "x": "ext-unix-sk",
    "j": "shell-job",
    "l": "file-locks",
}


END: Final = "--"


class UnknownError(Exception):
    """A word that CRIU would not take for an option, or one that sealpoint does not know; `at`: its index."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.at = at


class Given(NamedTuple):
    """One option, or one other word, of a command line.

    name: of the option in full, with "no-" where that was said; "" for another word, END for the one that ends the
    options; value: None for an option without one, else the value or the other word; at: index of its first word;
    exact: its name was written in full.
    """

    name: str
    value: str | None
    at: int
    exact: bool = True

    @property
    def word(self) -> str:
        """One word that means the same to every CRIU."""
        if not self.name:
            return self.value or ""
        if self.name == END:
            return END
        return f"--{self.name}" if self.value is None else f"--{self.name}={self.value}"


def completions(name: str) -> list[str]:
    """The options that a beginning, which must not be empty, may mean; sorted."""
    return sorted(option for option in OPTIONS if option.startswith(name)) if name else []


def resolve(name: str, at: int = 0) -> str:
    """The option that a name or the beginning of one means.  Raises UnknownError."""
    if name in OPTIONS:
        return name
    found = completions(name)
    if len(found) > 1:
        raise UnknownError(f"the option --{name} may be {', '.join(found)}", at)
    if not found:
        raise UnknownError(f"the option --{name} is not known to sealpoint", at)
    return found[0]


def scan(words: Sequence[str]) -> Iterator[Given]:
    """What getopt_long finds, in order; all behind "--" are other words.  Raises UnknownError at the first mistake."""
    at = 0
    while at < len(words):
        word, first = words[at], at
        at += 1
        if word == END:
            yield Given(END, None, first)
            for rest in range(at, len(words)):
                yield Given("", words[rest], rest)
            return
        if word.startswith("--"):
            written, equals, value = word[2:].partition("=")
            name = resolve(written, first)
            kind = OPTIONS[name]
            if kind is Value.NONE and equals:
                raise UnknownError(f"the option --{name} has no value", first)
            given = value if equals else None
            if kind is Value.NEEDED and not equals:
                given, at = _next(words, at, f"--{name}", first), at + 1
            yield Given(name, given, first, written == name)
        elif word.startswith("-") and len(word) > 1:
            for name, value_ in _short(word, first):
                given = value_
                if OPTIONS[name] is Value.NEEDED and given is None:
                    given, at = _next(words, at, word, first), at + 1
                yield Given(name, given, first)
        else:
            yield Given("", word, first)


def _short(word: str, at: int) -> Iterator[tuple[str, str | None]]:
    for place, letter in enumerate(word[1:], 2):
        name = SHORT.get(letter)
        if name is None:
            raise UnknownError(f"the option -{letter} is not known to sealpoint", at)
        if OPTIONS[name] is not Value.NONE:
            yield name, word[place:] or None
            return
        yield name, None


def _next(words: Sequence[str], at: int, option: str, first: int) -> str:
    if at >= len(words):
        raise UnknownError(f"the option {option} needs a value", first)
    return words[at]


def names_configuration(word: str) -> bool:
    """Whether CRIU reads a configuration file because of this word, wherever it stands.

    CRIU looks at all words before getopt does, also at values and at what is behind "--".
    """
    return word == "--config" or "--config=" in word


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether CRIU shows its help and does nothing else.  It looks at all words, as above."""
    return "--help" in words or "-h" in words

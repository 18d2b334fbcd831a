"""Running `criu dump` and `criu restore` with --stream, and saying why they failed."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from sealpoint.criu import causes, schema
from sealpoint.criu.binary import CriuBinary
from sealpoint.criu.caller import Caller
from sealpoint.criu.gate import SCRIPT, Gate
from sealpoint.criu.options import (
    END,
    OPTIONS,
    SHORT,
    UnknownError,
    Value,
    completions,
    names_configuration,
    resolve,
    scan,
)
from sealpoint.criu.private_dir import PrivateDir
from sealpoint.environment import environment
from sealpoint.errors import (
    CriuError,
    FileError,
    SealpointError,
    SystemEnvironmentError,
    UsageError,
)

_LOG = "criu.log"

# Options that would lead memory past the seal or contradict what sealpoint sets; reason for the message.
_REFUSED = {
    "-D": "sealpoint decides where images go",
    "--images-dir": "sealpoint decides where images go",
    "-W": "CRIU's work directory is private; use --criu-log for its log",
    "--work-dir": "CRIU's work directory is private; use --criu-log for its log",
    "-o": "use --criu-log for CRIU's log",
    "--log-file": "use --criu-log for CRIU's log",
    "-t": "give the process to sealpoint with -t",
    "--tree": "give the process to sealpoint with -t",
    "--stream": "sealpoint sets it",
    "--page-server": "pages would leave unsealed",
    "--ps-socket": "pages would leave unsealed",
    "--lazy-pages": "pages would leave unsealed",
    "--prev-images-dir": "CRIU ignores it when it streams",
    "--track-mem": "CRIU ignores it when it streams",
    "--auto-dedup": "CRIU cannot do it when it streams",
    "--config": "give CRIU's options one by one",
    "-d": "use sealpoint's --detach",
    "--restore-detached": "use sealpoint's --detach",
    "-R": "use sealpoint's --leave-running",
    "--leave-running": "use sealpoint's --leave-running",
}
# CRIU's short options that take the rest of their word, or the next word, as a value
_SHORT_WITH_VALUE = "tDovxrJLWM"


def check_options(options: tuple[str, ...]) -> None:
    """CRIU options given by the user.  Raises UsageError for those that cannot work here, or that nobody knows."""
    try:
        list(scan(options))
    except UnknownError as error:
        raise UsageError(f"{error}, so it may lead memory elsewhere") from None
    for option in itertools.takewhile(lambda word: word != END, options):
        for name in _names(option):
            if name in _REFUSED:
                raise UsageError(f"CRIU's option {name} cannot be used here", hint=_REFUSED[name])
    if hidden := [word for word in options if names_configuration(word)]:
        raise UsageError(
            f"CRIU would take {hidden[0]!r} for --config", hint="give CRIU's options one by one"
        )


def misplaced(option: str) -> tuple[str, str] | None:
    """What to say, message and hint, of an option that sealpoint does not know; None if CRIU does not know it either.

    option: as given, without a value: "-j", "--shell-job", or the beginning of a name.
    """
    given = option.partition("=")[0]
    try:
        name = resolve(given[2:]) if given.startswith("--") else SHORT.get(given[1:2])
    except UnknownError:
        name, found = None, completions(given[2:])
        if found:
            hint = f"it may be {', '.join(f'-- --{n}' for n in found)}; see also: --help"
            return f"{given} is the beginning of CRIU's options, which go after --", hint
    if name is None:
        return None
    full = f"--{name}"
    shown = given if given == full else f"{given} ({full})"
    for refused in (full, given[:2]):
        if refused in _REFUSED:
            return f"{shown} is one of CRIU's options, and cannot be used here", _REFUSED[refused]
    value = "" if OPTIONS[name] is not Value.NEEDED else " VALUE"
    return (
        f"{shown} is one of CRIU's options, which go after --",
        f"at the end: -- {full}{value}",
    )


def _names(option: str) -> Iterator[str]:
    """Every option that CRIU may take one of its arguments for: it knows abbreviations, and short ones in one word."""
    if option.startswith("--"):
        word = option.split("=", 1)[0]
        if len(word) > 2:
            yield from (name for name in _REFUSED if name.startswith(word))
    elif option.startswith("-"):
        for letter in option[1:]:
            yield f"-{letter}"
            if letter in _SHORT_WITH_VALUE:
                return


@dataclass(slots=True)
class CriuRun:
    """One CRIU process working in a private directory in memory, which it inherits as its working directory.

    own_group: in a process group of its own, so that Ctrl-C reaches sealpoint alone, which then lets CRIU clean up.
    """

    criu: CriuBinary
    directory: PrivateDir
    gate: Gate
    own_group: bool = True
    process: subprocess.Popen[bytes] | None = None
    _log_fd: int | None = None
    _pidfd: int | None = None
    # What CRIU says before it opens its log: wrong options, for instance.
    _early: int = field(default_factory=lambda: os.memfd_create("criu-output", os.MFD_CLOEXEC))

    def start(self, command: str, arguments: list[str], caller: Caller) -> None:
        """Start `criu COMMAND`.  Raises SystemEnvironmentError."""
        program = os.path.abspath(self.criu.path)
        argv = [program, command, "--no-default-config", "--stream", "-D", ".", "-W", "."]
        argv += ["-o", _LOG, "--action-script", f"./{SCRIPT}", *arguments, *caller.words]
        try:
            self.process = subprocess.Popen(
                argv,
                cwd=self.directory.path,
                stdin=subprocess.DEVNULL if self.own_group and not caller.terminal else None,
                stdout=self._early if self.own_group else None,
                stderr=self._early if self.own_group else None,
                env=environment(criu_fault=self.criu.fault),
                process_group=0 if self.own_group else None,
                pass_fds=caller.descriptors,
            )
        except OSError as error:
            raise SystemEnvironmentError(f"cannot run {self.criu.path}: {error.strerror}") from None
        self._pidfd = os.pidfd_open(self.process.pid)

    def wait(self, seconds: float | None = None, wake: int | None = None) -> int | None:
        """CRIU's exit status (negative: killed by that signal), or None if it still runs.

        None comes after `seconds`, or when the descriptor `wake` becomes readable.

        Popen.wait with a timeout polls and notices the end up to 50 ms late; a pidfd tells at once.
        """
        assert self.process is not None and self._pidfd is not None  # noqa: PT018 - started
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if wake is not None:
            poll.register(wake, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)}
        if self._pidfd not in ready:
            return None
        self._end_orphans()
        return self.process.wait()

    def _end_orphans(self) -> None:
        # A CRIU that was killed leaves its own children behind, some stopped for ever.  While it is not reaped, its
        # process group is surely its own.
        if self.own_group and self.process is not None and self.process.returncode is None:
            end = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
            if end is not None and end.si_code != os.CLD_EXITED:
                os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self, patience: float) -> None:
        """After its pipes were closed: CRIU undoes what it did and ends by itself; only if it does not, kill it."""
        if self.wait(patience) is None and self.process is not None:
            self.process.kill()
            self.wait()

    def log(self) -> str:
        """CRIU's log so far, with what it said before it opened it."""
        early = os.pread(self._early, 65536, 0).decode(errors="replace")
        return early + self.directory.read_text(_LOG)

    def keep_log(self, path: str) -> None:
        """Where `save_log` will write CRIU's log, 0600.  It holds names, paths and addresses, no memory.

        Raises SystemEnvironmentError: in the end it would be too late, the dumped tree is gone then.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._log_fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise SystemEnvironmentError(f"cannot write {path}: {error.strerror}") from None

    def save_log(self) -> None:
        """Write the log if it is to be kept.  A full disk cuts it short: it is no reason to fail."""
        if self._log_fd is None:
            return
        with contextlib.suppress(OSError), os.fdopen(self._log_fd, "w") as file:
            file.write(self.log())
        self._log_fd = None

    def stats(self, name: str) -> dict[str, int]:
        """CRIU's own statistics ("dump" or "restore"): microseconds and page counts.  Empty if there are none."""
        try:
            with open(f"{self.directory.path}/stats-{name}", "rb") as file:
                data = file.read(65536)
            entry = next(schema.records(data, "stats_entry", f"stats-{name}"))
        except (OSError, FileError, StopIteration):
            return {}
        part = getattr(entry, name)
        return {f.name: value for f, value in part.ListFields()}

    def failure(self, command: str, code: int) -> SealpointError:
        """The error to raise for a CRIU that ended with `code`."""
        found = causes.cause(self.log())
        if found.environment:
            return SystemEnvironmentError(found.text, hint=found.hint)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        message = f"criu {command} {how}"
        return CriuError(f"{message}: {found.text}" if found.text else message, hint=found.hint)

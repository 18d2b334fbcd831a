"""Why CRIU failed, read from its log: the first error that is a cause, in CRIU's words, and what you can do.

CRIU goes on complaining after the cause ("Unable to open fd=3", "Restoring FAILED."), so the last lines say little.
The list is of failures that a test provokes, and of a few that this machine's tests cannot provoke
(`docs/reference/troubleshooting.md`).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Cause(NamedTuple):
    """text: what CRIU wrote; hint: what to do; environment: the machine is at fault, not the process or the files."""

    text: str
    hint: str = ""
    environment: bool = False


class _Known(NamedTuple):
    pattern: str
    hint: str
    # What to say in place of CRIU's line where nobody would understand that.
    instead: str = ""


_SHELL_JOB: Final = (
    "dump the session's first process, or give: -- --shell-job (to dump and to restore)"
)
_CHANGED: Final = (
    "the file has changed since the dump: put back what it was, or restore on another copy"
)
_GONE: Final = "make it again where it was before you restore"

_KNOWN: Final = (
    # --- the machine ---
    _Known(
        r"Unexpected rt vDSO area bounds",
        "install CRIU 4.0 or newer, or name one with --criu or SEALPOINT_CRIU",
        "this CRIU does not run on this kernel (it does not know the kernel's vDSO)",
    ),
    _Known(
        r"The criu itself is within dumped tree",
        "run it from another session, not from a child of the process",
        "sealpoint runs inside the process tree that it should dump",
    ),
    _Known(
        r"Can't get rlimit|Can't dump (?:foreign )?rlimit",
        "run sealpoint with CAP_SYS_RESOURCE, or dump a process of root",
        "CRIU may not read the limits of this process (CAP_SYS_RESOURCE is missing)",
    ),
    # --- dump ---
    _Known(r"(?:A )?session leader of .* is outside of its pid namespace", _SHELL_JOB),
    _Known(r"is not a session leader", _SHELL_JOB),
    _Known(r"Found slave peer index \d+ without correspond master peer", _SHELL_JOB),
    _Known(r"Some file locks are hold by dumping tasks", "give: -- --file-locks"),
    _Known(r"Can't create link remap for .*Use link-remap option", "give: -- --link-remap"),
    _Known(
        r"Can't dump ghost file .* increase limit",
        "the deleted file is large: give a larger limit, for instance -- --ghost-limit 64M",
    ),
    _Known(
        r"Connected TCP socket|consider using --tcp-established",
        "give: -- --tcp-established, or -- --tcp-close",
    ),
    _Known(
        r"External socket is used|Consider using --ext-unix-sk",
        "the socket's other end is outside of the tree: give -- --ext-unix-sk",
    ),
    _Known(
        r"doesn't live in IPC ns",
        "CRIU dumps System V shared memory only if the tree has a separate IPC namespace (unshare --ipc)",
    ),
    _Known(
        r"Unseizable non-zombie \d+ found",
        "something traces the process: end its debugger or strace",
    ),
    _Known(
        r"Can't dump file \d+ of that type",
        "CRIU cannot dump this kind of descriptor: let the process close it first",
    ),
    _Known(
        r"Can't lookup mount=\d+ for fd=\d+ path=/secretmem",
        "CRIU cannot dump secret memory (memfd_secret): let the process close it first",
    ),
    _Known(
        r"Can't lookup mount=",
        "the file is on a mount that the process's mount namespace does not show",
    ),
    _Known(
        r"Can't retrieve FDs from socket",
        "the process holds a descriptor that cannot be passed on, for instance of io_uring",
    ),
    _Known(
        r"sockets: Can't get \d+:\d+ opt: Operation not supported",
        "this kernel lacks an option of sockets that CRIU reads: such a socket cannot be dumped here",
    ),
    # --- restore ---
    _Known(r"File .* has bad size \d+ \(expect \d+\)", _CHANGED),
    _Known(r"File .* has bad mode", "give the file the permissions that it had"),
    _Known(r"File .* has bad build-?ID", _CHANGED),
    _Known(r"Can't open file .* on restore: No such file or directory", _GONE),
    _Known(r"Can't open fake fifo .*: No such file or directory", _GONE),
    _Known(r"fsnotify: Unable to open .*: No such file or directory", _GONE),
    _Known(
        r"Can't fork for \d+: File exists",
        "another process has that pid, perhaps the one that was dumped: end it, or restore in a pid namespace",
    ),
    _Known(
        r"[Cc]an't bind .*: Address already in use|bind.*Address already in use",
        "another process has the address: end it, or restore in a network namespace",
    ),
    _Known(
        r"No space left on device",
        "a file system is full: free some space and try again",
    ),
    _Known(
        r"cg: .*[Ff]ailed|cg: .*(?:Can't|Unable)",
        "the cgroup cannot be made as it was: make it first, or give -- --manage-cgroups=ignore",
    ),
)
_OTHERWISE: Final = "--criu-log FILE keeps CRIU's whole log; -- -v4 makes it longer"
# What CRIU logs as an error and goes on.
_HARMLESS: Final = re.compile(r"RLIMIT_NOFILE|^tun: Unable to create tun:|^net: Unable to get tun")
# What follows from something that was said before.
_CONSEQUENCE: Final = re.compile(
    r"(?:Dumping|Restoring|Pre-dumping) FAILED|^\d+ (?:exited|killed)|^Dump \w+ \(pid: \d+\) failed"
)
_ERROR: Final = re.compile(
    r"\s*(?:\([\d.]+\)\s*)?(?:pie: )?(?:\s*\d+: )?(?:Error \([^)]*\)|criu): ?(.*)"
)


def errors(log: str) -> list[str]:
    """The messages of all errors of a log, without those that mean nothing."""
    found = (match[1].strip() for line in log.splitlines() if (match := _ERROR.match(line)))
    return [message for message in found if message and not _HARMLESS.search(message)]


def cause(log: str) -> Cause:
    """The first error that is known, else the first that is no consequence; an empty text if there is none."""
    messages = errors(log)
    for message in messages:
        for known in _KNOWN:
            if re.search(known.pattern, message):
                return Cause(known.instead or message, known.hint, environment=bool(known.instead))
    first = next((m for m in messages if not _CONSEQUENCE.search(m)), next(iter(messages), ""))
    return Cause(first, _OTHERWISE)

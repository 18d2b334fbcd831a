"""What the kernel and the machine offer, and where plaintext could get out: swap, core dumps, leftovers."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from typing import Final

from sealpoint.criu.fuse import Attributes, Filesystem, FuseServer
from sealpoint.criu.private_dir import PrivateDir, swap_warning
from sealpoint.machine.finding import Finding, fail, guarded, ok, warn
from sealpoint.machine.real import is_dropin
from sealpoint.names import proc, proc_lines, unmangle

_CAPABILITIES: Final = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24}
_CHECKPOINT_RESTORE: Final = 40
_SMALL_SHM: Final = 64 * 1024 * 1024
_SMALL_DISK: Final = 1024 * 1024 * 1024
_OLD_HELPER: Final = 600.0  # seconds after which a helper is worth a line
_STORAGE: Final = (
    "/",
    "/var/lib/containers",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/kubelet/checkpoints",
)
SYS: Final = "/sys"
PROC: Final = "/proc"


def check(*, root: bool) -> Iterator[Finding]:
    """All of it."""
    yield from guarded("rights", capabilities)
    if root:
        yield from guarded("kernel", fuse)
        yield from guarded("kernel", private_directory)
    yield from guarded("leaks", swap)
    yield from guarded("leaks", core_pattern)
    yield from guarded("machine", cgroups)
    yield from guarded("machine", shared_memory)
    yield from guarded("machine", disk_space)
    yield from guarded("leftovers", leftover_mounts)
    yield from guarded("leftovers", helpers)


def capabilities() -> list[Finding]:
    """What this process may do; services may have less."""
    bits = 0
    for line in proc_lines(f"{PROC}/self/status"):
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not bits >> bit & 1]
    found = []
    if "CAP_SYS_RESOURCE" in missing:
        text = "CAP_SYS_RESOURCE is missing: processes of other users than root cannot be dumped"
        found.append(warn("rights", text, "run engines with all capabilities"))
    if "CAP_SYS_ADMIN" in missing and bits >> _CHECKPOINT_RESTORE & 1:
        text = "CAP_CHECKPOINT_RESTORE alone: CRIU may work, but nothing can be mounted"
        found.append(fail("rights", text, "CAP_SYS_ADMIN is needed"))
    elif "CAP_SYS_ADMIN" in missing:
        text = "neither CAP_SYS_ADMIN nor CAP_CHECKPOINT_RESTORE: no checkpoints"
        found.append(fail("rights", text, "run it as root, outside of a container"))
    if "CAP_SYS_PTRACE" in missing:
        found.append(fail("rights", "CAP_SYS_PTRACE is missing: CRIU cannot look into processes"))
    return found or [ok("rights", "CRIU has the capabilities that it needs")]


class _Probe(Filesystem):
    """A directory with one name in it."""

    def getattr(self, node: int) -> Attributes:
        return Attributes(node, stat.S_IFDIR | 0o500)

    def readdir(self, node: int) -> list[tuple[str, Attributes]]:
        return [("probe", Attributes(node + 1, stat.S_IFREG | 0o400))]


def fuse() -> list[Finding]:
    """Mounts one and looks into it."""
    server = FuseServer(_Probe(), read_only=True, threads=1)
    try:
        if os.listdir(server.path) != ["probe"]:
            return [fail("kernel", "a FUSE mount shows something else than it should")]
    finally:
        server.close()
    return [ok("kernel", "FUSE works, mounted where no path leads")]


def private_directory() -> list[Finding]:
    """fsopen and fsmount of a tmpfs."""
    with PrivateDir() as directory:
        os.mkdir(f"{directory.path}/probe")
    found = [ok("kernel", "fsopen and fsmount work: private directories in memory")]
    if said := swap_warning():
        found.append(warn("leaks", said, "encrypt swap (crypttab option swap), or swapoff -a"))
    return found


def swap() -> list[Finding]:
    """Whether memory could reach a disk in the clear, as far as can be told."""
    areas = [line.split() for line in proc_lines(f"{PROC}/swaps")[1:]]
    if not areas:
        return [ok("leaks", "no swap: memory does not reach a disk")]
    found = []
    for area in areas:
        path = unmangle(area[0])
        if reason := _swap_protection(path):
            found.append(ok("leaks", f"swap on {path}: {reason}"))
        else:
            text = f"swap on {path} is not known to be encrypted: memory could reach the disk"
            found.append(warn("leaks", text, "encrypt it (crypttab option swap), or swapoff -a"))
    return found


def _swap_protection(path: str) -> str:
    try:
        info = os.stat(path)
    except OSError:
        return ""
    device = info.st_rdev if stat.S_ISBLK(info.st_mode) else info.st_dev
    node = os.path.realpath(f"{SYS}/dev/block/{os.major(device)}:{os.minor(device)}")
    if os.path.basename(node).startswith("zram"):
        backing = _text(f"{node}/backing_dev")
        return "compressed memory (zram)" if backing in ("", "none") else ""
    return "encrypted (dm-crypt)" if _encrypted(node) else ""


def _encrypted(node: str, depth: int = 8) -> bool:
    """A device-mapper crypt device, or one that is made of nothing else."""
    if _text(f"{node}/dm/uuid").startswith("CRYPT-"):
        return True
    parent = node if os.path.isdir(f"{node}/slaves") else os.path.dirname(node)
    try:
        below = [os.path.realpath(f"{parent}/slaves/{n}") for n in os.listdir(f"{parent}/slaves")]
    except OSError:
        return False
    return bool(below) and depth > 0 and all(_encrypted(n, depth - 1) for n in below)


def _text(path: str) -> str:
    try:
        return proc(path).strip()
    except OSError:
        return ""


def core_pattern() -> list[Finding]:
    """Where the memory of a crashed process goes."""
    pattern = _text(f"{PROC}/sys/kernel/core_pattern")
    if pattern.startswith("|"):
        program = pattern[1:].split(" ", 1)[0]
        return [
            warn(
                "leaks",
                f"core dumps go to {program}, whatever limits say: if CRIU or a restored process "
                "crashes, its memory is stored in the clear",
                "sysctl kernel.core_pattern=core, or let that program store nothing",
            )
        ]
    return [ok("leaks", "core dumps obey the limits of the process")]


def cgroups() -> list[Finding]:
    """For the record: engines and freezers differ by it."""
    kinds: dict[str, list[str]] = {}
    for line in proc_lines(f"{PROC}/self/mountinfo"):
        head, _, tail = line.partition(" - ")
        kinds.setdefault(tail.split(" ")[0], []).append(head.split(" ")[4])
    if "cgroup" in kinds:
        version = "v1, with v2 beside it" if "cgroup2" in kinds else "v1"
    elif "cgroup2" in kinds:
        version = "v2"
    else:
        return [warn("machine", "no cgroups are mounted: container engines do not work")]
    return [ok("machine", f"cgroups {version}")]


def shared_memory() -> list[Finding]:
    """The size of /dev/shm."""
    if not os.path.isdir("/dev/shm"):  # noqa: S108 - the real one
        return [warn("machine", "there is no /dev/shm")]
    info = os.statvfs("/dev/shm")  # noqa: S108
    size = info.f_blocks * info.f_frsize
    text = f"/dev/shm has {_size(size)}, {_size(info.f_bavail * info.f_frsize)} free"  # noqa: S108 - looked at, not written
    if size < _SMALL_SHM:
        hint = "mount -o remount,size=50% /dev/shm"
        return [warn("machine", f"{text}: too little for processes that share memory", hint)]
    return [ok("machine", text)]


def disk_space() -> list[Finding]:
    """Where engines put checkpoints."""
    found, seen = [], set()
    for path in _STORAGE:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            device = os.stat(path).st_dev
            if device in seen:
                continue
            seen.add(device)
            info = os.statvfs(path)
            free = info.f_bavail * info.f_frsize
            text = f"{_size(free)} free in {path}"
            if free < _SMALL_DISK and not info.f_flag & os.ST_RDONLY:
                text += ": a dump that does not fit fails, and the container runs on"
                found.append(warn("machine", text))
            else:
                found.append(ok("machine", text))
    return found


def leftover_mounts() -> list[Finding]:
    """Mounts of `sealpoint mount`, alive or without their server."""
    found = []
    for line in proc_lines(f"{PROC}/self/mountinfo"):
        head, _, tail = line.partition(" - ")
        if tail.split(" ")[0] != "fuse.sealpoint":
            continue
        path = unmangle(head.split(" ")[4])
        try:
            os.stat(path)
        except OSError:
            text = f"the mount on {path} has lost its server"
            found.append(warn("leftovers", text, f"umount {path}"))
        else:
            text = f"{path} shows a sealed file in the clear to root"
            found.append(warn("leftovers", text, f"sealpoint umount {path}"))
    return found or [ok("leftovers", "no sealpoint mounts")]


def helpers() -> list[Finding]:
    """Processes of the drop-in: they end with their engine's call."""
    found, busy = [], 0
    for entry in os.listdir(PROC):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            if not _is_helper(entry):
                continue
            age = _age(entry)
            if age < _OLD_HELPER:
                busy += 1
                continue
            text = f"process {entry} of the drop-in has been running for {age / 60:.0f} minutes"
            found.append(warn("leftovers", text, f"if no checkpoint is being made: kill {entry}"))
    if busy:
        found.append(ok("leftovers", f"{busy} process(es) of the drop-in at work"))
    return found or [ok("leftovers", "no processes of the drop-in")]


def _is_helper(pid: str) -> bool:
    with open(f"{PROC}/{pid}/cmdline", "rb") as file:
        words = [os.fsdecode(w) for w in file.read(8192).split(b"\0")]
    return len(words) > 2 and words[1] == "-I" and is_dropin(f"{PROC}/{pid}/root{words[2]}")


def _age(pid: str) -> float:
    started = int(proc(f"{PROC}/{pid}/stat").rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def _size(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"

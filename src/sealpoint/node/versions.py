"""Versions of the bundle side by side on a host: placed whole, verified, and removed when nobody uses them.

Everything is done below a descriptor of the directory of all versions, which root alone can change.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import stat
import subprocess
from typing import Final

from sealpoint.environment import environment
from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.machine.files import remove_in, status_in, write_in
from sealpoint.node.bundle import Bundle, Listing
from sealpoint.node.host import Host, UnsupportedError

_PIECE: Final = 1 << 20
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_MAX_LISTING: Final = 16 * 1024 * 1024
_PATIENCE: Final = 120.0
LABEL: Final = "system_u:object_r:bin_t:s0"
_LABEL_NAME: Final = "security.selinux"


def list_file(identity: str) -> str:
    """The file beside a version that lists what is in it."""
    return f"{identity}.json"


def staging(identity: str) -> str:
    """The directory in which a version is put together."""
    return f".new-{identity}"


def listing_of(versions: int, identity: str) -> Listing | None:
    """None if there is none.  Raises OSError, FileError."""
    try:
        with open(os.open(list_file(identity), _READ, dir_fd=versions), "rb") as file:
            return Listing.decode(file.read(_MAX_LISTING))
    except FileNotFoundError:
        return None


def stage(versions: int, bundle: Bundle, *, label: bool) -> list[str]:
    """Copy a bundle to its staging directory, durably, and start it there; returns warnings.

    Raises OSError, UnsupportedError, FileError: the bundle changed meanwhile.
    """
    write_in(versions, list_file(bundle.identity), bundle.listing.encode(), 0o644)
    name = staging(bundle.identity)
    _clear(versions, name, bundle.listing)
    os.mkdir(name, 0o755, dir_fd=versions)
    top = os.open(name, _DIRECTORY, dir_fd=versions)
    try:
        os.fchmod(top, 0o755)
        _copy(top, bundle)
        warnings = _label(top, bundle.listing) if label else []
        if ctypes.CDLL(None, use_errno=True).syncfs(top) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        _require_start(top)
    finally:
        os.close(top)
    return warnings


def _copy(top: int, bundle: Bundle) -> None:
    for directory in bundle.listing.directories:
        os.mkdir(directory, 0o755, dir_fd=top)
        os.chmod(f"/proc/self/fd/{top}/{directory}", 0o755)
    placed: dict[tuple[int, int], str] = {}  # programs are links to one file
    for name, (digest, is_program) in bundle.listing.files.items():
        source = os.open(os.path.join(bundle.path, name), _READ)
        try:
            info = os.fstat(source)
            key = (info.st_dev, info.st_ino)
            if info.st_nlink > 1 and key in placed:
                os.link(placed[key], name, src_dir_fd=top, dst_dir_fd=top, follow_symlinks=False)
                continue
            _copy_file(source, top, name, digest, 0o755 if is_program else 0o644)
            placed[key] = name
        finally:
            os.close(source)
    for name, target in bundle.listing.links.items():
        os.symlink(target, name, dir_fd=top)


def _copy_file(source: int, top: int, name: str, digest: str, mode: int) -> None:
    found = hashlib.sha256()
    target = os.open(name, _NEW, mode, dir_fd=top)
    try:
        os.fchmod(target, mode)
        while piece := os.read(source, _PIECE):
            found.update(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(target, view) :]
    finally:
        os.close(target)
    if found.hexdigest() != digest:
        raise FileError(f"{name} of the bundle changed while it was copied")


def _require_start(top: int) -> None:
    """What does not start is never switched to."""
    hint = "is it the image for this host's architecture?"
    try:
        done = subprocess.run(
            [f"/proc/self/fd/{top}/bin/sealpoint", "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
            env=environment(),
            pass_fds=(top,),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = getattr(error, "strerror", "") or "no answer"
        raise UnsupportedError(
            "does-not-start", f"what was installed does not start: {why}", hint=hint
        ) from None
    if done.returncode:
        raise UnsupportedError("does-not-start", "what was installed does not start", hint=hint)


def _label(top: int, listing: Listing) -> list[str]:
    """Give SELinux's label for programs to all of it; returns warnings."""
    for name in (*listing.directories, *listing.files, *listing.links, "."):
        problem = label_problem(f"/proc/self/fd/{top}/{name}")
        if problem:
            return [f"SELinux: {name} of the bundle has no label {LABEL}: {problem}"]
    return []


def label_problem(path: str) -> str:
    """Label one file for SELinux and look whether it took; returns why it did not."""
    wanted = LABEL.encode() + b"\0"
    try:
        os.setxattr(path, _LABEL_NAME, wanted, follow_symlinks=False)
        now = os.getxattr(path, _LABEL_NAME, follow_symlinks=False)
    except OSError as error:
        return error.strerror or "refused"
    return "" if now.rstrip(b"\0") == wanted.rstrip(b"\0") else "it is ignored there"


def differs(versions: int, identity: str, listing: Listing) -> str:
    """The first file of a version that is not as it was placed; "" if all are."""
    top = os.open(identity, _DIRECTORY, dir_fd=versions)
    try:
        for name in (*listing.files, *listing.links):
            if not _is_ours(top, name, listing):
                return f"{identity}/{name}"
    finally:
        os.close(top)
    return ""


def users(host: Host, versions: int, identity: str, listing: Listing) -> list[int]:
    """Pids of the host's processes that run a program of a version.  Raises OSError.

    Every program of a bundle runs as its launcher or by a loader in it, so /proc/PID/exe tells.
    """
    files: set[tuple[int, int]] = set()
    for name in (identity, staging(identity)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            top = os.open(name, _DIRECTORY, dir_fd=versions)
            try:
                found = (status_in(top, file) for file in listing.files)
                files |= {(info.st_dev, info.st_ino) for info in found if info is not None}
            finally:
                os.close(top)
    using = []
    for pid in host.pids():
        try:
            with host.process(pid) as process:
                program = process.leads_to("exe") if process is not None else None
        except PermissionError:
            raise SystemEnvironmentError(
                f"what process {pid} of the host runs cannot be seen",
                hint="the container must be privileged",
            ) from None
        if program is not None and (program.st_dev, program.st_ino) in files:
            using.append(pid)
    return using


def remove(versions: int, identity: str, listing: Listing) -> list[str]:
    """Remove what was placed and is as it was; returns what is left, as paths below the versions."""
    _clear(versions, staging(identity), listing)
    left = []
    try:
        top = os.open(identity, _DIRECTORY, dir_fd=versions)
    except FileNotFoundError:
        pass
    else:
        try:
            for name in (*listing.files, *listing.links):
                if status_in(top, name) is None:
                    continue
                if _is_ours(top, name, listing):
                    os.unlink(name, dir_fd=top)
                else:
                    left.append(f"{identity}/{name}: it was changed since")
            left += _remove_directories(top, listing, identity)
        finally:
            os.close(top)
        try:
            os.rmdir(identity, dir_fd=versions)
        except OSError:
            left.append(f"{identity}: it is not empty")
    if not left:
        remove_in(versions, list_file(identity))
    return left


def _remove_directories(top: int, listing: Listing, identity: str) -> list[str]:
    left = []
    for name in sorted(listing.directories, key=lambda d: d.count("/"), reverse=True):
        try:
            os.rmdir(name, dir_fd=top)
        except FileNotFoundError:
            continue
        except OSError:
            left.append(f"{identity}/{name}: it is not empty")
    return left


def _clear(versions: int, name: str, listing: Listing) -> None:
    """Remove what an interrupted run staged, however much of it there is.  Raises SystemEnvironmentError, OSError."""
    try:
        top = os.open(name, _DIRECTORY, dir_fd=versions)
    except FileNotFoundError:
        return
    try:
        for file in (*listing.files, *listing.links):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(file, dir_fd=top)
        left = _remove_directories(top, listing, name)
    finally:
        os.close(top)
    try:
        os.rmdir(name, dir_fd=versions)
    except OSError:
        what = left[0] if left else f"{name}: it is not empty"
        raise SystemEnvironmentError(
            f"an unfinished installation holds something else: {what}", hint="move it away"
        ) from None


def content(place: int, name: str) -> str | None:
    """SHA-256 of a regular file, "" for anything else, None if there is nothing.  Raises OSError."""
    info = status_in(place, name)
    if info is None:
        return None
    if not stat.S_ISREG(info.st_mode):
        return ""
    with open(os.open(name, _READ, dir_fd=place), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_ours(top: int, name: str, listing: Listing) -> bool:
    try:
        if name in listing.links:
            return os.readlink(name, dir_fd=top) == listing.links[name]
        with open(os.open(name, _READ, dir_fd=top), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == listing.files[name][0]
    except OSError:
        return False

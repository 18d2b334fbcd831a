"""Install, update and remove the bundle and the drop-in on a host, and say what its runtimes find.

PREFIX/versions/ID    bundles, each with a list of its files beside it
PREFIX/current        a link to the one that starts from now on; exchanged by one rename
PREFIX/bin/criu       the drop-in, which starts the Python of `current`
PREFIX/node.json      what is ours (record)

A process that runs keeps the version that it was started from: nothing in a version ever changes, and it is removed
only by a later run than the one that replaced it, and when no process uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.machine.files import NEW_SUFFIX, remove_in, status_in, write_in
from sealpoint.machine.real import MARK
from sealpoint.node import bundle as bundles, checks, record, signer, unit, versions
from sealpoint.node.host import Host
from sealpoint.node.record import READY, REMOVING, STAGED, NodeRecord
from sealpoint.node.runtimes import Runtime, running

DIRECTORY: Final = "/opt/sealpoint"
_VERSIONS: Final = "versions"
_CURRENT: Final = "current"
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class NodeStatus(NamedTuple):
    """What is on a host.

    version: identity of the one that starts from now on, "" for none; others: older ones that are still there; restart:
    services that find the drop-in only after `systemctl daemon-reload` and a restart; signer: public half of the host's
    signing key, if there is one.
    """

    version: str
    others: list[str]
    runtimes: list[Runtime]
    restart: list[str]
    warnings: list[str]
    signer: str = ""

    @property
    def used(self) -> bool:
        """Whether every runtime that runs finds the drop-in."""
        return bool(self.version) and all(runtime.ours for runtime in self.runtimes)


def install(name: str, directory: str = DIRECTORY, *, with_signer: bool = False) -> NodeStatus:
    """name: where the host's root directory is mounted.  May be repeated, and updates.

    with_signer: make the host's signing key, if it has none.

    Raises SealpointError; UnsupportedError: nothing was changed.
    """
    directory = checks.check_name(directory)
    bundle = bundles.own()
    with Host(name) as host:
        checks.machine(host, os.uname().release)
        checks.target(host, directory)
        checks.services(host, running(host, f"{directory}/bin"))
        try:
            with _locked(host, directory):
                return _install(host, directory, bundle, with_signer=with_signer)
        except OSError as error:
            what = f" ({error.filename})" if error.filename else ""
            raise SystemEnvironmentError(
                f"the host cannot be written to: {error.strerror}{what}"
            ) from None


def _install(
    host: Host, directory: str, bundle: bundles.Bundle, *, with_signer: bool
) -> NodeStatus:
    _forget_unborn(host, directory)
    if not host.is_directory(directory):
        _create(host, directory)
    top = host.directory(directory, "the directory")
    try:
        known = _known(top, directory)
        if known is None:
            known = NodeRecord()
            known.save(top)
        before = _current(top)
        warnings = _place(host, top, known, bundle)
        warnings += _write_dropin(host, top, known, directory)
        if with_signer:
            _make_signer(host, top, known)
        _set_paths(host, top, known, directory)
        _sweep(host, top, known, keep={bundle.identity, before})
        return _status(host, directory, top, known, warnings)
    finally:
        os.close(top)


def uninstall(name: str, directory: str = DIRECTORY) -> tuple[list[str], list[str]]:
    """Returns what was removed, and what is left and why.  May be repeated.  Raises SealpointError."""
    directory = checks.check_name(directory)
    with Host(name) as host:
        try:
            with _locked(host, directory):
                return _uninstall(host, directory)
        except OSError as error:
            raise SystemEnvironmentError(
                f"the host cannot be written to: {error.strerror}"
            ) from None


def status(name: str, directory: str = DIRECTORY) -> NodeStatus:
    """Changes nothing.  Raises SealpointError."""
    directory = checks.check_name(directory)
    with Host(name) as host:
        if not host.is_directory(directory):
            return NodeStatus("", [], running(host, f"{directory}/bin"), [], [])
        top = host.directory(directory, "the directory")
        try:
            known = _known(top, directory)
            return _status(host, directory, top, known or NodeRecord(), [])
        finally:
            os.close(top)


def _status(
    host: Host, directory: str, top: int, known: NodeRecord, warnings: list[str]
) -> NodeStatus:
    current = _current(top)
    runtimes = running(host, f"{directory}/bin")
    restart = sorted({r.unit for r in runtimes if not r.ours and r.unit})
    others = sorted(identity for identity in known.versions if identity != current)
    return NodeStatus(current, others, runtimes, restart, warnings, _signer(host))


def _signer(host: Host) -> str:
    if not host.is_directory(signer.DIRECTORY):
        return ""
    place = host.directory(signer.DIRECTORY, "the directory")
    try:
        return signer.existing(place)
    finally:
        os.close(place)


def _make_signer(host: Host, top: int, known: NodeRecord) -> None:
    if not host.is_directory(signer.DIRECTORY):
        known.directories.append(signer.DIRECTORY)
        known.save(top)
    place = host.directory(signer.DIRECTORY, "the directory", make=0o755)
    try:
        signer.ensure(place, partial(_write_file, place, top, known))
    finally:
        os.close(place)


@contextlib.contextmanager
def _locked(host: Host, directory: str) -> Iterator[None]:
    """One run at a time.  Raises UsageError."""
    parent = host.directory(os.path.dirname(directory), "the directory")
    try:
        try:
            fcntl.flock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError("another installation or removal is running") from None
        yield
    finally:
        os.close(parent)


def _create(host: Host, directory: str) -> None:
    """It appears with its record inside, so that it is never there without being known as ours."""
    above, name = os.path.split(directory)
    parent = host.directory(above, "the directory")
    try:
        unborn = name + NEW_SUFFIX
        os.mkdir(unborn, 0o755, dir_fd=parent)
        fd = os.open(unborn, _FLAGS, dir_fd=parent)
        try:
            os.fchmod(fd, 0o755)
            NodeRecord(made=True).save(fd)
        finally:
            os.close(fd)
        os.rename(unborn, name, src_dir_fd=parent, dst_dir_fd=parent)
        os.fsync(parent)
    finally:
        os.close(parent)


def _forget_unborn(host: Host, directory: str) -> None:
    """Remove what is left of a directory that was being made, or removed, when a run ended."""
    above, name = os.path.split(directory)
    parent = host.directory(above, "the directory")
    try:
        if status_in(parent, name + NEW_SUFFIX) is None:
            return
        fd = os.open(name + NEW_SUFFIX, _FLAGS, dir_fd=parent)
        try:
            for file in (record.NAME, record.NAME + NEW_SUFFIX):
                remove_in(fd, file)
        finally:
            os.close(fd)
        os.rmdir(name + NEW_SUFFIX, dir_fd=parent)
    finally:
        os.close(parent)


def _known(top: int, directory: str) -> NodeRecord | None:
    """The record.  Raises UsageError: the directory is somebody else's."""
    known = record.load(top)
    if known is None and set(os.listdir(top)) - {record.NAME + NEW_SUFFIX}:
        raise UsageError(
            f"{directory} exists and is not an installation by `sealpoint node install`",
            hint="choose another --directory, or remove it",
        )
    return known


def _current(top: int) -> str:
    """Identity of the version that starts from now on."""
    try:
        return os.readlink(_CURRENT, dir_fd=top).removeprefix(f"{_VERSIONS}/")
    except OSError:
        return ""


def _subdirectory(top: int, name: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=top)
    fd = os.open(name, _FLAGS, dir_fd=top)
    os.fchmod(fd, 0o755)
    return fd


def _place(host: Host, top: int, known: NodeRecord, bundle: bundles.Bundle) -> list[str]:
    """The version is there, whole, and is the one that starts from now on; returns warnings."""
    place = _subdirectory(top, _VERSIONS)
    try:
        identity, warnings = bundle.identity, []
        if known.versions.get(identity) == REMOVING:
            _remove_version(host, top, place, known, identity)
        if status_in(place, identity) is None:
            known.versions[identity] = STAGED
            known.save(top)
            warnings = versions.stage(place, bundle, label=checks.has_selinux(host))
            os.rename(versions.staging(identity), identity, src_dir_fd=place, dst_dir_fd=place)
            os.fsync(place)
        elif identity not in known.versions:
            raise UsageError(f"versions/{identity} is not ours", hint="move it away")
        elif changed := versions.differs(place, identity, bundle.listing):
            raise SystemEnvironmentError(
                f"versions/{changed} is not as it was installed",
                hint="run `sealpoint node uninstall`, and move away what it leaves",
            )
        if known.versions[identity] != READY:
            known.versions[identity] = READY
            known.save(top)
        _switch(top, identity)
        return warnings
    finally:
        os.close(place)


def _switch(top: int, identity: str) -> None:
    target = f"{_VERSIONS}/{identity}"
    if _current(top) == identity:
        return
    info = status_in(top, _CURRENT)
    if info is not None and not _current(top):
        raise UsageError(f"{_CURRENT} is not ours", hint="move it away")
    remove_in(top, _CURRENT + NEW_SUFFIX)
    os.symlink(target, _CURRENT + NEW_SUFFIX, dir_fd=top)
    os.rename(_CURRENT + NEW_SUFFIX, _CURRENT, src_dir_fd=top, dst_dir_fd=top)
    os.fsync(top)


def _write_dropin(host: Host, top: int, known: NodeRecord, directory: str) -> list[str]:
    text = f"#!{directory}/{_CURRENT}/bin/python3 -I\n{MARK.decode()}\n"
    text += "# Made by `sealpoint node install`; `sealpoint node uninstall` removes it.\n"
    text += "from sealpoint.dropin import main\n\nmain()\n"
    place = _subdirectory(top, "bin")
    try:
        path = f"{directory}/bin/criu"
        _write_file(place, top, known, path, text.encode(), 0o755)
        if not checks.has_selinux(host):
            return []
        problem = versions.label_problem(f"/proc/self/fd/{place}/criu")
        return [f"SELinux: {path} has no label {versions.LABEL}: {problem}"] if problem else []
    finally:
        os.close(place)


def _set_paths(host: Host, top: int, known: NodeRecord, directory: str) -> None:
    """A drop-in of systemd's for each service that does not find ours."""
    for runtime in running(host, f"{directory}/bin"):
        if runtime.ours:
            continue
        path = unit.file_of(runtime.unit)
        above = os.path.dirname(path)
        if not host.is_directory(above):
            known.directories.append(above)
            known.save(top)
        place = host.directory(above, "the directory", make=0o755)
        try:
            data = unit.text_of(f"{directory}/bin", runtime.path)
            _write_file(place, top, known, path, data, 0o644)
        finally:
            os.close(place)


def _write_file(place: int, top: int, known: NodeRecord, path: str, data: bytes, mode: int) -> None:
    """Raises UsageError: there is another one."""
    name = os.path.basename(path)
    now = versions.content(place, name)
    if now is not None and now not in known.files.get(path, []):
        raise UsageError(f"{path} exists and is not ours, or was changed", hint="move it away")
    digest = hashlib.sha256(data).hexdigest()
    known.announce(top, path, digest)
    if now != digest:
        write_in(place, name, data, mode)


def _sweep(host: Host, top: int, known: NodeRecord, keep: set[str]) -> None:
    """Remove versions that no process uses any more."""
    place = _subdirectory(top, _VERSIONS)
    try:
        for identity in sorted(set(known.versions) - keep):
            _remove_version(host, top, place, known, identity)
    finally:
        os.close(place)


def _remove_version(
    host: Host, top: int, place: int, known: NodeRecord, identity: str
) -> list[str]:
    """Returns what is left and why."""
    listing = versions.listing_of(place, identity)
    if listing is not None:
        if pids := versions.users(host, place, identity, listing):
            return [f"versions/{identity}: process {pids[0]} uses it"]
        if known.versions[identity] != REMOVING:
            known.versions[identity] = REMOVING
            known.save(top)
        if left := versions.remove(place, identity, listing):
            return [f"versions/{name}" for name in left]
    elif status_in(place, identity) is not None:
        return [f"versions/{identity}: the list of its files is gone"]
    del known.versions[identity]
    known.save(top)
    return []


def _uninstall(host: Host, directory: str) -> tuple[list[str], list[str]]:
    _forget_unborn(host, directory)
    nothing = UsageError(f"nothing is installed in {directory}")
    if not host.is_directory(directory):
        raise nothing
    top = host.directory(directory, "the directory")
    try:
        known = _known(top, directory)
        if known is None:
            raise nothing
        done: list[str] = []
        left: list[str] = []
        for path in list(known.files):
            _remove_file(host, top, known, path, done, left)
        if _current(top):
            remove_in(top, _CURRENT)
        remove_in(top, _CURRENT + NEW_SUFFIX)
        place = _subdirectory(top, _VERSIONS)
        try:
            for identity in list(known.versions):
                remains = _remove_version(host, top, place, known, identity)
                left += [f"{directory}/{line}" for line in remains]
                done += [] if remains else [f"removed {directory}/versions/{identity}"]
        finally:
            os.close(place)
        for path in reversed(list(known.directories)):
            _remove_directory(host, path, left)
        for name in (_VERSIONS, "bin"):
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=top)
        if known.versions or known.files:
            return done, left
        others = sorted(set(os.listdir(top)) - {record.NAME})
        left += [f"{directory}/{name}: it is not ours" for name in others]
        _end(host, directory, top, known, others, done)
        return done, left
    finally:
        os.close(top)


def _end(
    host: Host, directory: str, top: int, known: NodeRecord, others: list[str], done: list[str]
) -> None:
    """The record goes last, and the directory with it if we made it and it holds nothing else."""
    if others or not known.made:
        remove_in(top, record.NAME)
        return
    above, name = os.path.split(directory)
    parent = host.directory(above, "the directory")
    try:
        os.rename(name, name + NEW_SUFFIX, src_dir_fd=parent, dst_dir_fd=parent)
    finally:
        os.close(parent)
    _forget_unborn(host, directory)
    done.append(f"removed {directory}")


def _remove_file(
    host: Host, top: int, known: NodeRecord, path: str, done: list[str], left: list[str]
) -> None:
    above, name = os.path.split(path)
    try:
        place = host.directory(above, "the directory")
    except FileNotFoundError:
        del known.files[path]
        return
    try:
        remove_in(place, name + NEW_SUFFIX)
        now = versions.content(place, name)
        if now is not None and now not in known.files[path]:
            left.append(f"{path}: it was changed since")
        elif now is not None:
            os.unlink(name, dir_fd=place)
            done.append(f"removed {path}")
    finally:
        os.close(place)
    del known.files[path]
    known.save(top)


def _remove_directory(host: Host, path: str, left: list[str]) -> None:
    above, name = os.path.split(path)
    try:
        place = host.directory(above, "the directory")
        try:
            os.rmdir(name, dir_fd=place)
        finally:
            os.close(place)
    except FileNotFoundError:
        pass
    except OSError:
        left.append(f"{path}: it is not empty")

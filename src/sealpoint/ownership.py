"""Who else could change a file: owners, modes and access lists of it and of every directory above it.

What root believes (configuration, keys that it names, CRIU, state) must be root's alone.  A path is walked name by name
from the root directory with descriptors that follow no link by themselves; each directory is looked at before an entry
is looked up in it, and the descriptor that was looked at is the one that is used.  So nobody can exchange anything
between the look and the use.  For other users than root only private directories are looked at.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from sealpoint.errors import PolicyError, SystemEnvironmentError
from sealpoint.names import proc_lines

_PATH_ONLY: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS: Final = 40  # as the kernel follows
_MAX_PATH: Final = 4096
_ACL_NAME: Final = "system.posix_acl_access"
_ACL_VERSION: Final = 2
_ACL_HEAD: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct(
    "<HHI"
)  # tag, permissions, user or group: linux/posix_acl_xattr.h
_ACL_USER, _ACL_GROUP_OWNER, _ACL_GROUP, _ACL_MASK, _ACL_OTHER = 0x02, 0x04, 0x08, 0x10, 0x20
_WRITE: Final = 2


class Configured(str):
    """A path that a configuration file names: for root it is opened by `open_owned`."""

    __slots__ = ()


class Problem(NamedTuple):
    """Who else could change what.

    path: the file or directory; who: the end of a sentence that begins with it; remedy: what root can do about it.
    """

    path: str
    who: str
    remedy: str

    @property
    def text(self) -> str:
        """Both in one."""
        return f"{self.path} {self.who}"


def matters() -> bool:
    """Whether this process must not believe what others can change: it runs as root."""
    return os.geteuid() == 0


def open_owned(path: str, what: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of what root alone could have made; for other users whatever is there.

    what: names it in the error, as in "the configuration file".  Raises OSError as `open` does, PolicyError.
    """
    if not matters():
        return os.open(path, flags | os.O_CLOEXEC)
    with _walked(path) as walk:
        if walk.problem is not None:
            raise refusal(path, what, walk.problem)
        return os.open(_magic(walk.top), flags | os.O_CLOEXEC)


def open_below(root: int, path: str, what: str, *, make: int | None = None) -> int:
    """A descriptor of a directory in a file system whose root directory is `root`, which root alone could have made.

    Links lead to where they would if `root` were `/`, never out of it.  make: mode of each level that is missing and
    made; None: it must exist.  Raises OSError, PolicyError.
    """
    with _walked(path, make=make, root=root) as walk:
        if walk.problem is not None:
            raise refusal(path, what, walk.problem)
        return os.open(_magic(walk.top), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def look_below(root: int, path: str) -> int:
    """An O_PATH descriptor of whatever `path` leads to below `root`, whoever could change it.  Raises OSError."""
    with _walked(path, root=root) as walk:
        return os.open(_magic(walk.top), os.O_PATH | os.O_CLOEXEC)


def require(path: str, what: str) -> None:
    """The same for what is not read but run.  Raises OSError, PolicyError."""
    if matters():
        os.close(open_owned(path, what, os.O_PATH))


def program(name: str) -> str:
    """The program that PATH finds, else /usr/sbin, /usr/bin or /sbin; for root it has to be root's alone.

    Raises FileNotFoundError, PolicyError.
    """
    import shutil

    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin"
    found = shutil.which(name, path=search)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    require(found, "the program")
    return found


def problem_of(path: str) -> Problem | None:
    """Who else than root could change what `path` leads to; None if nobody can.  Raises OSError."""
    with _walked(path) as walk:
        return walk.problem


def concern(path: str) -> str:
    """What root is to be told of a file named on the command line: that it is another's.  Empty if it is not.

    Only the file itself is looked at; a pipe (`<(...)`) belongs to nobody.
    """
    if not matters():
        return ""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""  # its reader says so
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return ""
        found = _problem(fd, info, frozenset({0}), entry_only=False)
        return found.text if found is not None else ""
    finally:
        os.close(fd)


def private_directory(
    path: str, what: str, *, mode: int = 0o700, make: bool = True, exact: bool = True
) -> int:
    """A descriptor of a directory that is ours alone; what is missing of its path is made, with `mode` at each level.

    Every level has to belong to root or to us, and nobody else may write there (a sticky directory will do above it).
    The umask has no say.  exact: one that exists gets `mode`; else it stays as it is.  make: where False, a missing one
    raises FileNotFoundError.

    Raises OSError, SystemEnvironmentError (it is not ours alone).
    """
    us = os.geteuid()
    with _walked(path, frozenset({0, us}), make=mode if make else None) as walk:
        if walk.problem is not None:
            refused = refusal(path, what, walk.problem)
            raise SystemEnvironmentError(refused.message, hint=refused.hint)
        fd = os.open(_magic(walk.top), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        info = os.fstat(fd)
        try:
            if exact and info.st_uid == us and stat.S_IMODE(info.st_mode) != mode:
                os.fchmod(fd, mode)
        except BaseException:
            os.close(fd)
            raise
        return fd


def make_private(path: str, what: str, *, mode: int = 0o700, exact: bool = True) -> None:
    """`private_directory` for those who use it by its path, which nobody else can make lead elsewhere.

    Raises SystemEnvironmentError.
    """
    try:
        os.close(private_directory(path, what, mode=mode, exact=exact))
    except OSError as error:
        raise SystemEnvironmentError(f"{what} {path} cannot be made: {error.strerror}") from None


def refusal(path: str, what: str, problem: Problem) -> PolicyError:
    """The error for what is not believed."""
    where = f"it {problem.who}" if problem.path == path else problem.text
    return PolicyError(f"{what} {path} is refused: {where}", hint=problem.remedy)


class _Walk:
    """The directories from the root to where a path has led so far, as descriptors.

    problem: the first thing that somebody else than `owners` could change.
    """

    def __init__(self, owners: frozenset[int], make: int | None, root: int | None = None) -> None:
        self.problem: Problem | None = None
        self._owners = owners
        self._make = make
        self._links = 0
        top = "/" if root is None else _magic(root)
        self._levels = [os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]

    @property
    def top(self) -> int:
        return self._levels[-1]

    def go(self, path: bytes) -> None:
        pending = path.split(b"/")[::-1]
        while pending:
            name = pending.pop()
            if not stat.S_ISDIR(os.fstat(self.top).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if name in (b"", b"."):
                continue
            if name == b"..":
                self._up(1)
                continue
            self._look(entry_only=True)
            fd = self._enter(name)
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                self._levels.append(fd)
                continue
            target = self._follow(fd)
            if target.startswith(b"/"):
                self._up(len(self._levels))
            pending += target.split(b"/")[::-1]
        self._look(entry_only=False)

    def close(self) -> None:
        for fd in self._levels:
            os.close(fd)

    def _up(self, count: int) -> None:
        for _ in range(min(count, len(self._levels) - 1)):
            os.close(self._levels.pop())

    def _look(self, *, entry_only: bool) -> None:
        """Note who else could change the directory we are in: all of it, or an entry that is not theirs."""
        if self.problem is None:
            info = os.fstat(self.top)
            self.problem = _problem(self.top, info, self._owners, entry_only=entry_only)
        if self.problem is None and len(self._levels) > 1:
            self.problem = _strangers_mount(self.top, self._levels[-2])

    def _enter(self, name: bytes) -> int:
        """A descriptor of an entry, which is made if that is wanted and safe."""
        try:
            return os.open(name, _PATH_ONLY, dir_fd=self.top)
        except FileNotFoundError:
            if self._make is None or self.problem is not None:
                raise
        parent = os.open(_magic(self.top), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.mkdir(name, self._make & 0o700, dir_fd=parent)
        except FileExistsError:
            return os.open(name, _PATH_ONLY, dir_fd=parent)  # somebody was faster; it is looked at
        else:
            fd = os.open(name, _PATH_ONLY | os.O_DIRECTORY, dir_fd=parent)
            try:
                if os.fstat(fd).st_uid == os.geteuid():  # else it was exchanged, and is refused
                    os.chmod(_magic(fd), self._make)  # whatever the umask took
                _sync(parent)
            except BaseException:
                os.close(fd)
                raise
            return fd
        finally:
            os.close(parent)

    def _follow(self, fd: int) -> bytes:
        """Where a link leads; closes it."""
        try:
            self._links += 1
            if self._links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            owner = os.fstat(fd).st_uid
            if self.problem is None and owner not in self._owners:
                path = _path(fd)
                self.problem = Problem(
                    path,
                    f"is a link of {_user(owner)}",
                    "name the file that it leads to, or make the link again as root",
                )
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)


@contextmanager
def _walked(
    path: str,
    owners: frozenset[int] = frozenset({0}),
    *,
    make: int | None = None,
    root: int | None = None,
) -> Iterator[_Walk]:
    """Walks to what a path leads to.  root: a descriptor of another root directory than ours.

    Raises OSError, ValueError (a NUL in the path).
    """
    name = os.fsencode(path)
    if not name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if len(name) > _MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if not name.startswith(b"/"):
        name = os.getcwdb() + b"/" + name
    walk = _Walk(owners, make, root)
    try:
        walk.go(name)
        yield walk
    finally:
        walk.close()


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without such a thing
            raise


def _magic(fd: int) -> str:
    """Leads to what a descriptor is of, whatever has its name by now."""
    return f"/proc/self/fd/{fd}"


def _path(fd: int) -> str:
    return os.readlink(_magic(fd))


def _problem(
    fd: int, info: os.stat_result, owners: frozenset[int], *, entry_only: bool
) -> Problem | None:
    """Who else could change this one, or, with entry_only, an entry of it that belongs to `owners`."""
    if info.st_uid not in owners:
        path = _path(fd)
        return Problem(
            path, f"belongs to {_user(info.st_uid)}", f"if you trust it: chown root {path}"
        )
    if entry_only and info.st_mode & stat.S_ISVTX:
        return None
    writers = _writers(fd, info)
    if not writers:
        return None
    path = _path(fd)
    mode = f"mode {stat.S_IMODE(info.st_mode):04o}"
    listed = any(name.startswith("user") for name in writers)
    return Problem(
        path,
        f"can be changed by others ({mode}): {' and '.join(writers)}",
        f"remove that permission: {f'setfacl -b {path}; ' if listed else ''}chmod go-w {path}",
    )


def _writers(fd: int, info: os.stat_result) -> list[str]:
    """Whom mode and access list let write, besides the owner and root."""
    groups: set[int] = set()
    users: set[int] = set()
    # Where there is an access list, the group's bits of the mode are its mask.
    entries = _access_list(fd) if info.st_mode & stat.S_IWGRP else []
    if info.st_mode & stat.S_IWGRP and not entries:
        groups.add(info.st_gid)
    for tag, permissions, number in entries:
        if permissions & _WRITE and tag == _ACL_USER:
            users.add(number)
        elif permissions & _WRITE and tag == _ACL_GROUP:
            groups.add(number)
        elif permissions & _WRITE and tag == _ACL_GROUP_OWNER:
            groups.add(info.st_gid)
    us = os.geteuid()
    if us != 0:
        groups.discard(os.getegid())  # users have groups of their own, and umask 002
    found = [_user(number) for number in sorted(users - {0, us})]
    found += [f"group {number}" for number in sorted(groups)]
    return [*found, "everybody"] if info.st_mode & stat.S_IWOTH else found


def _access_list(fd: int) -> list[tuple[int, int, int]]:
    """The entries of a POSIX access list; empty if there is none.  Raises PolicyError where it is not understood."""
    try:
        data = os.getxattr(_magic(fd), _ACL_NAME)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return []
        raise
    (version,) = _ACL_HEAD.unpack_from(data) if len(data) >= _ACL_HEAD.size else (0,)
    if version != _ACL_VERSION or (len(data) - _ACL_HEAD.size) % _ACL_ENTRY.size:
        raise PolicyError(f"{_path(fd)} has an access list of an unknown kind")
    return list(_ACL_ENTRY.iter_unpack(data[_ACL_HEAD.size :]))


def _strangers_mount(fd: int, above: int) -> Problem | None:
    """A file system that a user's program serves says of its files what that user wants."""
    if os.fstat(fd).st_dev == os.fstat(above).st_dev:
        return None
    lines = proc_lines(f"/proc/self/fdinfo/{fd}")
    number = next((x.split()[1] for x in lines if x.startswith("mnt_id:")), "")
    for line in proc_lines("/proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        kind, _, options = [*system.split(" "), "", "", ""][:3]
        if mount.split(" ", 1)[0] != number or not kind.startswith("fuse"):
            continue
        users = [o[8:] for o in options.split(",") if o.startswith("user_id=")]
        if users not in ([], ["0"]):
            who = f"is served by a program of user {users[0]}"
            return Problem(_path(fd), who, "name a path outside of it")
    return None


def _user(number: int) -> str:
    """For people: user 1000 (alice)."""
    import pwd

    try:
        return f"user {number} ({pwd.getpwuid(number).pw_name})"
    except KeyError:
        return f"user {number}"

"""Who may use an images mount that the kernel lets everybody use: judged by the process that asks."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sealpoint.criu import callers as module
from sealpoint.criu.callers import Callers
from sealpoint.process import Held

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

OUTSIDE = 100000
MAP = f"0 {OUTSIDE} 65536"
_CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)


def own_namespace() -> None:
    """Become root of a new user namespace, which somebody outside has to fill with users."""
    assert _libc.unshare(_CLONE_NEWUSER) == 0


def become_root() -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


class Family:
    """A process with a child, `parent` and `pid`; the child is in a user namespace of its own if `inside`.

    Both end when `close` is called.
    """

    def __init__(self, *, inside: bool = True, user: int = 0) -> None:
        (asks, says), (goes, go) = os.pipe(), os.pipe()
        self.parent = os.fork()
        if self.parent == 0:
            _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the child
            child = os.fork()
            if child == 0:
                if inside:
                    own_namespace()
                os.write(says, f"{os.getpid()}\n".encode())
                os.read(goes, 1)
                if inside:
                    become_root()
                elif user:
                    os.setresgid(user, user, user)
                    os.setresuid(user, user, user)
                threading.Thread(target=signal.pause, daemon=True).start()
                tid = int(max(os.listdir("/proc/self/task"), key=int))
                os.write(says, f"{tid}\n".encode())
                signal.pause()
            signal.pause()
            os._exit(0)
        with os.fdopen(asks) as answers:
            self.pid = int(answers.readline())
            if inside:
                for name in ("uid_map", "gid_map"):
                    with open(f"/proc/{self.pid}/{name}", "w") as file:
                        file.write(MAP)
            os.write(go, b"x")
            self.thread = int(answers.readline())
        for fd in (says, goes, go):
            os.close(fd)
        self.uid = OUTSIDE if inside else user

    def end_child(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        while os.path.exists(f"/proc/{self.pid}"):
            time.sleep(0.001)

    def end_parent(self) -> None:
        if self.parent:
            os.kill(self.parent, signal.SIGKILL)
            os.waitpid(self.parent, 0)
            self.parent = 0

    def close(self) -> None:
        for pid in (self.pid, self.parent):
            try:
                if pid:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.parent:
            os.waitpid(self.parent, 0)


StartFamily = Callable[..., Family]


@pytest.fixture
def family() -> Iterator[StartFamily]:
    started: list[Family] = []

    def start(**how: object) -> Family:
        started.append(Family(**how))
        return started[-1]

    yield start
    for each in started:
        each.close()


def ask(callers: Callers, who: Family) -> bool:
    return callers.admits(who.uid, who.uid, who.pid)


def test_root_is_admitted_and_what_has_no_number_here_is_not() -> None:
    callers = Callers()
    assert callers.admits(0, 0, os.getpid())
    assert not callers.admits(0, 0, 0)
    assert not callers.admits(0, 0, 2**31 - 1)
    assert not callers.admits(0, 65534, os.getpid())
    assert not callers.admits(65534, 0, os.getpid())


def test_a_program_of_root_s_that_somebody_else_has_started_is_not_root() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 0, 0)
        os.write(writer, b"x")
        signal.pause()
    try:
        os.read(reader, 1)
        assert not Callers().admits(0, 0, pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def test_what_descends_from_criu_into_a_user_namespace_is_admitted_with_its_threads(
    family: StartFamily,
) -> None:
    one = family()
    callers = Callers()
    assert not ask(callers, one)
    callers.follow(Held(one.parent))
    assert ask(callers, one)
    assert ask(callers, one)
    assert one.thread != one.pid
    assert callers.admits(one.uid, one.uid, one.thread)


def test_the_first_task_is_admitted_where_criu_names_it(family: StartFamily) -> None:
    one = family()
    callers = Callers()
    callers.follow(Held(one.pid))
    assert ask(callers, one)


def test_whoever_descends_from_another_is_refused(family: StartFamily) -> None:
    one, other = family(), family()
    callers = Callers()
    callers.follow(Held(one.parent))
    assert not ask(callers, other)
    assert not callers.admits(0, 0, other.pid)


def test_what_criu_starts_as_a_user_of_the_machine_is_refused(family: StartFamily) -> None:
    one = family(inside=False, user=65534)
    callers = Callers()
    callers.follow(Held(one.parent))
    assert not ask(callers, one)


def test_nobody_is_admitted_for_an_ancestor_that_has_ended(family: StartFamily) -> None:
    one = family()
    callers = Callers()
    callers.follow(Held(one.parent))
    one.end_parent()
    assert not ask(callers, one)


def test_a_process_that_was_admitted_and_has_ended_is_nobody(family: StartFamily) -> None:
    """Its number can be another's by then."""
    one = family()
    callers = Callers()
    callers.follow(Held(one.parent))
    assert ask(callers, one)
    one.end_child()
    assert not ask(callers, one)


def test_after_the_gate_only_root_is_admitted(family: StartFamily) -> None:
    one, later = family(), family()
    callers = Callers()
    callers.follow(Held(one.parent))
    callers.follow(Held(later.parent))
    assert ask(callers, one)
    callers.dismiss()
    assert not ask(callers, one)
    assert not ask(callers, later)
    assert callers.admits(0, 0, os.getpid())


def test_a_parent_whose_number_becomes_another_s_meanwhile_is_no_evidence(
    family: StartFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks the caller's parent ends, and a task of CRIU's gets its number."""
    criu, stranger = family(), family()
    parents = iter([criu.pid, criu.parent, criu.parent, 1])
    monkeypatch.setattr(module, "_parent", lambda _: next(parents))
    callers = Callers()
    callers.follow(Held(criu.parent))
    assert not ask(callers, stranger)


@contextlib.contextmanager
def child_of_ours(program: str = "") -> Iterator[int]:
    """Pid of a process in a user namespace of its own, beside those that this process has started before."""
    time.sleep(0.05)  # more than a tick, in which start times are counted
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        own_namespace()
        if program:
            os.execv(program, [program, "1000"])
        os.close(writer)
        signal.pause()
    try:
        os.close(writer)
        assert os.read(reader, 1) == b""  # at the exec, or when it is ready
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def test_a_sibling_of_criu_is_admitted_only_where_one_is_expected(family: StartFamily) -> None:
    criu = family()
    with child_of_ours() as sibling:
        expecting, named = Callers(siblings=True), Callers()
        for callers in (expecting, named):
            callers.follow(Held(criu.parent))
        assert expecting.admits(OUTSIDE, OUTSIDE, sibling)
        assert not named.admits(OUTSIDE, OUTSIDE, sibling)


def test_whoever_was_there_before_criu_or_is_another_program_is_no_task_of_its(
    family: StartFamily,
) -> None:
    with child_of_ours() as older, child_of_ours("/bin/sleep") as another:
        time.sleep(0.05)
        criu = family()
        callers = Callers(siblings=True)
        callers.follow(Held(criu.parent))
        assert ask(callers, criu)
        assert not callers.admits(OUTSIDE, OUTSIDE, older)
        with child_of_ours("/bin/sleep") as younger:
            assert not callers.admits(OUTSIDE, OUTSIDE, younger)
        assert not callers.admits(OUTSIDE, OUTSIDE, another)

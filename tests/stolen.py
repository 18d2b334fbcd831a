"""Run as `unshare --pid --fork --mount-proc python stolen.py CASE`: a stranger gets the pid of a process in use.

In a pid namespace of its own, in which pids can be chosen and nobody else needs any.  Each case is a function without
arguments, which fails by an AssertionError.  `CASES` are their names.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from sealpoint import process
from sealpoint.checkpoint.live.watch import Watch
from sealpoint.criu import mounts
from sealpoint.criu.network_lock import NetworkLock
from sealpoint.dropin import lazy_link, shim
from sealpoint.dropin.descriptors import RequestDescriptors
from sealpoint.dropin.lazy_guard import Tree
from sealpoint.dropin.leftovers import Leftovers
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.machine import thaw
from sealpoint.podman.engine import Podman
from sealpoint.podman.tasks import Tasks
from sealpoint.process import Held
from tests.theft import CASES, Family, both, case, raises, stop, stranger, theft, unharmed


def leftovers(mount: int) -> Leftovers:
    criu = subprocess.Popen(["true"])
    held = os.pidfd_open(criu.pid)
    work = os.open("/tmp", os.O_RDONLY)
    made = Leftovers(held, mount, work)
    criu.wait()
    return made


@both("leftovers-child")
def _(after: bool) -> None:
    """A child of a restored task ends while all are looked for; a stranger gets its pid."""
    mount = mounts.detached("tmpfs", {"mode": "0700"})
    left, made = leftovers(mount), []
    family = Family()
    child = family.fork()
    left.note(family.pid)

    def steal() -> None:
        family.reap(child)
        made.append(stranger(child))

    with theft(child, steal, after=after):
        left.end()
    unharmed(made[0])
    assert family.gone()


@both("leftovers-task")
def _(after: bool) -> None:
    """The task itself, which is known since it has opened an image."""
    left, made = leftovers(mounts.detached("tmpfs", {"mode": "0700"})), []
    family = Family()
    task = family.fork()
    left.note(task)

    def steal() -> None:
        family.reap(task)
        made.append(stranger(task))

    with theft(task, steal, after=after):
        left.end()
    unharmed(made[0])
    assert family.runs


@both("leftovers-reader")
def _(after: bool) -> None:
    """One that is known by its descriptor of the images."""
    mount = mounts.detached("tmpfs", {"mode": "0700"})
    left, made = leftovers(mount), []
    reader = subprocess.Popen(["sleep", "1000"], pass_fds=(mount,))

    def steal() -> None:
        reader.kill()
        reader.wait()
        made.append(stranger(reader.pid))

    with theft(reader.pid, steal, after=after):
        left.end()
    unharmed(made[0])


@case
def leftovers_are_ended() -> None:
    """Whoever is left and is who it was: a task, its child, and one with a descriptor of the images."""
    mount = mounts.detached("tmpfs", {"mode": "0700"})
    left = leftovers(mount)
    family = Family()
    child = family.fork()
    reader = subprocess.Popen(["sleep", "1000"], pass_fds=(mount,))
    other = subprocess.Popen(["sleep", "1000"])
    left.note(family.pid)
    left.end()
    assert family.gone()
    while process.state(child) not in ("", "Z"):  # it was signalled, and ends in a moment
        time.sleep(0.001)
    assert reader.wait(20) == -signal.SIGKILL
    unharmed(other)


@both("resume")
def _(after: bool) -> None:
    """A container's process that stands still ends; a stranger that stands still gets its pid."""
    family, made = Family(), []
    child = family.fork()
    tasks = Tasks(Held(family.pid))
    stop(child)

    def steal() -> None:
        family.reap(child)
        made.append(stranger(child))
        stop(child)

    with theft(child, steal, after=after):
        tasks.resume()
    assert process.state(child) == "T"
    unharmed(made[0])


@case
def resume_of_a_pid_that_was_stopped_before() -> None:
    """What stood still before has ended: what has its pid now was stopped since, and goes on."""
    family = Family()
    child = family.fork()
    stop(child)
    tasks = Tasks(Held(family.pid))
    family.reap(child)
    family.fork(child)
    stop(child)
    tasks.resume()
    assert process.state(child) != "T"


@both("podman")
def _(after: bool) -> None:
    """A container ends after podman has named its first process."""
    with tempfile.TemporaryDirectory() as directory:
        answer, script = Path(directory) / "answer", Path(directory) / "podman"
        script.write_text(f'#!/bin/sh\n[ "$2" = exists ] || cat {answer}\n')
        script.chmod(0o755)
        family, made = Family(), []
        first = family.fork()

        def says(pid: int, status: str = "running") -> None:
            state = {"Status": status, "Pid": pid}
            values = {"Id": "c", "Name": "c", "State": state, "StaticDir": directory}
            answer.write_text(json.dumps([values | {"HostConfig": {"NetworkMode": "bridge"}}]))

        def steal() -> None:
            family.reap(first)
            says(family.fork())
            made.append(stranger(first))

        says(first)
        podman = Podman(str(script))
        _, root = podman.hold("c")
        assert root.runs
        root.close()
        with theft(first, steal, after=after), raises(UsageError, "started anew"):
            podman.hold("c")


@both("thaw-member")
def _(after: bool) -> None:
    """A member of the cgroup has ended, and a stranger outside of it that stands still has its pid."""
    with tempfile.TemporaryDirectory() as directory:
        family, made = Family(), []
        child = family.fork()
        stop(child)
        members = Path(directory) / "cgroup.procs"
        members.write_text(f"{child}\n")

        def steal() -> None:
            family.reap(child)
            members.write_text("")
            made.append(stranger(child))
            stop(child)

        with theft(child, steal, after=after):
            assert thaw.thaw(directory) == []
        assert process.state(child) == "T"


@case
def thaw_of_a_process_that_has_ended() -> None:
    family = Family()
    child = family.fork()

    def steal() -> None:
        family.reap(child)
        stranger(child)
        stop(child)

    with theft(child, steal, after=True), raises(UsageError, "there is no process"):
        thaw.thaw(str(child))
    assert process.state(child) == "T"


@both("lazy")
def _(after: bool) -> None:
    """A child of a task whose memory did not come."""
    family, made, tree = Family(), [], Tree()
    child = family.fork()
    with Held(family.pid) as task:
        tree.add(task.fd)

    def steal() -> None:
        # The task is stopped by now: its child is reaped by its parent's end in this case, not by a word to it.
        os.kill(family.pid, signal.SIGCONT)
        family.reap(child)
        made.append(stranger(child))

    with theft(child, steal, after=after):
        tree.kill()
    assert family.gone()
    unharmed(made[0])


@case
def lazy_task_that_has_ended() -> None:
    family, tree = Family(), Tree()
    child = family.fork()
    with Held(child) as task:
        family.reap(child)
        made = stranger(child)
        with raises(ProcessLookupError):
            tree.add(task.fd)
    tree.kill()
    unharmed(made)


def sent_by(listener: lazy_link.Listener, directory: int) -> tuple[int, socket.socket]:
    """Pid of a process that has sent a word with a descriptor, and has ended; the connection."""
    asked = socket.socket(socket.AF_UNIX)
    sender = os.fork()
    if sender == 0:
        asked = lazy_link.connect(directory)
        socket.send_fds(asked, [b"word"], [0])
        signal.pause()
    asked.close()
    connection, _ = listener._socket.accept()
    connection.recv(1, socket.MSG_PEEK)
    return sender, connection


@case
def lazy_sender_that_has_ended() -> None:
    """The kernel names the sender by a pidfd (since 6.5): a stranger with its pid is not taken for it."""
    with tempfile.TemporaryDirectory() as place:
        directory = os.open(place, os.O_RDONLY)
        reference = SimpleNamespace(checkpoint_id=bytes(16), origin_digest=bytes(32))
        with lazy_link.Listener(directory, reference) as listener:
            sender, connection = sent_by(listener, directory)
            os.kill(sender, signal.SIGKILL)
            os.waitpid(sender, 0)
            stranger(sender)
            message = lazy_link.receive(connection)
            assert message.data == b"word"
            assert len(message.descriptors) == 1
            if newest_kernel():
                assert not message.sender.exists


@case
def lazy_sender_that_is_there() -> None:
    with tempfile.TemporaryDirectory() as place:
        directory = os.open(place, os.O_RDONLY)
        reference = SimpleNamespace(checkpoint_id=bytes(16), origin_digest=bytes(32))
        with lazy_link.Listener(directory, reference) as listener:
            for pidfds in (True, False):  # as kernels before 6.5 do not have them
                sender, connection = sent_by(listener, directory)
                if not pidfds:
                    lazy_link._SCM_PIDFD = 99
                    connection.setsockopt(socket.SOL_SOCKET, 76, 0)
                message = lazy_link.receive(connection)
                assert (message.sender.pid, message.sender.exists) == (sender, True)


def newest_kernel() -> bool:
    """Whether it names the peer of a socket by a pidfd."""
    with socket.socketpair()[0] as one:
        try:
            os.close(one.getsockopt(socket.SOL_SOCKET, process._SO_PEERPIDFD))
        except OSError:
            return False
    return True


def engine() -> tuple[int, socket.socket, int]:
    """An engine that has made a socket pair and started us: its pid, our end, and the start time of who is younger."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    made = os.fork()
    if made == 0:
        engines, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(far, [b"1"], [ours.fileno()])
        signal.pause()
        engines.close()
    _, fds, _, _ = socket.recv_fds(near, 1, 1)
    younger = subprocess.Popen(["sleep", "1000"])
    return made, socket.socket(fileno=fds[0]), process.start_time(younger.pid)


def engine_case(*, old: bool) -> None:
    if old:
        process._SO_PEERPIDFD = 9999  # what a kernel does not know
    elif not newest_kernel():
        return
    made, ours, latest = engine()
    with process.peer(ours, latest) as held:
        assert (held.pid, held.exists) == (made, True)
        os.close(RequestDescriptors(held)._copy(1))
    os.kill(made, signal.SIGKILL)
    os.waitpid(made, 0)
    while process.now() <= latest + 1:
        time.sleep(0.001)
    stranger(made)
    with process.peer(ours, latest) as held:
        assert not held.exists
        with raises(SystemEnvironmentError, "the engine has ended"):
            RequestDescriptors(held)._copy(1)


@case
def engine_that_has_ended() -> None:
    """Descriptor numbers in its requests are not looked up in whoever has its pid now."""
    engine_case(old=False)


@case
def engine_that_has_ended_on_a_kernel_before_6_5() -> None:
    engine_case(old=True)


@case
def descriptors_of_an_engine_that_ends_later() -> None:
    made, ours, latest = engine()
    held = process.peer(ours, latest)
    os.kill(made, signal.SIGKILL)
    os.waitpid(made, 0)
    stranger(made)
    with raises(SystemEnvironmentError, "the engine has ended"):
        RequestDescriptors(held)._copy(1)


@case
def kept_child_whose_pid_is_restored() -> None:
    """A child from before a restore has ended, and CRIU has given its pid to a task: that is ended with the tree."""
    kept, other = subprocess.Popen(["sleep", "1000"]), subprocess.Popen(["sleep", "1000"])
    with process.Children() as keep:
        kept.kill()
        kept.wait()
        task = stranger(kept.pid)
        process.kill_descendants(keep)
    assert process.state(task.pid) == ""
    unharmed(other)


@both("namespace")
def _(after: bool) -> None:
    """Another network namespace would lose its rules, or its interfaces."""
    family, made = Family(), []
    child = family.fork()

    def steal() -> None:
        family.reap(child)
        made.append(stranger(child, ("unshare", "--net", "sleep", "1000")))
        ours = os.stat("/proc/self/ns/net").st_ino
        while os.stat(f"/proc/{child}/ns/net").st_ino == ours:
            time.sleep(0.001)

    with Held(child) as held, theft(child, steal, after=after, on="open"):
        lock = NetworkLock(held)
    assert lock._namespace < 0
    with Held(child) as held:
        assert NetworkLock(held)._namespace >= 0  # the stranger's, which it would have been


@case
def watched_process_that_has_ended() -> None:
    """Hours later its pid is another's, which is not what the checkpoints are of."""
    family = Family()
    child = family.fork()
    request = SimpleNamespace(directory="/tmp", dump=SimpleNamespace(pid=child))
    watch = Watch(request)
    assert watch._lives()
    family.reap(child)
    stranger(child)
    assert not watch._lives()


@case
def guard_leaves_the_cgroups_itself() -> None:
    """No number is written: whoever has the guard's pid by then would be moved."""
    with tempfile.TemporaryDirectory() as directory:
        procs = f"{directory}/cgroup.procs"
        helper, guard = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        helper.send(f"/nowhere/cgroup.procs\0{procs}".encode())
        assert shim.obey(guard)
        assert helper.recv(1) == b"1"
        assert Path(procs).read_text() == "0"
        helper.close()
        assert not shim.obey(guard)


@case
def deep_trees_are_ended() -> None:
    """The depth of a tree, which is theirs to choose, does not need as many descriptors."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    code = (
        "import os, signal\n"
        "depth = 0\n"
        "while depth < 60:\n"
        "    if os.fork():\n"
        "        break\n"
        "    depth += 1\n"
        "if depth == 60:\n"
        "    os.write(1, b'1')\n"
        "while True:\n"
        "    signal.pause()\n"
    )
    top = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE)
    assert top.stdout.read(1) == b"1"
    with Held(top.pid) as held:
        for victim in held.tree(signal.SIGSTOP):
            victim.send(signal.SIGKILL)
    assert top.wait(20) == -signal.SIGKILL
    assert top.stdout.read() == b""  # all ends of the pipe are closed


if __name__ == "__main__":
    CASES[sys.argv[1]]()

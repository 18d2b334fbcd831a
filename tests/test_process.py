"""What a process that holds plaintext does to itself, in children of their own."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

from sealpoint import process


def in_child(function) -> int:
    """Exit code of a child that ran the function."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = function() or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_no_core_dumps_and_no_tracing_afterwards():
    def check() -> int:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        if hard == 0:  # some machines have none to begin with, and only CAP_SYS_RESOURCE raises it
            try:
                resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
                hard = 1 << 20
            except ValueError:
                pass
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        process.protect()
        dumpable = process._libc().prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
        return 0 if resource.getrlimit(resource.RLIMIT_CORE) == (0, hard) and not dumpable else 1

    assert in_child(check) == 0


def test_swap_that_cannot_be_avoided_is_a_warning(monkeypatch):
    monkeypatch.setattr(process, "swap_in_use", lambda: True)
    calls = []

    class Libc:
        def prctl(self, *_):
            return 0

        def mlockall(self, flags):
            calls.append(flags)
            return result

    monkeypatch.setattr(process, "_libc", Libc)
    monkeypatch.setattr(process.resource, "setrlimit", lambda *_: None)
    for result in (0, -1):
        assert [len(w) > 20 for w in process.protect()] == [True] * -result
    assert calls == [7, 7]


def test_without_swap_nothing_is_locked(monkeypatch):
    monkeypatch.setattr(process, "swap_in_use", lambda: False)
    monkeypatch.setattr(process.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(process, "_libc", type("Libc", (), {"prctl": lambda *_: 0}))
    assert process.protect() == []


def test_children_are_found():
    child = subprocess.Popen(["sleep", "60"])
    assert child.pid in process.children(os.getpid())
    child.kill()
    child.wait()
    assert child.pid not in process.children(os.getpid())
    assert process.children(child.pid) == []


def test_every_descendant_is_ended_but_those_to_keep():
    def check() -> int:
        process.become_subreaper()
        kept = subprocess.Popen(["sleep", "60"])
        keep = process.Children()
        # A shell whose child goes on alone, and one that starts another session.
        subprocess.Popen(["sh", "-c", "sleep 61 & sleep 62 & wait"])
        subprocess.Popen(["sh", "-c", "(setsid sleep 63 &) ; exit"])
        time.sleep(0.3)
        if len(process.children(os.getpid())) < 3:
            return 2
        process.kill_descendants(keep)
        left = process.children(os.getpid())
        kept.kill()
        kept.wait()
        return 0 if left == [kept.pid] else 1

    assert in_child(check) == 0


def test_hardening_a_program_leaves_it_working():
    code = "from sealpoint import process; process.protect(); print(open('/proc/self/fd/1') and 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0


def test_a_signal_that_came_too_late_is_delivered_to_what_goes_on():
    came = []
    before = signal.signal(signal.SIGHUP, lambda number, _: came.append(number))
    try:
        with process.DeferredSignals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert came == []
        process.deliver_dropped()
        process.deliver_dropped()
        assert came == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_has_been_killed_counts_as_ended_at_once() -> None:
    for _ in range(30):
        running = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
        with process.Held(running.pid) as held:
            assert process.start_time(running.pid) > 0
            assert not held.is_ending
            running.kill()
            assert process.start_time(running.pid) == 0
            assert held.is_ending
        running.wait()

"""install-criu and uninstall-criu interrupted at every change that they make to names, and two at a time."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from tests.dropin.own_machine import existing, fails, installed

_INTERRUPTED = """
import os, sys
from sealpoint.cli import main
left, how = int(sys.argv.pop(1)), sys.argv.pop(1)
def wrap(name):
    real = getattr(os, name)
    def wrapped(*arguments, **options):
        global left
        held = [os.readlink(f"/proc/self/fd/{v}") for k, v in options.items() if k.endswith("dir_fd")]
        names = [str(a) for a in (*arguments, *held)]
        if not any("sealpoint" in a or "sbin" in a or "deep" in a for a in names):
            return real(*arguments, **options)
        left -= 1
        if left == 0:
            if how == "kill":
                os._exit(99)
            raise OSError(28, "No space left on device", str(arguments[0]))
        return real(*arguments, **options)
    setattr(os, name, wrapped)
for name in ("mkdir", "link", "rename", "unlink", "rmdir", "chmod"):
    wrap(name)
main()
"""


def interrupted(machine, n: int, how: str, *arguments: object):
    return machine.run(sys.executable, "-c", _INTERRUPTED, n, how, *arguments)


@pytest.mark.parametrize("how", ["kill", "error"])
@pytest.mark.parametrize("config", ["none", "existing"])
def test_an_interrupted_installation_is_undone(machine, keys, how, config):
    """At every change that it makes to names: it undoes an error itself, and kill -9 is undone by uninstall-criu."""
    if config == "existing":
        existing(machine, keys)
    before = machine.snapshot()
    prefix = machine.prefix.parent / "deep" / "sbin"
    arguments = ("install-criu", "--from-checkout", "--force", "--prefix", prefix)
    points = 0
    for n in range(1, 60):
        done = interrupted(machine, n, how, *arguments, *keys.sealing, *keys.opening)
        if done.code == 0:
            break
        points += 1
        if how == "error":
            fails(done, 6, "No space left on device")
        else:
            assert done.code == 99
            undone = machine.sealpoint("uninstall-criu")
            if undone.code:
                fails(undone, 2, "nothing is installed")
                if config == "none":  # killed before the record could be written
                    shutil.rmtree(machine.config.parent, ignore_errors=True)
                else:
                    for left in machine.config.parent.glob("*.sealpoint-new"):
                        left.unlink()
        assert machine.snapshot() == before, f"interrupted at change {n}"
    else:
        pytest.fail("it never came to its end")
    assert points >= 5
    assert machine.run(prefix / "criu", "--version").code == 0
    assert machine.sealpoint("uninstall-criu").code == 0
    assert machine.snapshot() == before


def test_an_interrupted_installation_can_be_repeated(machine, keys):
    existing(machine, keys)
    before = machine.snapshot()
    arguments = ("install-criu", "--from-checkout", "--force", "--prefix", machine.prefix)
    for n in range(1, 60):
        done = interrupted(machine, n, "kill", *arguments, *keys.sealing, *keys.opening)
        assert done.code in (0, 99)
        if done.code == 0:
            break
    assert machine.run(machine.executable, "--version").code == 0
    assert machine.sealpoint("uninstall-criu").code == 0
    assert machine.snapshot() == before


def test_an_interrupted_removal_can_be_repeated(machine, keys):
    existing(machine, keys)
    before = machine.snapshot()
    installed(machine, keys, "--force")
    for n in range(1, 60):
        done = interrupted(machine, n, "kill", "uninstall-criu")
        if done.code != 99:
            break
    assert not machine.record.exists()
    assert machine.snapshot() == before


def test_two_at_a_time(machine, keys):
    import fcntl

    machine.config.parent.mkdir()
    fd = os.open(machine.config.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        fails(machine.install(*keys.sealing), 2, "another install-criu")
    finally:
        os.close(fd)

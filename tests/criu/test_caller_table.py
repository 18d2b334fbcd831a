"""Every option of CRIU's: what names a path or a descriptor of the caller's, and what of it CRIU gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sealpoint.criu import caller as callers
from sealpoint.criu.caller import Caller
from sealpoint.criu.options import OPTIONS
from sealpoint.criu.run import _REFUSED, check_options
from sealpoint.errors import UsageError

REFUSED = {name[2:] for name in _REFUSED if name.startswith("--")}
# (command, what is typed, what CRIU gets); {here} is the caller's directory
TABLE = [
    ("restore", ["--pidfile", "a/../b"], ["--pidfile={here}/a/../b"]),
    ("restore", ["--pidf=p"], ["--pidfile={here}/p"]),
    ("restore", ["--pidfile", "/p"], ["--pidfile=/p"]),
    ("restore", ["--pidfile="], ["--pidfile="]),
    ("restore", ["-r", "root"], ["--root={here}/root"]),
    ("dump", ["-rroot"], ["--root={here}/root"]),
    ("dump", ["-L", "lib"], ["--libdir={here}/lib"]),
    ("restore", ["--cgroup-yard", "y"], ["--cgroup-yard={here}/y"]),
    ("restore", ["--cgroup-props-file", "y"], ["--cgroup-props-file={here}/y"]),
    ("restore", ["--cgroup-props", "name"], ["--cgroup-props=name"]),
    ("restore", ["--cgroup-root", "name:rel"], ["--cgroup-root=name:rel"]),
    ("dump", ["--freeze-cgroup", "f"], ["--freeze-cgroup={here}/f"]),
    ("restore", ["-J", "net:ns"], ["--join-ns=net:{here}/ns"]),
    ("restore", ["-Jnet:12"], ["--join-ns=net:12"]),
    ("restore", ["--join-ns", "user:ns,1,2"], ["--join-ns=user:{here}/ns,1,2"]),
    ("restore", ["--join-ns", "net:/ns"], ["--join-ns=net:/ns"]),
    ("restore", ["--join-ns", "net"], ["--join-ns=net"]),
    ("restore", ["--external", "mnt[a:b]:d"], ["--external=mnt[a:b]:{here}/d"]),
    ("restore", ["--external", "dev[k]:d"], ["--external=dev[k]:{here}/d"]),
    ("restore", ["--external", "mnt[]:m"], ["--external=mnt[]:m"]),
    ("restore", ["--external", "veth[a]:b"], ["--external=veth[a]:b"]),
    ("dump", ["--external", "mnt[/p]:key"], ["--external=mnt[/p]:key"]),
    ("dump", ["--external", "file[1:2]"], ["--external=file[1:2]"]),
    ("restore", ["-M", "key:d"], ["--ext-mount-map=key:{here}/d"]),
    ("restore", ["-M", "auto"], ["--ext-mount-map=auto"]),
    ("dump", ["-M", "/p:key"], ["--ext-mount-map=/p:key"]),
    ("dump", ["--irmap-scan-path", "rel"], ["--irmap-scan-path=rel"]),
    ("dump", ["--skip-mnt", "rel"], ["--skip-mnt=rel"]),
    ("restore", ["--exec-cmd", "--", "a", "-b"],
     ["--exec-cmd", "--", "/bin/sh", "-c", 'cd -- "$0" && exec "$@"', "{here}", "a", "-b"]),
    ("restore", ["a", "--exec", "b"],
     ["--exec-cmd", "--", "/bin/sh", "-c", 'cd -- "$0" && exec "$@"', "{here}", "a", "b"]),
    ("dump", ["--tcp-est", "-vv", "-j", "--"], ["--tcp-established", "--verbosity=v", "--shell-job"]),
    ("dump", ["--close", "9"], ["--close=9"]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("command", "typed", "expected"), TABLE, ids=lambda x: str(x)[:60])
def test_what_criu_gets(here: Path, command: str, typed: list[str], expected: list[str]) -> None:
    check_options(tuple(typed))
    with Caller(command, tuple(typed), streams=False) as caller:
        assert list(caller.words) == [word.replace("{here}", str(here)) for word in expected]
        assert caller.descriptors == ()


def test_something_is_decided_for_each_option() -> None:
    kinds = [
        set(callers.PATHS),
        set(callers.PARTS),
        set(callers.DESCRIPTORS),
        set(callers.OTHERS),
        REFUSED,
    ]
    positive = {name for name in OPTIONS if not (name.startswith("no-") and name[3:] in OPTIONS)}
    assert set().union(*kinds) == positive
    assert sum(map(len, kinds)) == len(positive)


def test_scripts_are_found_and_run_in_the_callers_directory(here: Path) -> None:
    typed = ("--action-script", "./a b", "--action-script=/c", "--action-script", "d")
    with Caller("dump", typed, streams=False) as caller:
        assert caller.words == ()
        place = str(here)
        assert caller.scripts == (
            f"(cd -- {place} && '{place}/./a b')", f"(cd -- {place} && /c)", f"(cd -- {place} && d)",
        )  # fmt: skip


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("option", ["--inherit-fd=fd[{}]:name", "--status-fd={}"])
def test_descriptors_are_handed_on_under_a_number_that_is_free(option: str, streams: bool) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        with Caller("restore", (option.format(writer),), streams=streams) as caller:
            assert caller.descriptors == (writer,)
            assert caller.words == (option.format(writer),)
        os.fstat(writer)
        with Caller("restore", (option.format(1),), streams=streams) as caller:
            number = caller.descriptors[0] if caller.descriptors else 1
            assert (number == 1) is streams
            assert os.path.sameopenfile(number, 1)
            assert caller.words == (option.format(number),)
        if number != 1:
            with pytest.raises(OSError):
                os.fstat(number)
    finally:
        os.close(reader)
        os.close(writer)


WRONG = [
    ("restore", ["--inherit-fd", "fd[{ours}]:a"], "not open"),
    ("restore", ["--inherit-fd", "fd[999]:a"], "not open"),
    ("restore", ["--inherit-fd", "fd[-1]:a"], "not of the form"),
    ("restore", ["--inherit-fd", "fd[ 1]:a"], "not of the form"),
    ("restore", ["--inherit-fd", "fd[1]:"], "not of the form"),
    ("restore", ["--inherit-fd", "1"], "not of the form"),
    ("restore", ["--inherit-fd", f"fd[{2**31}]:a"], "not open"),
    ("restore", ["--inherit-fd", f"fd[{2**64 + 1}]:a"], "not open"),
    ("restore", ["--inherit-fd", f"fd[{10**30}]:a"], "not of the form"),
    ("restore", ["--status-fd", "{ours}"], "not open"),
    ("restore", ["--status-fd", "1e3"], "not the number"),
    ("restore", ["--status-fd", "1\n"], "not the number"),
    ("restore", ["--status-fd="], "not the number"),
    ("dump", ["--exec-cmd", "--", "a"], "takes no argument 'a'"),
    ("restore", ["1234"], "takes no argument '1234'"),
    ("restore", ["--", "-v"], "takes no argument '-v'"),
    ("dump", ["--action-script="], "needs a file"),
]


@pytest.mark.parametrize(("command", "typed", "said"), WRONG, ids=lambda x: str(x)[:60])
def test_what_cannot_be_meant_is_refused(command: str, typed: list[str], said: str) -> None:
    reader, writer = os.pipe()  # closed on exec, like all that is ours
    try:
        with pytest.raises(UsageError) as raised:
            Caller(command, tuple(word.format(ours=writer) for word in typed), streams=False)
        assert said in raised.value.message
    finally:
        os.close(reader)
        os.close(writer)


def test_a_comma_in_the_directory_is_refused_where_criu_would_end_the_path(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a,b").mkdir()
    monkeypatch.chdir(here / "a,b")
    with pytest.raises(UsageError, match="comma"):
        Caller("restore", ("--join-ns", "net:ns"), streams=False)

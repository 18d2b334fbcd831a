"""What is run: a case is one test in one flavour with some options of zdtm.py, and has one name for all of it.

`static/pipe00 h --rpc` is the test zdtm/static/pipe00 on the host's namespaces by RPC. The files beside this one hold
such names: `selected.toml` those that CI runs, `differences.toml` those that may fail with the drop-in, and why.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent
FLAVOURS: Final = ("h", "ns", "uns")
PLACES: Final = ("machine", "vm")
MOST_DIFFERENCES: Final = 10
# What a kernel of a small virtual machine on the developers' side may not have, or what is the whole machine's.
_VM_OPTIONS: Final = ("--pre", "--freezecg")
# Options that all tests of _BROAD are run with; the test's own `.desc` says what does not fit.
_OPTION_SETS: Final = (
    ("--rpc",),
    ("--page-server",),
    ("--lazy-pages",),
    ("--join-ns",),
    ("--norst",),
    ("--stop",),
    ("--sibling",),
    ("--iters", "3"),
    ("--pre", "2"),
    ("--pre", "2", "--dedup"),
    ("--pre", "2", "--page-server"),
    ("--freezecg", "sealpoint-zdtm:t"),
    ("--freezecg", "sealpoint-zdtm:f"),
)
_BROAD: Final = (
    "static/busyloop00", "static/env00", "static/pipe00", "static/pthread00", "static/maps00",
    "static/maps01", "static/maps04", "static/mem-touch", "static/cow00", "static/cow01",
    "static/zombie00", "static/sockets00", "static/fifo", "static/unlink_fstat00",
    "static/file_locks00", "static/memfd00", "static/write_read00", "static/posix_timers",
    "transition/fork", "transition/epoll", "transition/shmem", "transition/maps007",
    "transition/maps008", "transition/pipe_shared00", "transition/unix_sock",
    "transition/file_read", "transition/thread-bomb",
)  # fmt: skip
# As CRIU's own test/jenkins/criu-fault.sh has them.
_FAULTS: Final = (
    "static/env00 h --fault 1",
    "static/unlink_fstat00 h --fault 2",
    "static/maps00 h --fault 3",
    "static/mntns_ghost ns --fault 4",
    "static/env00 h --fault 5",
    "static/unlink_fstat03 h --fault 6",
    "static/mntns_ghost ns --fault 2",
    "static/mntns_ghost ns --fault 6",
    "static/mntns_link_remap ns --fault 6",
    "static/vdso01 h --fault 127",
    "static/env00 h --fault 129",
    "transition/fork h --fault 130",
    "static/maps04 h --fault 131 --pre 2:1",
    "transition/maps008 h --fault 131 --pre 2:1",
    "static/maps01 h --fault 132",
    "static/vdso01 h --fault 133",
    "static/fpu03 h --fault 134 --norst",
    "static/fpu00 h --fault 134 --norst",
    "static/env00 h --fault 137 --freezecg sealpoint-zdtm:t",
    "static/env00 h --fault 137 --freezecg sealpoint-zdtm:f",
)


class Case(NamedTuple):
    """test: without the leading zdtm/; options: zdtm.py's."""

    test: str
    flavour: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.test, self.flavour, *self.options))

    @property
    def place(self) -> str:
        """Where it runs unless somebody says otherwise."""
        vm = "/cgroup" in self.test or any(option in self.options for option in _VM_OPTIONS)
        return "vm" if vm else "machine"


def parse(text: str) -> Case:
    """Raises ValueError."""
    words = text.split()
    if len(words) < 2 or words[1] not in FLAVOURS or words[0].count("/") != 1:
        raise ValueError(f"{text!r} is not TEST FLAVOUR [OPTION...], as in: static/pipe00 h --rpc")
    return Case(words[0], words[1], tuple(words[2:]))


def selected(path: Path = HERE / "selected.toml") -> dict[Case, str]:
    """The cases of CI, with the place of each.  Raises ValueError."""
    found: dict[Case, str] = {}
    for group in tomllib.loads(path.read_text())["group"]:
        for test in group["tests"]:
            case = parse(" ".join((test, group["flavour"], group.get("options", ""))))
            if case in found or group["place"] not in PLACES:
                raise ValueError(f"{path.name}: {case} is there twice, or its place is not known")
            found[case] = group["place"]
    return found


def differences(path: Path = HERE / "differences.toml") -> dict[Case, str]:
    """The cases that may fail with the drop-in, with the reason of each.  Raises ValueError."""
    found = {}
    for entry in tomllib.loads(path.read_text()).get("difference", ()):
        case = parse(entry["case"])
        if case in found or len(entry["reason"]) < 20:
            raise ValueError(f"{path.name}: {case} is there twice or has no reason")
        found[case] = entry["reason"]
    if len(found) > MOST_DIFFERENCES:
        raise ValueError(
            f"{path.name} has {len(found)} cases; at most {MOST_DIFFERENCES} may differ"
        )
    return found


def everything(suite: Path) -> dict[Case, str]:
    """Every test in the flavours that are new with it, and the options on a broad choice of tests."""
    cases = []
    for path in _tests(suite):
        described = _description(path)
        if "noauto" in described.get("flags", "").split():
            continue
        has = described.get("flavor", "h ns uns").split()
        test = str(path.relative_to(suite / "zdtm"))
        # In namespaces where it does not run without. Then user namespaces are tried as well.
        first = next(flavour for flavour in FLAVOURS if flavour in has)
        cases.append(Case(test, first))
        if first == "ns" and "uns" in has:
            cases.append(Case(test, "uns"))
    names = {case.test for case in cases}
    for options in _OPTION_SETS:
        cases += [Case(test, "h", options) for test in _BROAD if test in names]
    cases += [case for case in map(parse, _FAULTS) if case.test in names]
    return {case: case.place for case in cases}


def _tests(suite: Path) -> Iterable[Path]:
    for directory in ("static", "transition"):
        for path in sorted((suite / "zdtm" / directory).iterdir()):
            if (
                path.is_file()
                and path.stat().st_mode & 0o100
                and path.suffix not in (".hook", ".checkskip", ".so")
            ):
                yield path


def _description(path: Path) -> dict[str, str]:
    file = path.with_name(path.name + ".desc")
    text = file.read_text().strip() if file.exists() else ""
    return eval(text, {"os": os}) if text else {}  # as zdtm.py does: some are expressions

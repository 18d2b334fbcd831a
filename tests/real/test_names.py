"""A process whose names are any bytes is dumped, restored and looked at like every other, and steers no terminal."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.real.typed import DropIn

StartWorkload = Callable[..., harness.Workload]

COMMAND = b"\xff\xfe)\n\x1b[1m\rS 1 "
SHOWN = r"\xff\xfe)\n\x1b[1m\rS 1 "
STRANGE = b"\xff\xfe\n\x1b[31m\\x\r\xe2\x80\xae"
STRANGE_SHOWN = r"\xff\xfe\n\x1b[31m\\x\r\xe2\x80\xae"
LOCALES = {
    "utf8": {"LC_ALL": "C.UTF-8"},
    "c": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii:strict", "COLUMNS": "1"},
    "latin1": {"PYTHONIOENCODING": "iso-8859-1", "LINES": "1", "COLUMNS": "0", "TERM": ""},
}


@pytest.fixture
def needles() -> dict[str, bytes]:
    """No secrets: what is in the environment is to be shown here."""
    return {}


@pytest.fixture
def running(workload: StartWorkload) -> harness.Workload:
    return workload("names")


@pytest.fixture
def dump(running: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path):
    path = tmp_path / "names.sealed"
    metadata = ["--metadata-recipient", keys.path("other/recipient.pub")]
    sealpoint.run("dump", "-R", "-t", running.pid, "-o", path, *keys.seal, *metadata).ok()
    return path


def test_a_tree_with_names_that_are_no_text_is_restored_after_it_ended(
    running: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    before = running.assert_intact()
    there = sorted(os.listdir(os.fsencode(running.dir)))
    out = tmp_path / "names.sealed"
    sealpoint.run("dump", "-t", running.pid, "-o", out, *keys.seal).ok()
    running.wait_gone()
    sealpoint.run("restore", out, "--detach", *keys.open).ok()
    running.assert_continues(before)
    # The deleted file was made again for a moment, under a name that is none in UTF-8 either.
    assert sorted(os.listdir(os.fsencode(running.dir))) == there


def test_what_a_killed_criu_leaves_of_such_a_deleted_file_is_removed(
    running: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, dump: Path
) -> None:
    from sealpoint.checkpoint.opening.opener import Opening
    from sealpoint.checkpoint.tables.ghosts import Ghosts
    from sealpoint.keys import load_identity, load_trust

    opening = Opening(
        load_trust([keys.path("signer.pub")]),
        identities=lambda: [load_identity(keys.path("identity.key"))],
    )
    with opening.open(str(dump)) as checkpoint:
        ghosts = Ghosts(checkpoint.own())
        (left,) = ghosts._paths
        Path(os.fsdecode(left)).write_bytes(b"left in the clear")
        ghosts.remove()
    assert left.startswith(os.fsencode(running.dir) + b"/\xff\xfe.cr.")
    assert not os.path.exists(left)


def test_the_drop_in_dumps_and_restores_them_as_typed(
    running: harness.Workload, dropin: DropIn, tmp_path: Path
) -> None:
    before = running.assert_intact()
    images = tmp_path / os.fsdecode(b"images\xff\n")
    images.mkdir()
    status, said = dropin.run("dump", "-t", running.pid, "-D", images, "-o", "dump.log")
    assert status == 0, said
    running.wait_gone()
    status, said = dropin.run("restore", "-d", "-D", images, "-o", "restore.log")
    assert status == 0, said
    running.assert_continues(before)


COMMANDS = {
    "inspect": (
        ["inspect", "{}", "--all"],
        [STRANGE_SHOWN, r"\xffVARIABLE\n=\xfe\x1b[7m", r"socket\xff\n"],
    ),
    "inspect-ps": (["inspect", "{}", "--ps-tree"], [SHOWN]),
    "show": (["show", "{}"], []),
    "list": (["list", "{dir}"], ["names.sealed"]),
    "info": (["info", "{}"], [SHOWN]),
    "memparse": (["memparse", "{}"], [SHOWN[:-1] + r"\x20"]),
    "memparse-pid": (["memparse", "{}", "--pid", "{pid}"], [f"mapped {STRANGE_SHOWN}"]),
    "memparse-search": (["memparse", "{}", "--search", "VARIABLE"], []),
    "secrets": (["secrets", "{}"], []),
    "diff": (["diff", "{}", "{}"], []),
    "verify": (["verify", "{}"], []),
    "crit-ps": (["crit", "x", "{}", "ps"], [SHOWN]),
    "crit-fds": (["crit", "x", "{}", "fds"], [STRANGE_SHOWN]),
    "crit-mems": (["crit", "x", "{}", "mems"], [STRANGE_SHOWN]),
    "crit-show": (["crit", "show", "{}:files.img"], [r"\udcff\udcfe"]),
    "crit-decode": (["crit", "decode", "{}:files.img"], [r"\udcff\udcfe"]),
    "coredump": (["coredump", "{}", "--pid", "{pid}", "-o", "{dir}/core", "--force"], []),
    "report": (["report", "{}", "-o", "-"], [SHOWN, STRANGE_SHOWN]),
}
JSON = {
    "inspect": ["inspect", "{}", "--all", "--json"],
    "show": ["show", "{}", "--json"],
    "list": ["list", "{dir}", "--json"],
    "info": ["info", "{}", "--json"],
    "memparse": ["memparse", "{}", "--json"],
    "memparse-search": ["memparse", "{}", "--search", "VARIABLE", "--json"],
    "secrets": ["secrets", "{}", "--json"],
    "diff": ["diff", "{}", "{}", "--json"],
    "verify": ["verify", "{}", "--json"],
}


def filled(words: list[str], dump: Path, pid: int) -> list[str]:
    values = {"{}": str(dump), "{dir}": str(dump.parent), "{pid}": str(pid)}
    return [re.sub(r"\{\w*\}", lambda m: values[m[0]], word) for word in words]


def decoded(out: bytes) -> str:
    """What a locale cannot hold is written as its bytes; a page is in UTF-8 whatever the locale is."""
    try:
        return out.decode()
    except UnicodeDecodeError:
        return out.decode("iso-8859-1")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_shows_such_names_in_every_locale_and_steers_no_terminal(
    running: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, dump: Path
) -> None:
    for name, (words, wanted) in COMMANDS.items():
        for locale, environment in LOCALES.items():
            done = sealpoint.run(*filled(words, dump, running.pid), *keys.open, **environment).ok()
            shown = decoded(done.out)
            odd = {c for c in shown if not c.isprintable()} - {"\n", "\t"}
            assert not odd, (name, locale, odd)
            for text in wanted:
                assert text in shown, (name, locale, text, shown[:3000])


@pytest.mark.slow
def test_json_has_the_very_bytes_of_each_name(
    running: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, dump: Path
) -> None:
    told = {}
    for name, words in JSON.items():
        for environment in LOCALES.values():
            done = sealpoint.run(*filled(words, dump, running.pid), *keys.open, **environment).ok()
            told[name] = json.loads(done.out.decode("ascii"))
            assert not re.search(rb"\\ud[89a-f]", done.out), name
    (root,) = told["inspect"][0]["process_tree"]
    assert root["command"] == SHOWN
    assert base64.b64decode(root["command_base64"]) == COMMAND
    pairs = [[base64.b64decode(x) for x in pair] for pair in root["environment_variables_base64"]]
    assert [b"\xffVARIABLE\n", b"\xfe\x1b[7m"] in pairs
    assert base64.b64decode(root["cmdline_base64"]).endswith(b" " + STRANGE)
    files = told["inspect"][0]["file_descriptors"][0]["open_files"]
    paths = {base64.b64decode(f["path_base64"]) for f in files if "path_base64" in f}
    assert os.fsencode(running.dir) + b"/" + STRANGE in paths
    (task,) = told["info"]["processes"]
    assert base64.b64decode(task["command_base64"]) == COMMAND
    (task,) = told["memparse"]
    assert base64.b64decode(task["command_base64"]) == COMMAND


def test_the_metadata_identity_is_told_the_very_name_by_the_summary(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, dump: Path
) -> None:
    analyst = ["-i", keys.path("other/identity.key"), "--trust", keys.path("signer.pub")]
    done = sealpoint.run("inspect", dump, "--ps-tree", "--json", *analyst).ok()
    (root,) = json.loads(done.out)[0]["process_tree"]
    assert base64.b64decode(root["command_base64"]) == COMMAND


def test_the_restore_says_what_runs_in_one_line(
    running: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, dump: Path
) -> None:
    running.close()
    failed = sealpoint.run("restore", dump, "--detach", *keys.open)  # its directory is gone
    said = next(line for line in failed.err.splitlines() if "restoring" in line)
    assert f"command '{SHOWN}'" in failed.err.replace("\n", ""), said
    assert all(c.isprintable() for c in failed.err.replace("\n", ""))


@pytest.mark.parametrize("what", ["stat", "children", "status"])
def test_the_line_of_a_process_is_not_what_its_name_says(
    running: harness.Workload, what: str
) -> None:
    from sealpoint import process

    if what == "stat":
        assert process.state(running.pid) in "SR"
        assert process.start_time(running.pid) > 1
    elif what == "children":
        assert running.pid in process.descendants(os.getpid())
    else:
        forging = (
            "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'a\\rNSpid:\\t7', 0, 0, 0); "
            "print(flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", forging], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            child.stdout.readline()
            assert process.pid_inside(child.pid) == child.pid
            child.stdin.close()

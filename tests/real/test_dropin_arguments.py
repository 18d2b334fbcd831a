"""What the drop-in takes for CRIU's command and options must be what CRIU takes for them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from sealpoint.dropin import arguments


def parse(*words: str) -> arguments.CommandLine:
    return arguments.parse(list(words))


@pytest.mark.parametrize(
    "words",
    [
        ("dump", "-t", "7", "-D", "x"),
        ("-t", "7", "-D", "x", "dump"),
        ("--log-file", "check", "dump", "--tree", "7", "--images-dir", "x"),
        ("--log-file=check", "-t7", "-Dx", "dump"),
        ("-o", "check", "-Rt", "7", "-v4", "-D", "x", "dump"),
        ("-t", "7", "-D", "x", "--", "dump"),
        ("--external", "check", "--images-dir=x", "--tree=7", "--no-daemon", "dump"),
    ],
    ids=" ".join,
)
def test_a_dump_is_found_wherever_its_word_stands(words: tuple[str, ...]) -> None:
    line = parse(*words)
    assert (line.command, line.pid, line.images) == ("dump", 7, "x")
    assert "x" not in line.rest


@pytest.mark.parametrize(
    "words",
    [
        ("--log", "check", "dump", "-t", "7"),  # CRIU takes abbreviations
        ("--a-later-option", "check", "dump", "-t", "7"),
        ("--a-later-option=check", "--", "restore"),
        ("--page-serv", "check", "dump"),
    ],
    ids=" ".join,
)
def test_a_command_behind_an_option_that_is_not_known_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(arguments.RefusedError, match="in full"):
        parse(*words)


@pytest.mark.parametrize(
    "words",
    [
        ("check", "--track-mem", "--feature", "uffd"),
        ("cpuinfo", "dump-not", "--config", "x"),
        ("--a-later-option", "check"),
        ("-V",),
        ("-h",),
        ("exec", "--", "true"),
        (),
    ],
    ids=" ".join,
)
def test_what_leads_no_memory_anywhere_is_left_to_criu(words: tuple[str, ...]) -> None:
    assert parse(*words).command not in arguments.COMMANDS


@pytest.mark.parametrize("swrk", [("dump", "-o", "swrk"), ("-D", "swrk", "restore")])
def test_only_the_first_word_can_ask_for_rpc(swrk: tuple[str, ...]) -> None:
    assert parse(*swrk).command in arguments.COMMANDS


def test_the_table_of_options_is_that_of_the_real_criu(criu: Path) -> None:
    """A value that CRIU takes and we do not, or the reverse, would let another word pass for the command."""

    def says(option: str) -> str:
        done = subprocess.run([criu, option], capture_output=True, text=True, env={"PATH": "/bin"})
        return done.stdout + done.stderr

    for name in arguments.WITH_VALUE:
        assert "requires an argument" in says(f"--{name}") or "unrecognized" in says(f"--{name}")
    for name in arguments.FLAGS:
        said = says(f"--{name}")
        assert "requires an argument" not in said
    named = set(re.findall(r"--([a-z][a-z-]*[a-z])", says("--help"))) - {"no"}  # --no-OPTION
    assert len(named) > 40
    known = arguments.WITH_VALUE | arguments.FLAGS
    assert {n for n in named if n not in known and n.removeprefix("no-") not in known} == set()

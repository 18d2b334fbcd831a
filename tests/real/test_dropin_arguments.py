"""What the drop-in takes for CRIU's command and options must be what CRIU takes for them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from sealpoint.criu import options
from sealpoint.dropin import arguments, criu_config

# Of each version: what its binary takes for options, and what its rpc.proto says.
FACTS = json.loads((Path(__file__).resolve().parent.parent / "engines/criu_facts.json").read_text())


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
        ("--later=check", "dump"),
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


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("dump", "--leave-r", "--tre", "7"), ["dump", "--leave-running", "--tree=7"]),
        (("-vvRj", "dump"), ["--verbosity=vRj", "dump"]),
        (("-jRv", "dump"), ["--shell-job", "--leave-running", "--verbosity", "dump"]),
        (("--cpu", "dump"), ["--cpu-cap", "dump"]),
        (("--cpu=ins", "dump"), ["--cpu-cap=ins", "dump"]),
        (("restore", "--exec-cmd", "--", "a", "-b", "--tree"),
         ["restore", "--exec-cmd", "--", "a", "-b", "--tree"]),
        (("-o", "--", "dump"), ["--log-file=--", "dump"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_abbreviated_is_handed_on_in_full(
    words: tuple[str, ...], wanted: list[str]
) -> None:
    line = arguments.parse(list(words), {})
    assert [w for w in line.rest if w != "--no-default-config"] == wanted


@pytest.mark.parametrize(
    "words",
    [
        ("dump", "--lo", "x"),
        ("dump", "--tree"),
        ("dump", "--leave-running=yes"),
        ("dump", "-q"),
        ("dump", "--confi", "x"),
        ("dump", "--external", "--config"),
        ("dump", "--external", "a--config=b"),
        ("restore", "--exec-cmd", "--", "program", "--config", "x"),
        ("frobnicate",),
        ("dump-not", "-t", "7"),
        ("--stream", "swrk", "3"),
        ("--page-serv", "swrk", "3"),
        ("-D", "x", "swrk", "3"),
    ],
    ids=" ".join,
)
def test_what_criu_could_take_otherwise_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(arguments.RefusedError):
        arguments.parse(list(words), {})


@pytest.mark.parametrize(
    "words", [("dump", "-t", "7", "-h"), ("dump", "--external", "--help"), ("restore", "-V")],
    ids=" ".join,
)  # fmt: skip
def test_where_criu_only_shows_its_help_nothing_else_is_done(words: tuple[str, ...]) -> None:
    assert arguments.parse(list(words), {}).command == ""


@pytest.mark.parametrize("command", ["dump", "pre-dump", "restore", "lazy-pages"])
@pytest.mark.parametrize("own", [(), ("--no-default-config",), ("--config", "/dev/null")], ids=str)
def test_criu_is_never_to_read_a_file_of_settings(command: str, own: tuple[str, ...]) -> None:
    line = arguments.parse([command, *own], {"HOME": "/nowhere", "CRIU_CONFIG_FILE": "/dev/null"})
    assert line.rest == ["--no-default-config", command]
    assert line.words == [command]


@pytest.mark.parametrize("version", FACTS)
def test_the_table_of_options_is_that_of_every_version(version: str) -> None:
    facts = FACTS[version]["options"]
    number = tuple(map(int, version.split(".")))
    known: dict[str, list[str]] = {"none": [], "needed": [], "optional": []}
    for name, value in options.OPTIONS.items():
        if options.SINCE.get(name.removeprefix("no-"), (3, 17)) <= number:
            known[value.value].append(name)
    assert {kind: sorted(names) for kind, names in known.items()} == facts


def test_every_option_is_either_taken_from_a_file_or_refused_with_a_reason() -> None:
    for name in options.OPTIONS:
        base = name[3:] if name[3:] in options.SWITCHES else name
        assert (base in criu_config.ALLOWED) != (base in criu_config.REFUSED), name


def test_the_table_of_options_is_that_of_the_real_criu(criu: Path) -> None:
    """A value that CRIU takes and we do not, or the reverse, would let another word pass for the command."""

    def says(option: str) -> str:
        done = subprocess.run([criu, option], capture_output=True, text=True, env={"PATH": "/bin"})
        return done.stdout + done.stderr

    for name, value in options.OPTIONS.items():
        said = says(f"--{name}")
        if "unrecognized" not in said:
            assert ("requires an argument" in said) == (value is options.Value.NEEDED), name
    named = set(re.findall(r"--([a-z][a-z-]*[a-z])", says("--help"))) - {"no"}  # --no-OPTION
    assert len(named) > 40
    assert named - set(options.OPTIONS) == set()

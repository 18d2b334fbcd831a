"""An option of CRIU's before `--` is recognised, and the error says where it belongs."""

from __future__ import annotations

import click
import pytest

from sealpoint.cli.app import cli as group
from sealpoint.criu.options import OPTIONS, SHORT
from sealpoint.criu.run import _REFUSED, misplaced

COMMANDS = ("dump", "restore", "watch", "migrate", "receive")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("typed", "place"),
    [
        ("--tcp-established", "-- --tcp-established"),
        ("--tcp-est", "-- --tcp-established"),
        ("--no-tcp-close", "-- --no-tcp-close"),
        ("--inherit-fd=fd[3]:x", "-- --inherit-fd VALUE"),
        ("--inh=fd[3]:x", "-- --inherit-fd VALUE"),
        ("-j", "-- --shell-job"),
        ("-jv4", "-- --shell-job"),
        ("--tcp", "-- --tcp-close, -- --tcp-established"),
        ("--images-dir", "sealpoint decides where images go"),
        ("-D", "sealpoint decides where images go"),
    ],
)
def test_an_option_of_criu_is_told_where_it_belongs(cli, command, typed, place):
    result = cli(command, typed, "1234")
    assert result.code == 2
    assert "of CRIU's" in result.err
    assert place in result.err


@pytest.mark.parametrize("name", [f"--{name}" for name in OPTIONS] + [f"-{c}" for c in SHORT])
def test_every_option_of_criu_is_known(name):
    message, hint = misplaced(name)
    full = name if name.startswith("--") else f"--{SHORT[name[1]]}"
    assert full in message
    assert hint == _REFUSED[full] if full in _REFUSED else f"-- {full}" in hint


def test_sealpoints_own_options_and_unknown_ones_are_not_taken_for_criu_s(cli):
    assert "CRIU" not in cli("dump", "--bogus").err
    assert "CRIU" not in cli("dump", "-k").err
    assert "CRIU" not in cli("seal", "--tcp-established").err  # it hands nothing on to CRIU
    assert "--leave-running" in cli("dump", "--leave-run").err
    for name in ("", "-", "--", "---", "--=", "--=x"):
        assert misplaced(name) is None


def test_the_commands_are_all_that_hand_options_on():
    context = click.Context(group)
    found = {
        name
        for name in group.list_commands(context)
        if any(p.name == "criu_arguments" for p in group.get_command(context, name).params)
    }
    assert found == set(COMMANDS)

"""No number makes a command fail as a defect: every option of every command that is a number, with every absurd one."""

from __future__ import annotations

import click
import pytest

from sealpoint import errors, process
from sealpoint.checkpoint.live.dump import check_process
from sealpoint.cli import numbers
from sealpoint.cli.app import cli as group
from sealpoint.dropin import arguments

ABSURD = (
    *(
        "-1",
        "-2147483649",
        str(2**31),
        str(2**32),
        str(2**63),
        str(2**64),
        str(10**30),
        "9" * 5000,
        "1e3",
    ),
    *(
        "",
        " ",
        " 1",
        "1 ",
        "1\n",
        "+1",
        "1_0",
        "0x1",
        "1.5e1",
        "nan",
        "inf",
        "-inf",
        "٣",
        "²",
        "1,5",
        "--1",
    ),
)
# Options that are texts and have a number in them: (command, option).
TEXTS = (
    ("watch", "--every"),
    ("state allow-older", "--for"),
    *(
        (name, "--max-size")
        for name in ("restore", "receive", "info", "inspect", "list", "secrets")
    ),
)


def options(command: click.Command, path: str, context: click.Context):
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from options(
                command.get_command(context, name), f"{path} {name}".strip(), context
            )
        return
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_flag:
            yield path, option


def numeric():
    context = click.Context(group)
    for path, option in options(group, "", context):
        if not isinstance(option.type, click.types.StringParamType | click.Choice):
            yield path, option.opts[-1], option.type
    for path, option in TEXTS:
        yield path, option, None


ALL = list(numeric())


def test_every_number_has_a_type_with_bounds():
    """click's own take blanks, underscores and numbers of any size, or those that are none."""
    kinds = {type(kind) for _, _, kind in ALL if kind is not None}
    assert kinds == {numbers.Whole, numbers.Seconds}
    assert {path for path, _, kind in ALL if kind is numbers.PID} == {
        "dump", "watch", "migrate", "coredump", "memparse", "inspect", "secrets",
    }  # fmt: skip


@pytest.mark.parametrize(("path", "option", "kind"), ALL, ids=lambda x: str(x)[:30])
def test_an_absurd_number_is_a_wrong_option(cli, path, option, kind):
    fine = set() if kind is not None else {" 1", "1 ", str(2**31), str(2**32)}
    for value in ABSURD:
        if value in fine or (option == "--max-size" and value in ("", " ", "1\n")):
            continue
        result = cli(*path.split(), f"{option}={value}")
        assert result.code == 2, (value, result)
        assert "internal error" not in result.err
        assert len(result.err) < 2000
        if kind is not None:
            assert "is not a" in result.err, (value, result)


@pytest.mark.parametrize("path", [path for path, _, kind in ALL if kind is numbers.PID])
def test_zero_is_no_process(cli, path):
    option = next(option for p, option, kind in ALL if p == path and kind is numbers.PID)
    result = cli(*path.split(), option, "0")
    assert result.code == 2
    assert "is not a process ID" in result.err


def test_the_largest_process_id_is_one_that_is_not_there(cli, tmp_path, keys):
    seal = ["-r", keys.recipient_path, "--sign", keys.signer_path]
    commands = {
        "dump": ["-o", "x.sealed"],
        "watch": ["-o", ".", "--every", "1s"],
        "migrate": ["--to", "tcp://127.0.0.1:1"],
    }
    for name, words in commands.items():
        result = cli(name, "-t", str(2**31 - 1), *words, *seal)
        assert result.code in (2, 6), result  # 6: there is no CRIU
        assert "internal error" not in result.err


@pytest.mark.parametrize(
    "every", ["0", "0s", "367d", "1e3s", "9" * 400 + "d", "999999999d", "nan", "1.s", ""]
)
def test_a_time_that_cannot_be_waited_for_is_none(cli, every, keys):
    seal = ["-r", keys.recipient_path, "--sign", keys.signer_path]
    result = cli("watch", "-t", "1", "-o", ".", "--every", every, *seal)
    assert result.code == 2
    assert "is not a time" in result.err


PIDS = (-(2**63), -1, 0, 2**31, 2**32, 2**63, 2**64, 10**30)


@pytest.mark.parametrize("pid", PIDS)
def test_a_library_that_is_given_an_absurd_process_says_so(pid):
    with pytest.raises(errors.UsageError, match="there is no process"):
        check_process(process.Held(pid))
    held = process.Held(pid)
    assert not held.runs
    assert held.fate == "its processes were not looked at"


@pytest.mark.parametrize("option", ["tree", "port", "ps-socket", "status-fd"])
@pytest.mark.parametrize("value", ABSURD)
def test_the_drop_in_reads_no_number_otherwise_than_criu(option, value):
    words = ["dump", f"--{option}={value}", "-D", "images"]
    with pytest.raises(arguments.RefusedError, match=f"--{option}"):
        arguments.parse(words, {})

"""The command line is thin: short commands, one decorator for reading and one for sealing."""

from __future__ import annotations

import ast
from pathlib import Path

import click
import pytest

from sealpoint.cli import app, options, reading, running, sealing

SOURCE = Path(options.__file__).parent.parent
MOST_OF_A_COMMAND = 60
MOST_OF_A_FUNCTION = 80

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(directory: Path) -> list[tuple[str, Function]]:
    """Every function below a directory, and where it is."""
    return [
        (f"{path.relative_to(directory)}:{node.name}", node)
        for path in sorted(directory.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, Function)
    ]


def lines(node: Function) -> int:
    """Of a function, without decorators."""
    return (node.end_lineno or 0) - node.lineno + 1


def body_lines(node: Function) -> int:
    """Of its body, without the docstring."""
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1


def commands(command: click.Command, name: str = "sealpoint") -> dict[str, click.Command]:
    found = {name: command}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            inner = command.get_command(context, child)
            assert inner is not None
            found |= commands(inner, f"{name} {child}")
    return found


def test_what_is_counted():
    source = '@decorator\n@another\ndef f(\n    a,\n):\n    """Say.\n\n    More.\n    """\n    b = 1\n    return b\n'
    node = ast.parse(source).body[0]
    assert isinstance(node, Function)
    assert (lines(node), body_lines(node)) == (9, 2)


def test_no_function_of_the_command_line_has_a_body_over_sixty_lines():
    found = {name: body_lines(node) for name, node in functions(SOURCE / "cli")}
    assert len(found) > 100
    assert {name: n for name, n in found.items() if n > MOST_OF_A_COMMAND} == {}


def test_no_function_is_longer_than_a_screen():
    found = functions(SOURCE)
    assert len(found) > 1000
    long = {name: lines(node) for name, node in found if lines(node) > MOST_OF_A_FUNCTION}
    assert long == {}


# Its options are written into the configuration: nothing is read or sealed.
INSTALLS = "sealpoint install-criu"


@pytest.mark.parametrize(
    "parameter",
    ["identities", "trust", "allow_unsigned", "parents", "recipients", "unsigned", "criu_log"],
)
def test_a_shared_option_has_one_name_and_one_help(parameter: str):
    found = {}
    for name, command in commands(app.cli).items():
        if name == INSTALLS:
            continue
        for param in command.params:
            if param.name == parameter:
                found[name] = (tuple(param.opts), getattr(param, "help", None))
    assert len(found) > 4
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize(
    ("decorator", "signs"),
    [
        (reading, ("trust", "allow_unsigned")),
        (sealing, ("recipients", "metadata_recipients")),
        (running, ("criu_log", "criu_arguments")),
    ],
)
def test_options_that_go_together_come_from_one_decorator(decorator, signs: tuple[str, ...]):
    """A command that had them by hand would get them one by one, or not all of them."""
    for name, command in commands(app.cli).items():
        given = {param.name for param in command.params}
        if name == INSTALLS:
            continue
        assert not given & set(signs) or set(signs) <= given, name
        if not set(signs) <= given:
            continue
        assert command.callback is not None
        module = command.callback.__globals__["__name__"]
        assert module in (reading.__name__, sealing.__name__, running.__name__), (name, module)
    users = [
        path.name
        for path in SOURCE.joinpath("cli").glob("*.py")
        if f"from {decorator.__name__} import" in path.read_text()
    ]
    assert len(users) > 4


def test_what_the_command_line_says_arrives_in_one_value(monkeypatch):
    """Both decorators together: each has its options, and the one passphrase is for both."""
    seen = []

    @click.command()
    @reading.reads_checkpoint("parents", "expect")
    @sealing.seals_checkpoint(sealing.A_FILE)
    def command(*, reading, seal):
        seen.append((reading, seal))

    arguments = ["-i", "key", "--trust", "a", "--trust", "b", "--parents", "there", "--expect", "x"]
    arguments += ["-r", "r.pub", "-o", "-", "--passphrase-file", "word", "--unsigned", "--force"]
    command.main(arguments, standalone_mode=False)
    [(read, seal)] = seen
    assert (read.identities, read.trust, read.parents) == (("key",), ("a", "b"), ("there",))
    assert (read.expect, read.passphrase_file, read.stores) == (("x",), "word", ())
    assert (seal.recipients, seal.passphrase_file, seal.unsigned) == (("r.pub",), "word", True)
    assert (seal.piped, seal.force, seal.where) == (True, True, "standard output")

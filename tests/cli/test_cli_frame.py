"""What holds for every command: help, errors, exit codes, signals, start-up, completion."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from sealpoint import __version__, errors
from sealpoint.cli import app

COMMANDS = list(app._COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(cli, command):
    result = cli(command, "--help")
    assert result.code == 0
    assert f"Example:\n    sealpoint {command} " in result.out
    assert result.err == ""
    assert cli(command, "-h").out == result.out
    assert max(map(len, result.out.splitlines())) <= 100


def test_the_help_lists_every_command_and_every_exit_code(cli):
    result = cli("--help")
    assert result.code == 0
    table = result.out[result.out.index("Exit codes") :]
    codes = {int(n) for n in re.findall(r"^\s+(\d+)  ", table, re.MULTILINE)}
    found = {errors.SealpointError}
    for kind in found.copy():
        found |= set(kind.__subclasses__())
    assert codes == {0, 130} | {kind.exit_code for kind in found}
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", result.out, re.MULTILINE)


def test_the_version(cli):
    assert cli("--version").out == f"sealpoint {__version__}\n"


def test_without_a_command_the_help_is_shown_as_an_error(cli):
    result = cli()
    assert result.code == 2
    assert "Usage:" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command"),
        (["--nonsense"], "No such option"),
        (["info", "--nonsense", "x"], "No such option"),
        (["info"], "Missing argument"),
        (["info", "a", "b"], "unexpected extra argument"),
        (["seal", "x"], "Missing option"),
        (["seal", "x", "-o"], "requires an argument"),
        (["seal", "x", "-o", "y", "--suite", "rot13"], "Invalid value"),
        (["dump", "-t", "abc", "-o", "x"], "Invalid value"),
        (["completion", "tcsh"], "Invalid value"),
    ],
)
def test_wrong_usage_is_an_error_with_a_hint_on_standard_error(cli, arguments, words):
    result = cli(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("sealpoint: ")
    assert words in result.err
    assert "--help" in result.err or words == "requires an argument"


@pytest.mark.parametrize("error", [ValueError, KeyError, RecursionError, MemoryError, UnicodeError])
def test_a_defect_is_one_line_without_a_traceback_or_its_message(cli, sealed, monkeypatch, error):
    def fail(*_, **__):
        if error is UnicodeError:
            "\udcff".encode()
        raise error("secret contents")

    monkeypatch.setattr("sealpoint.checkpoint.opening.access.CheckedFile.open", fail)
    result = cli("info", sealed)
    assert result.code == 1
    assert "secret" not in result.err
    assert re.match(
        r"sealpoint: internal error: \w+ in [\w.]+:\d+\n  hint: .*SEALPOINT_DEBUG", result.err
    )


def test_names_in_messages_do_not_steer_the_terminal(cli):
    shown = cli("info", "no\x1b]0;owned\x07\x9b31m\u202ename")
    assert shown.code == 2
    assert r"no\x1b]0;owned\x07\xc2\x9b31m\xe2\x80\xaename does not exist" in shown.err
    assert all(c.isprintable() or c == "\n" for c in shown.err)


def test_debugging_shows_the_traceback(cli, sealed, monkeypatch):
    monkeypatch.setattr(
        "sealpoint.checkpoint.opening.access.CheckedFile.open", lambda *_, **__: 1 / 0
    )
    monkeypatch.setenv("SEALPOINT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli("info", sealed)


@pytest.mark.parametrize(
    "kind",
    [
        errors.UsageError,
        errors.FileError,
        errors.IdentityError,
        errors.PolicyError,
        errors.SystemEnvironmentError,
        errors.CriuError,
        errors.NoTrustedSignerGivenError,
        errors.SealpointError,
    ],
)
def test_every_error_ends_with_its_code_message_and_hint(cli, sealed, monkeypatch, kind):
    def fail(*_, **__):
        raise kind("what \x1b[31mhappened\u202e", hint="do\rthis")

    monkeypatch.setattr("sealpoint.checkpoint.opening.access.CheckedFile.open", fail)
    result = cli("info", sealed)
    assert result.code == kind.exit_code
    assert result.err == ("sealpoint: what \\x1b[31mhappened\\xe2\\x80\\xae\n  hint: do\\rthis\n")
    assert result.out == ""


def test_standard_output_that_is_full_or_closed_is_no_defect(program, sealed, cli):
    with open("/dev/full", "wb") as full:
        result = program("info", sealed, stdout=full)
    assert result.code == 6
    assert "No space left" in result.err
    reader, writer = os.pipe()
    os.close(reader)
    result = program("info", sealed, stdout=writer)
    os.close(writer)
    assert (result.code, result.err) == (141, "")
    done = subprocess.run(
        [
            "sh",
            "-c",
            '"$0" -c "from sealpoint.cli import main; main()" info s.sealed >&- 2>&1',
            sys.executable,
        ],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stdout + done.stderr


SLEEPER = """
import sys, time
from sealpoint.checkpoint.opening.access import CheckedFile
def wait(*_, **__):
    try:
        print("ready", flush=True)
        while True:  # a signal just before a long sleep would be noticed after it only
            time.sleep(0.05)
    finally:
        print("cleaning", flush=True)
        time.sleep(0.5)
        print("clean", flush=True)
CheckedFile.open = wait
from sealpoint.cli import main
main()
"""


def sleeper(sealed, **options):
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, "info", sealed],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_once_and_lets_it_clean_up(sealed, number):
    child = sleeper(sealed)
    child.send_signal(number)
    assert child.stdout.readline() == "cleaning\n"
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=20)
    assert out == "clean\n"
    assert child.returncode == 128 + number
    assert err == f"sealpoint: {'interrupted' if number == signal.SIGINT else 'terminated'}\n"


def test_a_signal_that_was_ignored_stays_ignored(sealed):
    def nohup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    child = sleeper(sealed, preexec_fn=nohup)
    child.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)
    assert child.returncode == 143


def test_ctrl_c_while_starting_is_no_traceback():
    code = (
        "import sys, types\n"
        "sys.modules['sealpoint.cli.app'] = types.ModuleType('x')\n"
        "sys.modules['sealpoint.cli.app'].__getattr__ = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)\n"
        "from sealpoint.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"")


HEAVY = {
    "cryptography",
    "google",
    "lz4",
    "zstandard",
    "blake3",
    "json",
    "tarfile",
    "tomllib",
}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["info", "--help"], ["x"]])
def test_starting_imports_nothing_that_is_not_needed(arguments):
    code = (
        "import sys, atexit\n"
        "from sealpoint.cli.app import run\n"
        f"run({arguments!r})\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    modules = {m.split(".")[0] for m in done.stderr.splitlines()[-1].split()}
    assert not modules & (HEAVY - {"json"} if "info" in arguments else HEAVY)


def test_info_without_a_key_starts_no_machinery_of_contents():
    code = (
        "import sys\n"
        "from sealpoint.cli.app import run\n"
        "run(['info', 'none'])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    modules = {m.split(".")[0] for m in done.stderr.splitlines()[-1].split()}
    assert not modules & {"google", "lz4", "zstandard"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(cli, shell):
    result = cli("completion", shell)
    assert result.code == 0
    assert "_SEALPOINT_COMPLETE" in result.out
    assert result.err == ""


def test_the_completion_script_is_valid_bash_and_completes(program, tmp_path):
    (tmp_path / "script").write_text(program("completion", "bash").out)
    assert subprocess.run(["bash", "-n", tmp_path / "script"]).returncode == 0

    def complete(words: str) -> list[str]:
        count = str(len(words.split(" ")) - 1)
        environment = {
            "_SEALPOINT_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": count,
        }
        result = program(env=os.environ | environment)
        assert result.code == 0
        return [line.split(",")[1] for line in result.out.splitlines()]

    assert complete("sealpoint rek") == ["rekey"]
    assert "--metadata-recipient" in complete("sealpoint seal --m")
    assert complete("sealpoint completion ") == ["bash", "zsh", "fish"]

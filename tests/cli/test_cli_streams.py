"""Output never fails for what the standard streams are: any encoding, closed, a reader who left, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint.checkpoint_helpers import attributes, seal_objects

RUN = [sys.executable, "-c", "import sys; from sealpoint.cli import main; main()"]
OBJECTS = {
    "core-1.img": (b"core", attributes()),
    "pages-1.img": (b"\0secret-in-memory\0" * 10_000, attributes()),
}
EVIL = "core-é\x1b[31m\u202e\\€.img"


@pytest.fixture
def sealed_file(keys):
    seal_objects(keys, "s", OBJECTS | {EVIL: (b"", None)}, workload="wörk\x1b€")
    return ["s", "-i", keys.identity_path, "--trust", keys.trust_path]


def shell(line: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`line` in a shell, in which "$@" is the command."""
    return subprocess.run(
        ["sh", "-c", line, "sh", *RUN, *map(str, arguments)],
        capture_output=True,
        env=os.environ | environment,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
        check=False,
    )


@pytest.mark.parametrize("command", ["info", "verify", "show", "inspect"])
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "iso-8859-1:strict"},
        {"PYTHONIOENCODING": "koi8-r"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"LC_ALL": "xx_YY.nothing"},
        {"COLUMNS": "1", "LINES": "1"},
        {"COLUMNS": "-3", "TERM": "nonsense"},
    ],
    ids=str,
)
def test_no_locale_and_no_narrow_terminal_makes_it_fail(sealed_file, command, environment):
    done = shell('exec "$@"', command, *sealed_file, **environment)
    usual = shell('exec "$@"', command, *sealed_file)
    assert done.returncode == usual.returncode, done
    assert b"Traceback" not in done.stderr
    assert b"internal error" not in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_failure(sealed_file, redirection):
    done = shell(f'exec "$@" {redirection}', "info", *sealed_file)
    assert done.returncode == 0, done


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_with_closed_streams_nothing_that_is_said_lands_in_a_file(keys, sealed_file, redirection):
    Path("in").mkdir()
    for name, (data, _) in OBJECTS.items():
        Path("in", name).write_bytes(data)
    done = shell(f'exec "$@" {redirection}', "open", *sealed_file, "-o", "out")
    assert done.returncode == 0, done
    for name, (data, _) in OBJECTS.items():
        assert Path("out", name).read_bytes() == data


def test_data_for_a_closed_standard_output_is_an_error(sealed_file):
    done = shell('exec "$@" >&-', "report", *sealed_file, "-o", "-")
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr
    assert b"internal error" not in done.stderr


def test_a_reader_who_left_is_no_traceback(sealed_file):
    done = shell('"$@" | head -1; true', "info", *sealed_file)
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
    assert done.stdout.count(b"\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_a_full_disk_is_an_error_with_a_code(arguments):
    done = shell('exec "$@" > /dev/full', *arguments)
    assert done.returncode == 6, done
    assert done.stderr.startswith(b"sealpoint: ")
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", ["> /dev/full", "2> /dev/full", "> /dev/full 2>&1"])
def test_a_full_disk_under_either_stream_is_no_traceback(sealed_file, redirection):
    done = shell(f'exec "$@" {redirection}', "info", *sealed_file)
    assert done.returncode == (6 if redirection[0] == ">" else 0), done
    assert b"Traceback" not in done.stdout + done.stderr
    failed = shell(f'exec "$@" {redirection}', "info", "none")
    assert failed.returncode == 2, failed
    assert b"Traceback" not in failed.stdout + failed.stderr

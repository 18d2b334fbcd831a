"""`dump` and `restore` as far as they go without CRIU: options, acknowledgements, a CRIU that is not there."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from sealpoint.cli import dump
from sealpoint.errors import UsageError

ID, ORIGIN = b"\1" * 16, b"\2" * 32


def pid() -> str:
    return str(os.getpid())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "x", "--kill-after", "ack"], "for -o -"),
        (["-o", "-", "--kill-after", "ack", "-R"], "contradict"),
        (["-o", "-", "--kill-after", "ack", "--passphrase-file", "-"], "both a passphrase"),
        (["-o", "-", "--kill-after", "ack", "--sign-passphrase-file", "-"], "both a passphrase"),
        (["-o", "-", "--kill-after", "later"], "Invalid value"),
    ],
)
def test_contradicting_options_of_dump(cli, sealing, arguments, words):
    result = cli("dump", "-t", pid(), *sealing, *arguments)
    assert result.code == 2
    assert words in result.err


def test_a_criu_that_is_not_there_is_said_with_a_hint(cli, sealing, opening, sealed):
    for arguments in (
        ["dump", "-t", pid(), "-o", "x", *sealing, "--criu", "/none/criu"],
        ["restore", sealed, *opening, "--criu", "/none/criu"],
    ):
        result = cli(*arguments)
        assert result.code == 6
        assert "/none/criu" in result.err
        assert "hint" in result.err
    assert not os.path.exists("x")


def test_a_criu_that_does_not_run_here_is_said(cli, sealing, tmp_path):
    script = tmp_path / "criu"
    script.write_text("#!/bin/sh\necho 'Kernel too new' >&2\nexit 1\n")
    script.chmod(0o755)
    result = cli("dump", "-t", pid(), "-o", "x", *sealing, "--criu", script)
    assert result.code == 6
    assert not os.path.exists("x")
    assert stat.S_ISREG(script.stat().st_mode)


def test_restore_refuses_before_it_asks_for_a_key(cli, sealed, keys):
    result = cli("restore", sealed, "-i", "none")
    assert result.code == 5
    assert "--trust" in result.err


@pytest.fixture
def receiver():
    """The write end of a pipe that is standard input."""
    saved = os.dup(0)
    reader, writer = os.pipe()
    os.dup2(reader, 0)
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as file:
        yield file
    os.dup2(saved, 0)
    os.close(saved)


def test_the_acknowledgement_names_the_checkpoint(receiver):
    receiver.write(dump.ack_line(ID, ORIGIN))
    assert dump._await_ack(5)(ID, ORIGIN)


def test_the_acknowledgement_may_come_in_pieces(receiver):
    def send():
        for byte in dump.ack_line(ID, ORIGIN):
            receiver.write(bytes([byte]))
            time.sleep(0.001)

    thread = threading.Thread(target=send)
    thread.start()
    assert dump._await_ack(20)(ID, ORIGIN)
    thread.join()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "without acknowledging"),
        (b"\n", "another checkpoint"),
        (dump.ack_line(ID, ID * 2), "another checkpoint"),
        (dump.ack_line(ORIGIN[:16], ORIGIN), "another checkpoint"),
        (dump.ack_line(ID, ORIGIN)[:-1], "without acknowledging"),
        (dump.ack_line(ID, ORIGIN) + b"more", "another checkpoint"),
        (b"x" * 10_000, "another checkpoint"),
        (b"sealpoint: error\n", "another checkpoint"),
    ],
)
def test_anything_else_is_no_acknowledgement(receiver, data, words):
    receiver.write(data)
    receiver.close()
    with pytest.raises(UsageError, match=words):
        dump._await_ack(5)(ID, ORIGIN)


def test_an_acknowledgement_that_does_not_come_is_not_waited_for_for_ever(receiver):
    with pytest.raises(UsageError, match="in time"):
        dump._await_ack(0.1)(ID, ORIGIN)


def test_the_help_says_what_an_unsigned_restore_risks(cli):
    assert "RISK" in cli("restore", "--help").out


def test_nothing_is_left_in_the_working_directory(cli, sealing):
    cli("dump", "-t", pid(), "-o", "x", *sealing, "--criu", "/none/criu")
    assert list(Path().iterdir()) == []

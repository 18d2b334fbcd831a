"""The progress bar."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from sealpoint.cli import bar
from sealpoint.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def draw(monkeypatch):
    """What a terminal gets to see."""

    def draw(what: str, *reports: Progress, patience: float = 0.0) -> str:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.delenv("SEALPOINT_PROGRESS", raising=False)
        monkeypatch.setattr(bar, "_PATIENCE", patience)
        with monkeypatch.context() as m:  # here, because pytest replaces it before each test
            m.setattr(bar.sys, "stderr", terminal := Terminal())
            with bar.Bar(what) as report:
                for progress in reports:
                    report(progress)
        return terminal.getvalue()

    return draw


def test_nothing_is_drawn_for_what_is_quick(draw):
    assert draw("sealing", Progress(10, 100), patience=60) == ""


def test_what_takes_long_is_drawn_with_rate_and_shares(draw):
    report = Progress(50_000_000, 100_000_000, zero=10_000_000, compressed=20_000_000)
    shown = draw("sealing x", report)
    assert "sealing x" in shown
    assert "MB/s" in shown
    assert "20% zero, 40% compressed" in shown


def test_without_a_total_or_data_it_is_drawn_as_well(draw):
    assert "receiving" in draw("receiving", Progress(0))


def test_a_name_is_no_markup_and_steers_nothing(draw):
    shown = draw("sealing [red]x[/blue] \x07\x1b]0;evil\x07", Progress(1, 2))
    assert r"[red]x[/blue] \x07\x1b]0;evil\x07" in shown
    assert "\x07" not in shown


def test_a_pipe_gets_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("SEALPOINT_PROGRESS", raising=False)
    monkeypatch.setattr(bar, "_PATIENCE", 0.0)
    stream = io.StringIO()
    monkeypatch.setattr(bar.sys, "stderr", stream)
    with bar.Bar("sealing") as report:
        report(Progress(1, 2))
    assert stream.getvalue() == ""


PROGRAM = """
import fcntl, os, signal, struct, sys, termios
from sealpoint.progress import Progress
from sealpoint.cli import bar

bar._PATIENCE = bar._PAUSE = 0


def columns(number):
    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 24, number, 0, 0))


def draw(report, *sizes, total=0):
    for size in sizes:
        share = size << 18
        report(Progress(size << 20, total << 20, zero=share, compressed=share))


signal.signal(signal.SIGINT, signal.default_int_handler)
with bar.Bar("sealing a-file-with-quite-a-long-name.img") as report:
"""


def on_a_terminal(tmp_path: Path, body: str, code: int = 0, **environment: str) -> str:
    """What a real terminal gets on standard error, while standard output is a file."""
    master, slave = pty.openpty()
    # As wide as it is made, whatever the caller's terminal says of itself.
    keep = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "SEALPOINT_PROGRESS")}
    with (tmp_path / "output").open("w") as output:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM + "".join(f"    {x}\n" for x in body.splitlines())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=slave,
            env=keep | {"TERM": "xterm"} | environment,
            check=False,
        )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed, and everything is read
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert done.returncode == code, shown
    assert not (tmp_path / "output").read_text()
    return shown.decode()


def lines(shown: str) -> list[str]:
    """What stood in the line, one time after the other, without the control sequences."""
    for sequence in ("\x1b[?25l", "\x1b[?25h", "\x1b[K"):
        shown = shown.replace(sequence, "")
    return [line for line in shown.split("\r") if line.strip()]


def test_a_size_that_is_known_is_a_share(tmp_path):
    [line] = lines(on_a_terminal(tmp_path, "draw(report, 5, total=10)"))
    assert "sealing a-file" in line
    assert "50%" in line
    assert "5.00 MiB of 10.00 MiB" in line
    assert "#####-----" in line


def test_a_size_that_is_not_known_is_counted(tmp_path):
    first, second = lines(on_a_terminal(tmp_path, "draw(report, 0, 5)"))
    assert "0 B, " in first
    assert "5.00 MiB, " in second
    assert "% zero" in second
    assert " of " not in second


def test_what_counts_again_from_the_start_is_drawn_so(tmp_path):
    last = lines(on_a_terminal(tmp_path, "draw(report, 10, 2, total=10)"))[-1]
    assert "20%" in last


def test_the_line_is_never_longer_than_the_terminal_is_wide_now(tmp_path):
    """Also while standard output is a file, and after the window was made smaller or larger."""
    widths = (100, 70, 40, 20, 8, 2, 1, 60, 200)
    body = "".join(
        f"columns({width})\ndraw(report, {size}, total=12)\n" for size, width in enumerate(widths)
    )
    shown = lines(on_a_terminal(tmp_path, body))
    assert len(shown) == sum(width >= 12 for width in widths)  # below there is room for nothing
    for size, width in enumerate(widths):
        drawn = on_a_terminal(tmp_path, f"columns({width})\ndraw(report, {size}, total=12)\n")
        assert all(len(line) < width for line in lines(drawn)), width
    shrunk = lines(on_a_terminal(tmp_path, "draw(report, 1)\ncolumns(30)\ndraw(report, 2)"))
    assert len(shrunk[-1]) < 30


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
    ],
)
def test_the_line_is_gone_and_the_cursor_is_back_whatever_ends_it(tmp_path, last: str, code: int):
    shown = on_a_terminal(tmp_path, f"draw(report, 5, total=10)\n{last}", code)
    after = shown[shown.rindex("50%") :]
    assert "\x1b[?25l" not in after
    assert "\r\x1b[K\x1b[?25h" in after


@pytest.mark.parametrize("environment", [{"SEALPOINT_PROGRESS": "0"}, {"TERM": "dumb"}])
def test_who_does_not_want_it_gets_nothing(tmp_path, environment: dict[str, str]):
    assert on_a_terminal(tmp_path, "draw(report, 5, total=10)", **environment) == ""


def test_a_terminal_that_has_gone_fails_nothing(tmp_path):
    body = "draw(report, 1)\nos.close(2)\ndraw(report, 2)\nos.open(os.devnull, os.O_RDONLY)\ndraw(report, 3)"
    # What is left in Python's buffer can be written again when Python ends: otherwise its status is 120.
    body += "\nos.dup2(os.open(os.devnull, os.O_RDWR), 2)"
    assert "1.00 MiB" in on_a_terminal(tmp_path, body)

"""The progress bar."""

from __future__ import annotations

import io

import pytest

from sealpoint.checkpoint.progress import Progress
from sealpoint.cli import bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def draw(monkeypatch):
    """What a terminal gets to see."""

    def draw(what: str, *reports: Progress, patience: float = 0.0) -> str:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
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
    monkeypatch.setattr(bar, "_PATIENCE", 0.0)
    stream = io.StringIO()
    monkeypatch.setattr(bar.sys, "stderr", stream)
    with bar.Bar("sealing") as report:
        report(Progress(1, 2))
    assert stream.getvalue() == ""

"""For all tests: whoever starts them, and however, they find the same surroundings.

Signals that were ignored or blocked (under nohup, in the background of a script, by a supervisor) would be so in every
program that a test starts.  Umask, locale and settings of the caller's shell would show in files and output.  What a
test wants otherwise it sets itself.
"""

from __future__ import annotations

import os
import pwd
import signal
from collections import Counter
from pathlib import Path

import pytest

# Python itself ignores these, and gives them back to the programs that it starts.
_PYTHONS = (signal.SIGPIPE, signal.SIGXFSZ)
_FIXED = (signal.SIGKILL, signal.SIGSTOP)
# What the caller may say to the tests.
_OURS = (
    "SEALPOINT_REQUIRE_CRIU",
    "SEALPOINT_REQUIRE_SERVICES",
    "SEALPOINT_CRIU",
    "SEALPOINT_BUNDLE",
    "SEALPOINT_FIXTURES",
    "SEALPOINT_TEST_",
    "SEALPOINT_VM",
)
_UNWANTED = (
    *("SEALPOINT_", "CRIU_", "AWS_", "XDG_", "LC_", "LANG", "PYTHONWARNINGS", "PYTHONUTF8", "PYTHONIOENCODING"),
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "_SEALPOINT_COMPLETE", "TAR_OPTIONS", "GZIP"),
)  # fmt: skip


def _usual_signals() -> None:
    for number in signal.valid_signals() - {*_PYTHONS, *_FIXED}:
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _usual_environment() -> None:
    for name in list(os.environ):
        if name.startswith(_UNWANTED) and not name.startswith(_OURS):
            del os.environ[name]
    os.environ["LC_ALL"] = "C.UTF-8"
    os.environ["TERM"] = "dumb"
    if not Path(os.environ.get("HOME") or "/nonexistent").is_dir():
        os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    os.umask(0o022)


def pytest_configure(config: pytest.Config) -> None:
    """A worker of parallel tests has a /tmp of its own: there it makes the place of its temporary directories."""
    if hasattr(config, "workerinput") and config.option.basetemp:
        Path(config.option.basetemp).parent.mkdir(mode=0o700, parents=True, exist_ok=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that need long come first: what begins last must not keep one worker busy alone."""
    if hasattr(config, "workerinput"):
        weights = Counter[Path]()
        for item in items:
            weights[item.path] += 30 if item.get_closest_marker("slow") else 1
        items.sort(key=lambda item: -weights[item.path])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Beside pytest's slowest tests (--durations=N) the slowest files."""
    if config.option.durations is None:
        return
    costs, counts = Counter[str](), Counter[str]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                costs[report.location[0]] += report.duration
                counts[report.location[0]] += report.when == "call"
    terminalreporter.section("slowest files")
    for path, seconds in costs.most_common(config.option.durations or None):
        terminalreporter.write_line(f"{seconds:8.1f} s {counts[path]:5} tests  {path}")


_usual_signals()
_usual_environment()

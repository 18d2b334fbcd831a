"""Runs the tests that are named, and writes what became of each: `named.py RESULTS < NAMES`, both JSON.

A program of its own, because it runs where a mutated copy of the code lies over the code (run.py): nothing of that may
have been imported before.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest


class Named:
    """Selects tests by name, and stops each at its first failure."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.outcomes: dict[str, list[str]] = {name: [] for name in names}
        self.reasons: dict[str, str] = {}

    def of(self, nodeid: str) -> list[str]:
        return [n for n in self.names if nodeid == n or nodeid.startswith((f"{n}[", f"{n}::"))]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self.of(item.nodeid)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if all("failed" in self.outcomes[name] for name in self.of(item.nodeid)):
            pytest.skip("it has failed already")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed and report.when != "call":
            return
        for name in self.of(report.nodeid):
            self.outcomes[name].append(report.outcome)
            if report.failed:
                self.reasons.setdefault(name, _last_line(report))
            elif report.skipped and isinstance(report.longrepr, tuple):
                self.reasons.setdefault(name, str(report.longrepr[2]))

    def result(self) -> dict[str, tuple[str, str]]:
        """{name: (what became of it, why)}"""
        return {name: (self.outcome(name), self.reasons.get(name, "")) for name in self.names}

    def outcome(self, name: str) -> str:
        seen = self.outcomes[name]
        return next((o for o in ("failed", "passed", "skipped") if o in seen), "not found")


def _last_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return (text.strip().splitlines() or ["?"])[0][:200]


def main() -> int:
    wanted = json.load(sys.stdin)
    root = Path(wanted["root"])
    os.chdir(root)
    # Tests have no terminal and no input, whoever started this.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.path[0] = str(root)  # as for `python -m pytest`
    plugin = Named(wanted["names"])
    files = sorted({name.partition("::")[0] for name in plugin.names})
    options = ["-p", "no:cacheprovider", "-q", "--rootdir", str(root), *wanted["options"]]
    code = int(pytest.main([*options, *files], plugins=[plugin]))
    result = {"code": code, "tests": plugin.result()}
    Path(sys.argv[1]).write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

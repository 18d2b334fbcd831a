"""Fixtures that run a command in this process, without the machine's configuration."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import pytest


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("sealpoint.cli.notice.protect", lambda: None)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-configuration"))
    monkeypatch.setattr("sealpoint.config.SYSTEM_PATH", str(tmp_path / "none.toml"))
    from sealpoint.cli.app import run

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def call(*arguments) -> Result:
        capfd.readouterr()
        handlers = [signal.getsignal(n) for n in numbers]
        try:
            code = run([str(a) for a in arguments])
        finally:
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert "internal error" not in err
        return Result(code, out, err)

    return call


@pytest.fixture
def opening(keys):
    """The options that open a sealed file."""
    return ["-i", keys.identity_path, "--trust", keys.trust_path]

"""Fixtures for the tests of the command line: keys, a configuration of their own, `cli(...)` and `program(...)`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoint.checkpoint_helpers import Keys, a_pre_dump, attributes, seal_objects

OBJECTS = {
    "inventory.img": (b"inventory", attributes()),
    "core-1.img": (b"core", attributes()),
    "pages-1.img": (b"\0secret-in-memory\0" * 10_000, attributes()),
}


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("others"))


@pytest.fixture(autouse=True)
def own_configuration(tmp_path, monkeypatch):
    """No configuration of the machine, and a working directory of the test's own."""
    home = tmp_path / "home"
    (home / "sealpoint").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setattr("sealpoint.config.SYSTEM_PATH", str(tmp_path / "system.toml"))
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def cli(capfd, monkeypatch):
    """Run in this process."""
    monkeypatch.setattr("sealpoint.cli.notice.protect", lambda: None)
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
        return Result(code, out, err)

    return call


@pytest.fixture
def program():
    """Run as a program of its own."""

    def call(*arguments, **options) -> Result:
        done = subprocess.run(
            [sys.executable, "-c", "from sealpoint.cli import main; main()", *map(str, arguments)],
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            timeout=60,
            stdin=options.pop("stdin", None if "input" in options else subprocess.DEVNULL),
            **options,
        )
        out, err = (
            x.decode(errors="surrogateescape") if x else "" for x in (done.stdout, done.stderr)
        )
        assert "Traceback" not in err
        return Result(done.returncode, out, err)

    return call


@pytest.fixture
def sealed(keys, tmp_path):
    """A sealed file."""
    seal_objects(keys, tmp_path / "work" / "s.sealed", OBJECTS)
    return "s.sealed"


@pytest.fixture
def opening(keys):
    """The options that open it."""
    return ["-i", keys.identity_path, "--trust", keys.trust_path]


@pytest.fixture
def sealing(keys):
    """The options that seal."""
    return ["-r", keys.recipient_path, "--sign", keys.signer_path]


@pytest.fixture
def images():
    """An image directory: the smallest pre-dump that there is."""
    os.mkdir("images")
    for name, data in a_pre_dump(b"secret" * 1000).items():
        Path("images", name).write_bytes(data)
    return "images"

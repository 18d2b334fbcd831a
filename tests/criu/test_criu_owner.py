"""Root runs no CRIU that somebody else could have put there, unless it is named on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sealpoint.criu import binary
from sealpoint.criu.binary import find
from sealpoint.errors import SystemEnvironmentError
from sealpoint.machine import real
from sealpoint.ownership import Configured

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives files to others")


@pytest.fixture
def criu(tmp_path) -> Path:
    """An executable that answers as CRIU does, in a directory alone in front of PATH, and says that it ran."""
    directory = tmp_path / "bin"
    directory.mkdir()
    path = directory / "criu"
    path.write_text(f"#!/bin/sh\n: > {tmp_path}/ran\necho Version: 4.1.1\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("how", ["environment", "PATH", "configuration", "set up with it"])
@pytest.mark.parametrize("what", ["file", "directory", "writable"])
@pytest.mark.parametrize("search", [find, real.find_real], ids=["own", "drop-in"])
def test_root_runs_no_criu_that_others_can_change(criu, tmp_path, monkeypatch, how, what, search):
    monkeypatch.delenv("SEALPOINT_CRIU", raising=False)
    monkeypatch.setattr(binary, "companion", lambda: str(criu) if how == "set up with it" else None)
    if how == "environment":
        monkeypatch.setenv("SEALPOINT_CRIU", str(criu))
    elif how == "PATH":
        monkeypatch.setenv("PATH", f"{criu.parent}:{os.environ['PATH']}")
    named = [Configured(criu)] if how == "configuration" else []
    assert search(*named).version == (4, 1, 1)
    (tmp_path / "ran").unlink()
    if what == "writable":
        criu.chmod(0o777)
    else:
        os.chown(criu if what == "file" else criu.parent, 65534, 65534)
    with pytest.raises(SystemEnvironmentError, match=r"CRIU .* is refused") as raised:
        search(*named)
    assert "--criu" in raised.value.hint
    assert not (tmp_path / "ran").exists()
    # Whoever names it answers for it; the command warns.
    assert search(str(criu)).version == (4, 1, 1)

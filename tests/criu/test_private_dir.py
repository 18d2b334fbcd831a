"""Directories in memory, on machines with swap."""

from __future__ import annotations

import errno
import os

import pytest

from sealpoint import process
from sealpoint.cli import notice
from sealpoint.criu import mounts
from sealpoint.criu.private_dir import PrivateDir, swap_warning
from sealpoint.machine import survey_machine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


@pytest.fixture
def old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swap is on, and the kernel refuses the flag as one does that does not know it."""

    def refuse(context: int, name: str) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(process, "swap_in_use", lambda: True)
    monkeypatch.setattr(mounts, "_set_flag", refuse)


@pytest.mark.usefixtures("old_kernel")
def test_without_noswap_on_a_machine_with_swap_there_is_a_warning(monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(notice, "warn", said.append)
    monkeypatch.setattr(process, "protect", list)
    notice.protect()
    assert [line for line in said if "cannot keep directories in memory off it" in line]
    with PrivateDir() as directory:  # it works all the same
        assert os.listdir(directory.path) == []


@pytest.mark.usefixtures("old_kernel")
def test_doctor_warns_of_it() -> None:
    assert any("off it" in finding.text for finding in survey_machine.private_directory())


def test_where_there_is_no_swap_or_the_flag_works_nothing_is_said(monkeypatch) -> None:
    monkeypatch.setattr(process, "swap_in_use", lambda: False)
    assert swap_warning() == ""
    monkeypatch.setattr(process, "swap_in_use", lambda: True)
    monkeypatch.setattr(mounts, "_set_flag", lambda context, name: None)
    assert swap_warning() == ""

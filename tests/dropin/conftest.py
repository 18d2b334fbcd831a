"""Fixtures for installing the drop-in and for `doctor`, on a machine of their own (`own_machine`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealpoint.keys.generate import generate, generate_signer
from tests.dropin.own_machine import OwnMachine
from tests.real import harness
from tests.real.conftest import criu  # noqa: F401 - fixtures

HERE = Path(__file__).resolve().parent
REAL = HERE.parent / "real"


class Keys:
    """An identity and a signer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        generate("x25519", str(directory))
        generate_signer(str(directory))
        self.identity = directory / "identity.key"
        self.recipient = directory / "recipient.pub"
        self.signer = directory / "signer.key"
        self.trust = directory / "signer.pub"
        self.sealing = ("-r", str(self.recipient), "--sign", str(self.signer))
        self.opening = ("-i", str(self.identity), "--trust", str(self.trust))


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def others(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "others")


@pytest.fixture
def bare_machine(tmp_path: Path) -> Iterator[OwnMachine]:
    """Without a CRIU that is known to work."""
    yield from _machine(tmp_path, None)


@pytest.fixture
def machine(tmp_path: Path, criu: Path) -> Iterator[OwnMachine]:
    """With one."""
    harness.become_subreaper()
    yield from _machine(tmp_path, criu)


def _machine(directory: Path, real: Path | None) -> Iterator[OwnMachine]:
    if os.geteuid() != 0:
        pytest.skip("root is needed for a mount namespace")
    for tool in ("unshare", "nsenter"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} (package util-linux) is missing")
    made = OwnMachine(directory / "machine", real)
    try:
        if not made.ready:
            pytest.skip(f"no mount namespace can be made here: {made.problem}")
        yield made
    finally:
        made.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and "machine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.criu)

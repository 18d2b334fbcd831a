"""Fixtures for `sealpoint podman` without podman: a real CRIU, driven by an engine that is as small as it can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real import harness
from tests.real.conftest import criu, keys, needles, ram_dir, sealpoint, workload  # noqa: F401 - fixtures

HERE = Path(__file__).resolve().parent
REAL = HERE.parent / "real"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and "engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.criu)


@pytest.fixture(autouse=True)
def _reaps(request: pytest.FixtureRequest) -> None:
    """Whatever a test restores becomes a child of this process."""
    if request.node.get_closest_marker("criu"):
        request.getfixturevalue("criu")
        harness.become_subreaper()

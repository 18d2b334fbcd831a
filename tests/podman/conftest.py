"""Fixtures for `sealpoint podman` without podman: a real CRIU, driven by an engine that is as small as it can be."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REAL = HERE.parent / "real"
for directory in (REAL, HERE.parent / "engines", HERE):
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))

import harness

_spec = importlib.util.spec_from_file_location(
    "sealpoint_real_fixtures_podman", REAL / "conftest.py"
)
_real = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_real)
criu, keys, needles, ram_dir, sealpoint, workload = (
    _real.criu,
    _real.keys,
    _real.needles,
    _real.ram_dir,
    _real.sealpoint,
    _real.workload,
)


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

"""Fixtures of the tests that read checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for directory in ("checkpoint", "cli"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / directory))

from checkpoint_helpers import Keys
from command import opening, run_cli  # noqa: F401 - fixtures

from sealpoint.inspect.source import Access


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def analyst(tmp_path_factory):
    """Whose identity opens metadata only."""
    return Keys(tmp_path_factory.mktemp("analyst"))


@pytest.fixture
def access(keys):
    return Access.of([keys.identity], keys.policy)

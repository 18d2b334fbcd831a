"""Fixtures of the tests that read checkpoints."""

from __future__ import annotations

import pytest

from sealpoint.inspect.source import Access
from tests.checkpoint.checkpoint_helpers import Keys
from tests.inspect.command import opening, run_cli  # noqa: F401 - fixtures


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

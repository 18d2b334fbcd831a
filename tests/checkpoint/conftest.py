"""Fixtures for the tests of `sealpoint.checkpoint`."""

from __future__ import annotations

import pytest

from tests.checkpoint.checkpoint_helpers import Keys


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Somebody else's keys."""
    return Keys(tmp_path_factory.mktemp("others"))

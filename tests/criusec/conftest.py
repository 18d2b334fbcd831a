"""Dumps in memory, and the key that opens them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealpoint.keys import load_identity
from tests.criusec import criusec_made as made
from tests.criusec.criusec_helpers import copy_key

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def key(tmp_path_factory) -> str:
    """The private key of the vectors, as a file that nobody else can read."""
    return copy_key(made.KEY, tmp_path_factory.mktemp("criusec-key"))


@pytest.fixture(scope="session")
def identity(key):
    return load_identity(key)

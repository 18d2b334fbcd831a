"""Dumps in memory, and the key that opens them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
for directory in (HERE, HERE.parent / "checkpoint", HERE.parent / "inspect"):
    sys.path.insert(0, str(directory))

import criusec_made as made
from criusec_helpers import copy_key

from sealpoint.keys import load_identity


@pytest.fixture(scope="session")
def key(tmp_path_factory) -> str:
    """The private key of the vectors, as a file that nobody else can read."""
    return copy_key(made.KEY, tmp_path_factory.mktemp("criusec-key"))


@pytest.fixture(scope="session")
def identity(key):
    return load_identity(key)

"""Fixtures for the tests of `sealpoint.keys`."""

from __future__ import annotations

import os

import pytest

from sealpoint.format.constants import Roots, Suite
from sealpoint.format.stanza import WrapContext
from sealpoint.keys import load_signer
from tests.keys.keys_helpers import IDENTITIES, SIGNING_KEYS, CheapPassphrase, pem


@pytest.fixture(params=[*IDENTITIES, "passphrase"])
def identity(request):
    """One identity of each kind."""
    if request.param == "passphrase":
        return CheapPassphrase(b"correct horse")
    return IDENTITIES[request.param]()


@pytest.fixture
def context():
    return WrapContext(Suite.AES_256_GCM, os.urandom(16), Roots.BOTH)


@pytest.fixture
def roots():
    return os.urandom(64)


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path as text."""

    def write(name: str, *parts: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(b"".join(parts))
        return str(path)

    return write


@pytest.fixture(params=SIGNING_KEYS)
def scheme(request):
    return request.param


@pytest.fixture
def key(scheme):
    return SIGNING_KEYS[scheme]()


@pytest.fixture
def signer(key, write):
    return load_signer(write("signer.key", pem(key)))


@pytest.fixture
def make_signer(write):
    """A signer from a private key and certificates."""

    def make(key, *certificates, **options):
        name = f"signer-{id(key)}.key"
        return load_signer(write(name, pem(key), *(c.pem for c in certificates)), **options)

    return make

"""Every vector of the layout in stores, put into a real store by plain requests, is read as it says, or refused."""

from __future__ import annotations

import json
import urllib.request

import pytest

from sealpoint.errors import FileError
from sealpoint.store.location import open_store
from tests import vectors_reader
from tests.store.bucket_servers import BUCKET, start_moto, use
from tests.store.registry_helpers import api, registry  # noqa: F401 - a fixture
from tests.store.uploads import content
from tests.vectors import generate_stores

FILES = vectors_reader.load()
STORED = {
    path.stem: json.loads(path.read_text()) for path in sorted(generate_stores.HERE.glob("*.json"))
}
DATA = {
    name: vectors_reader.unpack(FILES[name], FILES)
    for name in (generate_stores.FILE, generate_stores.REKEYED, generate_stores.FOREIGN)
}


def named(kind):
    return [name for name in STORED if name.startswith(kind)]


@pytest.fixture(scope="module")
def moto(tmp_path_factory):
    server = start_moto(tmp_path_factory.mktemp("moto"))
    yield server
    server.close()


def put_object(server, key, data):
    octets = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{server.url}/{BUCKET}/{key}", data, octets, method="PUT")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(request, timeout=60).close()


def assert_read_as_it_says(url, vector):
    """A store that refuses, or a reader of what it gives: a reader must end with one of both."""
    wanted = vector["file"]
    try:
        data = content(open_store(url))
        found = vectors_reader.outcome(FILES[generate_stores.FILE], data, FILES)
    except FileError:
        found = "file", {}
        data = b""
    if wanted is None:
        assert found == ("file", {})
        return
    assert data == DATA[wanted]
    assert found == ("success", FILES[generate_stores.FILE]["objects"])


@pytest.mark.services
@pytest.mark.parametrize("name", named("bucket"))
def test_a_vector_in_a_bucket_is_read_as_it_says(moto, monkeypatch, name):
    vector = STORED[name]
    for key, pieces in vector["objects"].items():
        put_object(moto, f"{name}/{key}", generate_stores.contents(pieces, DATA))
    use(monkeypatch, moto.url)
    assert_read_as_it_says(f"s3://{BUCKET}/{name}/file", vector)


@pytest.mark.services
@pytest.mark.parametrize("name", named("registry"))
def test_a_vector_in_a_registry_is_read_as_it_says(registry, name):
    vector = STORED[name]
    for digest, pieces in vector["blobs"].items():
        place = api(registry, f"{name}/blobs/uploads/", "POST", b"").headers["Location"]
        path = place.partition("/v2/")[2]
        data = generate_stores.contents(pieces, DATA)
        octets = {"Content_Type": "application/octet-stream"}
        api(registry, f"{path}&digest={digest}", "PUT", data, **octets).close()
    manifest = vector["manifest"].encode()
    kind = {"Content_Type": generate_stores.OCI}
    api(registry, f"{name}/manifests/one", "PUT", manifest, **kind).close()
    assert_read_as_it_says(f"oci://{registry.address}/{name}:one", vector)


def test_the_generator_makes_the_vectors_that_are_stored():
    assert {vector["name"]: vector for vector in generate_stores.made()} == STORED
    for kind in ("bucket", "registry"):
        read = [name for name in named(kind) if STORED[name]["file"]]
        assert len(read) >= 2
        assert len(named(kind)) > 2 * len(read)

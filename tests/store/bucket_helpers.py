"""Sealed files in a bucket of moto's S3 server: fixtures and steps of its tests."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealpoint.store import retry
from sealpoint.store.bucket import open_store
from tests.store.bucket_servers import BUCKET, Proxy, start_moto, use
from tests.store.uploads import Spool, new_head


def send_all(upload, size):
    jobs, offset = [], 0
    while offset < size:
        number = len(jobs)
        jobs.append((number, offset, min(upload.part_size(number), size - offset)))
        offset += jobs[-1][2]
    with ThreadPoolExecutor(upload.parallel) as pool:
        list(pool.map(lambda job: upload.send(*job), jobs))


def put(store, body, head=None, properties=None, *, force=False, unconditional=False):
    head = head or new_head()
    upload = store.begin(Spool(body), force=force, unconditional=unconditional)
    send_all(upload, len(body))
    assert upload.commit(head, properties or {}) == store.name
    return head


def keys(store, prefix=""):
    return [each.key for each in store._client.objects(prefix)]


def nothing_but(store, key):
    """In the bucket below `key`; uploads neither."""
    assert keys(store, key) == []
    assert list(store._client.uploads(key)) == []


@pytest.fixture(scope="module")
def moto(tmp_path_factory):
    server = start_moto(tmp_path_factory.mktemp("moto"))
    yield server
    server.close()


@pytest.fixture
def proxy(moto, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    proxy = Proxy(moto.port)
    yield proxy
    proxy.close()


@pytest.fixture
def place(request, moto, monkeypatch):
    """Opens places of this test alone, by the real server or by a URL."""

    stores, mine = [], hashlib.md5(request.node.name.encode()).hexdigest()

    def opened(name="file", url=None):
        use(monkeypatch, url or moto.url)
        stores.append(open_store(f"s3://{BUCKET}/{mine}/{name}"))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()

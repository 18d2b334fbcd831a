"""Sealed files in a real docker-registry: fixtures and steps of its tests."""

from __future__ import annotations

import json
import urllib.request
from urllib.parse import urlsplit

import pytest

from sealpoint.store.oci import open_store
from tests.store.registry_servers import Registry
from tests.store.uploads import Spool, new_head

PROPERTIES = {"dev.sealpoint.workload": "tests", "org.criu.checkpoint.note": "böse"}


def send_all(sending, size):
    number = offset = 0
    while offset < size:
        step = min(sending.part_size(number), size - offset)
        sending.send(number, offset, step)
        number, offset = number + 1, offset + step


def put(store, body, head=None, properties=PROPERTIES, *, force=False):
    head = head or new_head()
    sending = store.begin(Spool(body), force=force, unconditional=False)
    send_all(sending, len(body))
    return head, sending.commit(head, properties)


def store_at(proxy, name, tag="one"):
    return open_store(f"oci://{urlsplit(proxy.url).netloc}/{name}:{tag}", plain_http=True)


def refuse(exchange, status, code, **headers):
    data = json.dumps({"errors": [{"code": code, "message": "secret words"}]}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    exchange.start(status, {"content-length": str(len(data)), **named})
    if exchange.method != "HEAD":
        exchange.handler.wfile.write(data)
    return True


def is_range(exchange):
    return exchange.method == "GET" and "/blobs/" in exchange.path


def api(registry, path, method="GET", data=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        f"http://{registry.address}/v2/{path}", data=data, headers=named, method=method
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=60)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    server = Registry(tmp_path_factory.mktemp("registry"))
    yield server
    server.close()

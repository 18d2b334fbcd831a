"""What breaks between sealpoint and a registry, or is broken on purpose.

docker-registry answers; the tests' own proxy in front of it adds what no real server does when asked: errors, cut
connections, lying ranges, redirects, answers without an end.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re

import pytest

from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.store import retry, wire
from sealpoint.store.oci import upload
from sealpoint.store.oci.manifest import MEDIA_TYPE
from tests.store.bucket_servers import Proxy
from tests.store.registry_helpers import (  # noqa: F401 - a fixture
    PROPERTIES,
    is_range,
    put,
    refuse,
    registry,
    send_all,
    store_at,
)
from tests.store.uploads import MIB, Spool, assert_cut_ranges_go_on, content, new_head

pytestmark = pytest.mark.services


@pytest.fixture
def proxy(registry, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 20.0)
    proxy = Proxy(registry.port)
    yield proxy
    proxy.close()


@pytest.fixture
def store(request, proxy):
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    store = store_at(proxy, f"faults/{digest}")
    yield store
    store.close()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(upload, "LAYER_SIZE", 3 * MIB)
    monkeypatch.setattr(upload, "PART_SIZE", MIB)


@pytest.fixture
def impatient(monkeypatch):
    """What lasts a minute elsewhere is over after a second."""
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.7)
    monkeypatch.setattr(wire, "_REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(wire, "_SLOWEST", 10**9)
    monkeypatch.setattr(retry, "ATTEMPTS", 2)


# --- Writing. ---

PASSING = {
    "500": lambda e: refuse(e, 500, "UNKNOWN"),
    "503": lambda e: refuse(e, 503, "UNAVAILABLE"),
    "429": lambda e: refuse(e, 429, "TOOMANYREQUESTS", retry_after="0"),
    "cut": lambda e: e.cut(),
    "cut amid the headers": lambda e: (
        e.handler.wfile.write(b"HTTP/1.1 200 OK\r\nA: b\r\n"),
        e.cut(),
    )[1],
}


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_passing_fault_of_any_request_is_overcome(store, proxy, small, fault, when):
    """Each kind of request is struck once: upload, part, its end, blob, manifest, tag, range."""
    struck = set()

    def rule(exchange):
        path = re.sub(r"\?.*|[0-9a-f-]{36}|[0-9a-f]{64}", "", exchange.path)
        if exchange.method == "DELETE" or (exchange.method, path) in struck:
            return False
        struck.add((exchange.method, path))
        return PASSING[fault](exchange)

    setattr(proxy, when, rule)
    body = os.urandom(4 * MIB)
    head, _ = put(store, body)
    assert content(store) == head + body
    assert {method for method, _ in struck} == {"POST", "PATCH", "PUT", "HEAD", "GET"}
    assert len(struck) >= 7


def test_a_patch_that_breaks_off_makes_the_layer_start_again(store, proxy, registry, small):
    """As real networks do it: the registry gets a half of the bytes, and the upload is of no use from then on."""
    patches = []

    def half(exchange):
        if exchange.method != "PATCH":
            return False
        patches.append(exchange.path)
        if len(patches) != 2:
            return False
        connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=60)
        connection.putrequest("PATCH", exchange.path, skip_host=True)
        for name, value in exchange.headers.items():
            connection.putheader(name, value)
        connection.endheaders(exchange.body[: MIB // 2])
        connection.close()
        return exchange.cut()

    proxy.before = half
    body = os.urandom(3 * MIB - 7)
    spool = Spool(body)
    sending = store.begin(spool, force=False, unconditional=False)
    send_all(sending, len(body))
    head = new_head()
    sending.commit(head, {})
    assert content(store) == head + body
    assert spool.reads.count(0) == 2
    assert len(patches) == 5  # the first two again


def test_faults_that_do_not_pass_end_the_upload_and_nothing_is_visible(store, proxy):
    sending = store.begin(Spool(b"x" * MIB), force=False, unconditional=False)
    proxy.before = lambda e: e.method == "PATCH" and refuse(e, 503, "UNAVAILABLE")
    with pytest.raises(SystemEnvironmentError, match="UNAVAILABLE") as raised:
        sending.send(0, 0, MIB)
    assert "secret words" not in raised.value.message
    assert sum(method == "PATCH" for method, _ in proxy.seen) == retry.ATTEMPTS
    proxy.before = lambda _: None
    sending.abort()
    with pytest.raises(UsageError, match="does not exist"):
        store.open()


def test_a_refusal_is_not_tried_again(store, proxy):
    proxy.before = lambda e: refuse(e, 403, "DENIED")
    with pytest.raises(SystemEnvironmentError, match="DENIED"):
        store.open()
    assert len(proxy.seen) == 1


LAYERS = {
    "another digest at its end": (
        lambda e: e.method == "PUT" and "/uploads/" in e.path,
        {"docker_content_digest": "sha256:" + "0" * 64},
        "digest",
    ),
    "another size": (
        lambda e: e.method == "HEAD" and "/blobs/" in e.path,
        {"content_length": "77"},
        "other data",
    ),
    "another digest": (
        lambda e: e.method == "HEAD" and "/blobs/" in e.path,
        {"docker_content_digest": "sha256:" + "0" * 64},
        "other data",
    ),
    "fewer bytes": (lambda e: e.method == "PATCH", {"range": "0-5"}, "another part"),
    "no way on": (lambda e: e.method == "PATCH", {"location": ""}, "upload continues"),
}


@pytest.mark.parametrize("fault", LAYERS)
def test_a_layer_that_is_not_what_was_sent_is_not_acknowledged(store, proxy, fault):
    which, changed, words = LAYERS[fault]
    sending = store.begin(Spool(b"x" * 1000), force=False, unconditional=False)
    proxy.after = lambda e: which(e) and e.send(**changed)
    with pytest.raises(SystemEnvironmentError, match=words):
        sending.send(0, 0, 1000)
        sending.commit(new_head(), {})
    proxy.after = lambda _: None
    sending.abort()
    with pytest.raises(UsageError, match="does not exist"):
        store.open()


def test_a_tag_that_names_another_manifest_afterwards_is_told(store, proxy):
    other, _ = put(store, b"other")
    sending = store.begin(Spool(b"ours"), force=True, unconditional=False)
    sending.send(0, 0, 4)
    # The registry says yes, and the tag is still the other's.
    proxy.before = lambda e: (
        e.method == "PUT"
        and "/manifests/" in e.path
        and (e.start(201, {"content-length": "0"}) or True)
    )
    with pytest.raises(SystemEnvironmentError, match="someone else"):
        sending.commit(new_head(), {})
    proxy.before = lambda _: None
    assert content(store) == other + b"other"


def test_where_nobody_can_tell_whether_the_manifest_was_stored_its_layers_stay(store, proxy):
    sending = store.begin(Spool(b"body"), force=False, unconditional=False)
    sending.send(0, 0, 4)
    head = new_head()
    proxy.after = lambda e: e.method == "PUT" and "/manifests/" in e.path and e.cut()
    proxy.before = lambda e: e.method == "GET" and "/manifests/" in e.path and e.cut()
    with pytest.raises(SystemEnvironmentError, match="not known"):
        sending.commit(head, {})
    proxy.after = proxy.before = lambda _: None
    sending.abort()
    assert content(store) == head + b"body"  # it was


# --- Reading. ---


RANGES = {
    "the whole layer": (lambda e: e.send(status=200), SystemEnvironmentError, "the whole layer"),
    "another range": (
        lambda e: e.send(content_range="bytes 1-10/100001"),
        SystemEnvironmentError,
        "another range",
    ),
    "no range named": (
        lambda e: e.send(content_range="bytes"),
        SystemEnvironmentError,
        "another range",
    ),
    "another size": (
        lambda e: e.send(content_range="bytes 0-99999/77"),
        FileError,
        "another size",
    ),
    "too long": (
        lambda e: e.send(content=e.content + b"x"),
        SystemEnvironmentError,
        "wrong length",
    ),
    "too short": (
        lambda e: e.send(content=e.content[:-1]),
        SystemEnvironmentError,
        "wrong length",
    ),
    "416": (lambda e: refuse(e, 416, "RANGE"), FileError, "changed"),
    "gone": (lambda e: refuse(e, 404, "BLOB_UNKNOWN"), FileError, "changed"),
    "forbidden": (lambda e: refuse(e, 403, "DENIED"), SystemEnvironmentError, "DENIED"),
    "cut for ever": (lambda e: e.cut(), SystemEnvironmentError, "does not work as expected"),
    "a loop": (
        lambda e: e.send(status=307, location=e.path),
        SystemEnvironmentError,
        "redirects without end",
    ),
    "another protocol": (
        lambda e: e.send(status=307, location="ftp://127.0.0.1/x"),
        SystemEnvironmentError,
        "plain HTTP",
    ),
    "a file": (
        lambda e: e.send(status=307, location="file:///etc/passwd"),
        SystemEnvironmentError,
        "does not name the address",
    ),
    "a redirect to nowhere": (
        lambda e: e.send(status=307),
        SystemEnvironmentError,
        "does not name the address",
    ),
}


@pytest.mark.parametrize("fault", RANGES)
def test_a_wrong_answer_to_a_range_is_an_error_that_names_it(store, proxy, fault):
    answer, error, words = RANGES[fault]
    body = os.urandom(100_001)
    put(store, body)
    file = store.open()
    proxy.after = lambda e: is_range(e) and answer(e)
    out = memoryview(bytearray(100_000))
    with pytest.raises(error, match=words):
        file.read_into(out, file.head_size)
    proxy.after = lambda _: None
    file.read_into(out, file.head_size)
    assert bytes(out) == body[:-1]


def test_a_range_that_is_cut_goes_on_where_it_broke_off(store, proxy):
    body = os.urandom(300_000)
    put(store, body)
    assert_cut_ranges_go_on(store, proxy, is_range, body)


SLOW = {
    "silent": lambda e, p: e.stall(p),
    "silent after the headers": lambda e, p: (e.start(e.status, e.answer), e.stall(p))[1],
    "dripping headers": lambda e, p: e.drip(p, b"H"),
    "endless headers": lambda e, p: (
        e.handler.wfile.write(b"HTTP/1.1 206 OK\r\n"),
        e.drip(p, b"A: b\r\n"),
    )[1],
    "dripping body": lambda e, p: (e.start(e.status, e.answer), e.drip(p, b"x"))[1],
}


@pytest.mark.parametrize("fault", SLOW)
def test_a_peer_that_is_silent_or_drips_is_given_up(store, proxy, fault, request):
    put(store, b"b" * 100_000)
    file = store.open()
    request.getfixturevalue("impatient")
    proxy.after = lambda e: is_range(e) and SLOW[fault](e, proxy)
    with pytest.raises(SystemEnvironmentError, match="does not work as expected"):
        file.read_into(memoryview(bytearray(100_000)), file.head_size)


def endless(exchange, proxy, sent):
    exchange.start(200, {"content-type": "application/json", "connection": "close"})
    try:
        while not proxy.over.is_set():
            exchange.handler.wfile.write(b" " * 65536)
            sent.append(65536)
    except OSError:
        pass
    return exchange.cut()


@pytest.mark.parametrize("path", ["/manifests/", "/tags/"])
def test_an_answer_without_an_end_is_cut_off(store, proxy, path):
    put(store, b"x")
    sent, asked = [], []

    def answer(exchange):
        if exchange.method != "GET" or path not in exchange.path:
            return False
        asked.append(exchange.path)
        return endless(exchange, proxy, sent)

    proxy.before = answer
    with pytest.raises(SystemEnvironmentError, match=r"does not work as expected: .* longer than"):
        store.open() if path == "/manifests/" else list(store.list())
    assert len(asked) == 1  # a second attempt would bring as much
    assert sum(sent) < 128 * MIB  # at most 16 MiB, and the kernel's buffers


def test_a_manifest_that_is_too_large_is_not_even_read(store, proxy):
    put(store, b"x")
    asked = []

    def answer(exchange):
        if exchange.method != "GET" or "/manifests/" not in exchange.path:
            return False
        asked.append(exchange.path)
        exchange.start(200, {"content-length": str(5 * MIB), "content-type": MEDIA_TYPE})
        return exchange.cut()

    proxy.before = answer
    with pytest.raises(SystemEnvironmentError, match="longer than 4194304 bytes"):
        store.open()
    assert len(asked) == 1


def test_a_manifest_that_is_not_the_one_of_its_digest_is_refused(store, proxy):
    put(store, b"x")
    proxy.after = lambda e: "/manifests/" in e.path and e.send(content=e.content + b" ")
    with pytest.raises(FileError, match="does not match its digest"):
        store.open()


def test_a_head_that_is_not_the_one_of_its_digest_is_refused(store, proxy):
    put(store, b"x")
    proxy.after = lambda e: is_range(e) and e.send(content=bytes(len(e.content)))
    with pytest.raises(FileError, match="the head does not match its digest"):
        store.open()


def test_a_tag_that_moves_changes_nothing_of_what_is_open(store):
    head, _ = put(store, b"a" * 1000)
    file = store.open()
    put(store, b"b" * 1000, force=True)
    out = memoryview(bytearray(file.size))
    file.read_into(out, 0)
    assert bytes(out) == head + b"a" * 1000


# --- Lists. ---


def test_a_list_goes_on_where_the_registry_says(store, proxy):
    """The common registry has one page only."""
    put(store, b"x")
    tags = {"": ["nothing"], "last=nothing": ["one"]}

    def pages(exchange):
        if "/tags/list" not in exchange.path:
            return False
        query = exchange.path.partition("?")[2]
        more = {"link": f'<{exchange.path}?last=nothing>; rel="next"'} if not query else {}
        return exchange.send(
            content=json.dumps({"name": "x", "tags": tags[query]}).encode(), **more
        )

    proxy.after = pages
    assert [each.properties for each in store.list()] == [PROPERTIES]


@pytest.mark.parametrize(
    ("link", "words"),
    [("<?n=1>; rel=next", "no end"), ("<//127.0.0.2/v2/>; rel=next", "another server")],
)
def test_a_list_without_an_end_or_elsewhere_is_an_error(store, proxy, link, words, monkeypatch):
    monkeypatch.setattr("sealpoint.store.oci.place._MAX_PAGES", 5)
    put(store, b"x")
    proxy.after = lambda e: "/tags/list" in e.path and e.send(link=link)
    with pytest.raises(SystemEnvironmentError, match=words):
        list(store.list())


# --- Credentials. ---


CHALLENGES = {
    "a token server in the clear": ('Bearer realm="http://192.0.2.1/token"', "plain HTTP"),
    "no address": ('Bearer realm="::"', "does not name"),
    "an unknown kind": ("Negotiate", "kind of login"),
    "nothing": (None, "kind of login"),
}


@pytest.mark.parametrize("fault", CHALLENGES)
def test_a_challenge_that_cannot_be_answered_is_an_error(store, proxy, fault, monkeypatch):
    monkeypatch.setattr(store._client, "_plain_http", False)
    store._client._origin = proxy.url
    challenge, words = CHALLENGES[fault]
    headers = {"www_authenticate": challenge} if challenge else {}
    proxy.before = lambda e: refuse(e, 401, "UNAUTHORIZED", **headers)
    with pytest.raises(SystemEnvironmentError, match=words):
        store.open()
    assert len(proxy.seen) == 1


def test_giving_up_amid_a_request_ends_it_at_once(store, proxy):
    import threading

    sending = store.begin(Spool(b"x" * MIB), force=False, unconditional=False)
    reached = threading.Event()
    proxy.before = lambda e: e.method == "PATCH" and (reached.set() or e.stall(proxy))
    errors = []

    def send():
        try:
            sending.send(0, 0, MIB)
        except SealpointError as error:
            errors.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    assert reached.wait(60)
    sending.abort()
    thread.join(60)
    assert not thread.is_alive()
    assert "given up" in errors[0].message

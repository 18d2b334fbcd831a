"""What breaks between sealpoint and a bucket, or is broken on purpose: moto's server behind a proxy with faults."""

from __future__ import annotations

import os
import re

import pytest

from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.store import bucket_client, retry, wire
from sealpoint.store.bucket import open_store
from tests.store.bucket_helpers import keys, moto, put  # noqa: F401 - a fixture
from tests.store.bucket_servers import BUCKET, KEY_ID, SECRET, Proxy, use
from tests.store.uploads import MIB, Spool, assert_cut_ranges_go_on, content, new_head

pytestmark = pytest.mark.services
STEM = f"s3://{BUCKET}"


@pytest.fixture
def proxy(moto, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 20.0)
    proxy = Proxy(moto.port)
    use(monkeypatch, proxy.url)
    yield proxy
    proxy.close()


@pytest.fixture
def store(request, proxy):
    store = open_store(f"{STEM}/{abs(hash(request.node.name))}/file")
    yield store
    store.close()


@pytest.fixture
def impatient(monkeypatch):
    """What lasts a minute elsewhere is over after a second."""
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.7)
    monkeypatch.setattr(wire, "_REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(wire, "_EARLY_SECONDS", 0.1)


def times(count, fault):
    """The fault strikes so often, and what comes then is as it should be."""
    left = [count]

    def rule(exchange):
        if left[0] and fault(exchange):
            left[0] -= 1
            return True
        return False

    rule.left = left
    return rule


def is_part(exchange):
    return "partNumber=" in exchange.path


# --- Writing. ---

PASSING = {
    "500": lambda e: e.refuse(500, "InternalError"),
    "503": lambda e: e.refuse(503, "SlowDown"),
    "429": lambda e: e.refuse(429, "TooManyRequests"),
    "no XML": lambda e: (
        (e.start(502, {"content-length": "5"}), e.handler.wfile.write(b"hello")) and True
    ),
    "cut": lambda e: e.cut(),
    "cut amid the headers": lambda e: (
        e.handler.wfile.write(b"HTTP/1.1 200 OK\r\nA: b\r\n"),
        e.cut(),
    )[1],
}


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_passing_fault_of_any_request_is_overcome(store, proxy, fault, when):
    """Of each kind of request once: probe, upload, part, completion, size, head, record, listing, range."""
    struck = set()

    def rule(exchange):
        path = re.sub(r"=[^&]*|[0-9a-f]{32}", "", exchange.path)
        if (exchange.method, path) in struck or (
            when == "after" and exchange.method == "POST" and path.endswith("uploads")
        ):
            return False
        struck.add((exchange.method, path))
        return PASSING[fault](exchange)

    setattr(proxy, when, rule)
    body = os.urandom(MIB)
    head = put(store, body)
    assert content(store) == head + body
    assert len(struck) >= 8


def test_faults_that_do_not_pass_end_the_upload_and_nothing_is_visible(store, proxy):
    upload = store.begin(Spool(b"x" * MIB), force=False, unconditional=False)
    proxy.before = lambda e: is_part(e) and e.refuse(503, "SlowDown")
    with pytest.raises(SystemEnvironmentError, match="SlowDown"):
        upload.send(0, 0, MIB)
    assert sum("partNumber=" in path for _, path in proxy.seen) == retry.ATTEMPTS
    proxy.before = lambda _: None
    upload.abort()
    assert keys(store, store._key) == []
    assert list(store._client.uploads(store._key)) == []


def test_a_part_whose_checksum_is_another_is_not_acknowledged(store, proxy):
    upload = store.begin(Spool(b"x" * MIB), force=False, unconditional=False)
    proxy.after = lambda e: is_part(e) and e.send(etag=f'"{"0" * 32}"')
    with pytest.raises(SystemEnvironmentError, match="checksum"):
        upload.send(0, 0, MIB)
    upload.abort()


@pytest.mark.parametrize("fault", ["checksum", "size"])
def test_a_body_that_is_not_what_was_sent_is_not_committed(store, proxy, fault):
    upload = store.begin(Spool(b"x" * MIB), force=False, unconditional=False)
    upload.send(0, 0, MIB)
    changed = {"etag": f'"{"0" * 32}-1"'} if fault == "checksum" else {"content-length": "77"}
    proxy.after = lambda e: e.method == "HEAD" and e.send(**changed)
    with pytest.raises(SystemEnvironmentError, match=fault):
        upload.commit(new_head(), {})
    proxy.after = lambda _: None
    upload.abort()
    assert keys(store, store._key) == []


def test_a_head_whose_checksum_is_another_is_not_committed(store, proxy):
    upload = store.begin(Spool(b"x"), force=False, unconditional=False)
    upload.send(0, 0, 1)
    proxy.after = lambda e: (
        e.method == "PUT" and "/head-" in e.path and e.send(etag=f'"{"0" * 32}"')
    )
    with pytest.raises(SystemEnvironmentError, match="checksum"):
        upload.commit(new_head(), {})
    proxy.after = lambda _: None
    upload.abort()
    assert keys(store, store._key) == []


def test_where_nobody_can_tell_whether_the_record_was_stored_its_parts_stay(store, proxy):
    upload = store.begin(Spool(b"body"), force=False, unconditional=False)
    upload.send(0, 0, 4)
    head = new_head()
    proxy.after = lambda e: e.method == "PUT" and ".parts" not in e.path and e.cut()
    proxy.before = lambda e: e.method == "GET" and ".parts" not in e.path and e.cut()
    with pytest.raises(SystemEnvironmentError):
        upload.commit(head, {})
    proxy.after = proxy.before = lambda _: None
    upload.abort()
    assert content(store) == head + b"body"  # it was


def test_a_refusal_is_not_tried_again(store, proxy):
    proxy.before = lambda e: e.refuse(403, "AccessDenied")
    with pytest.raises(SystemEnvironmentError, match="AccessDenied") as caught:
        store.check_free(force=False, unconditional=False)
    assert len(proxy.seen) == 1
    assert KEY_ID not in caught.value.message + caught.value.hint
    assert SECRET not in caught.value.message + caught.value.hint


def test_a_large_body_that_is_refused_early_is_told_why(store, proxy):
    """The server says no, reads nothing of the body, and closes."""
    upload = store.begin(Spool(bytes(16 * MIB)), force=False, unconditional=False)
    real = proxy._server.RequestHandlerClass._exchange

    def early(handler):
        handler.raw_requestline = handler.rfile.readline(65537)
        if not handler.raw_requestline or not handler.parse_request():
            handler.close_connection = True
            return
        content = b"<Error><Code>QuotaExceeded</Code></Error>"
        handler.send_response_only(403)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(content)
        handler.wfile.flush()
        proxy.over.wait(1)  # not at once: a reset would overtake the answer

    proxy._server.RequestHandlerClass._exchange = early
    store._client.close()  # the connections that are there wait in the other function
    with pytest.raises(SystemEnvironmentError, match="QuotaExceeded"):
        upload.send(0, 0, 16 * MIB)
    proxy._server.RequestHandlerClass._exchange = real
    upload.abort()


# --- Reading. ---


def is_range(exchange):
    return exchange.method == "GET" and exchange.path.endswith("/body")


def other_range(exchange):
    return exchange.send(content_range="bytes 1-10/1000000")


RANGES = {
    "the whole object": (lambda e: e.send(status=200), SystemEnvironmentError, "the whole object"),
    "another range": (other_range, SystemEnvironmentError, "another range"),
    "no range named": (
        lambda e: e.send(content_range="bytes"),
        SystemEnvironmentError,
        "another range",
    ),
    "another size": (lambda e: e.send(content_range="bytes 0-99999/77"), FileError, "changed"),
    "another object": (lambda e: e.send(etag='"x"'), FileError, "changed"),
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
    "416": (lambda e: e.refuse(416, "InvalidRange"), FileError, "changed"),
    "gone": (lambda e: e.refuse(404, "NoSuchKey"), FileError, "changed"),
    "condition": (lambda e: e.refuse(412, "PreconditionFailed"), FileError, "changed"),
    "forbidden": (lambda e: e.refuse(403, "AccessDenied"), SystemEnvironmentError, "AccessDenied"),
    "cut for ever": (lambda e: e.cut(), SystemEnvironmentError, "does not work as expected"),
}


@pytest.mark.parametrize("fault", RANGES)
def test_a_wrong_answer_to_a_range_is_an_error_that_names_it(store, proxy, fault):
    answer, error, words = RANGES[fault]
    body = os.urandom(100_000)
    put(store, body)
    file = store.open()
    proxy.after = lambda e: is_range(e) and answer(e)
    out = memoryview(bytearray(len(body)))
    with pytest.raises(error, match=words):
        file.read_into(out, file.head_size)
    proxy.after = lambda _: None
    file.read_into(out, file.head_size)
    assert bytes(out) == body


def test_a_range_that_is_cut_goes_on_where_it_broke_off(store, proxy):
    body = os.urandom(300_000)
    put(store, body)
    assert_cut_ranges_go_on(store, proxy, is_range, body)


def test_each_range_is_asked_for_on_the_condition_that_the_object_is_the_same(store, proxy):
    put(store, b"body")
    file = store.open()
    seen = []
    proxy.before = lambda e: seen.append(e.headers.get("If-Match")) if is_range(e) else None
    file.read_into(memoryview(bytearray(1)), file.head_size)
    assert seen == [file.record.body_etag]


SLOW = {
    "silent": lambda e, p: e.stall(p),
    "silent after the headers": lambda e, p: (e.start(e.status, e.answer), e.stall(p))[1],
    "dripping headers": lambda e, p: e.drip(p, b"H"),
    "endless headers": lambda e, p: (
        e.handler.wfile.write(b"HTTP/1.1 206 OK\r\n"),
        e.drip(p, b"A: b\r\n"),
    )[1],
    "dripping body": lambda e, p: (e.start(e.status, e.answer), e.drip(p, b"x"))[1],
    "100 for ever": lambda e, p: e.drip(p, b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("fault", SLOW)
def test_a_peer_that_is_silent_or_drips_is_given_up(store, proxy, impatient, monkeypatch, fault):
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    put(store, b"b" * 100_000)
    file = store.open()
    proxy.after = lambda e: is_range(e) and SLOW[fault](e, proxy)
    monkeypatch.setattr(wire, "_SLOWEST", 10**9)
    with pytest.raises(SystemEnvironmentError, match="does not work as expected"):
        file.read_into(memoryview(bytearray(100_000)), file.head_size)


def endless(exchange, proxy):
    """A page of a listing without an end, as fast as it goes."""
    exchange.start(200, {"content-type": "application/xml", "connection": "close"})
    try:
        exchange.handler.wfile.write(b"<ListBucketResult>")
        while not proxy.over.is_set():
            exchange.handler.wfile.write(b"<Contents><Key>x</Key></Contents>" * 10_000)
    except OSError:
        pass
    return exchange.cut()


def test_an_answer_without_an_end_is_cut_off(store, proxy):
    asked = []

    def answer(exchange):
        if "list-type" not in exchange.path:
            return False
        asked.append(exchange.path)
        return endless(exchange, proxy)

    proxy.before = answer
    with pytest.raises(SystemEnvironmentError, match=r"does not work as expected: .* longer than"):
        list(store.list())
    assert len(asked) == 1  # a second attempt would bring as much


def test_a_listing_that_never_ends_is_given_up(store, proxy, monkeypatch):
    monkeypatch.setattr(bucket_client, "_MAX_NAMES", 5000)
    more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
    page = b"<ListBucketResult>" + more + b"</ListBucketResult>"
    proxy.before = lambda e: "list-type" in e.path and e.send(status=200, content=page)
    with pytest.raises(SystemEnvironmentError, match="no end"):
        list(store._client.objects("x"))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_no_credentials_go_there(store, proxy, moto, status):
    elsewhere = Proxy(moto.port)
    put(store, b"body")
    file = store.open()
    proxy.before = lambda e: (
        is_range(e)
        and e.send(
            status=status,
            content=b"<Error><Code>Redirect</Code></Error>",
            location=f"{elsewhere.url}{e.path}",
        )
    )
    with pytest.raises(SealpointError):
        file.read_into(memoryview(bytearray(4)), file.head_size)
    assert elsewhere.seen == []
    elsewhere.close()


def test_an_object_that_is_not_of_the_prefix_asked_for_is_passed_over(store, proxy):
    found = b"<Contents><Key>other/x</Key><Size>1</Size></Contents>"
    page = b"<ListBucketResult><IsTruncated>false</IsTruncated>" + found + b"</ListBucketResult>"
    proxy.before = lambda e: "list-type" in e.path and e.send(status=200, content=page)
    assert list(store._client.objects("mine/")) == []


# --- Where to. ---


@pytest.mark.parametrize(
    "endpoint", ["http://192.0.2.1:9000", "http://example.org", "http://127.0.0.1.example.org"]
)
def test_plain_http_goes_to_this_machine_alone(proxy, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UsageError, match="plain HTTP"):
        open_store(f"{STEM}/x")
    open_store(f"{STEM}/x", plain_http=True).close()


def test_an_endpoint_with_a_password_is_refused_and_not_shown(proxy, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hidden@127.0.0.1:1")
    with pytest.raises(SealpointError) as caught:
        open_store(f"{STEM}/x")
    assert "hidden" not in caught.value.message


def test_where_nobody_listens_it_says_so(monkeypatch):
    use(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    with pytest.raises(SystemEnvironmentError, match="refused"):
        open_store(f"{STEM}/x").check_free(force=False, unconditional=False)

"""TLS to another machine goes through the proxy of HTTPS_PROXY, which learns where to and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import ssl
import threading
from urllib.parse import urlsplit

import pytest

from sealpoint.errors import SystemEnvironmentError
from sealpoint.store import wire
from tests.store.registry_servers import make_authority

FAR = "203.0.113.7"  # of nobody (RFC 5737); the proxy of the tests leads to this machine


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(dict(self.headers.items()))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


class Tunnel(http.server.BaseHTTPRequestHandler):
    """CONNECT, as RFC 9110 has it, to the one server that there is."""

    def do_CONNECT(self):
        self.server.seen.append((self.path, dict(self.headers.items())))
        if self.server.status != 200:
            self.send_error(self.server.status, "words of a proxy")
            return
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(("127.0.0.1", self.server.behind), 60) as far:
            back = threading.Thread(target=pump, args=(far, self.connection))
            back.start()
            pump(self.connection, far, self.server.passed)
            back.join(60)

    def log_message(self, *_):
        pass


def pump(source, target, copy=None):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if copy is not None:
                copy += data
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def serving(handler, context=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.seen, server.passed, server.status = [], bytearray(), 200
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A server by TLS, whose certificate is for 127.0.0.1."""
    make_authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    with serving(Handler, context) as server:
        yield server


@pytest.fixture
def proxy(far, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(Tunnel) as server:
        server.behind = far.server_address[1]
        server.at = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://us%40er:pass%3Aword@{server.at}")
        yield server


def get(url):
    carrier = wire.Wire()
    try:
        _, body = carrier.exchange("GET", urlsplit(url), None, {"Authorization": "a secret"})
        out = memoryview(bytearray(10))
        got = bytes(out[: body.readinto(out)])
        body.close()
    finally:
        carrier.close()
    return got


def test_the_proxy_gets_the_address_and_its_own_password_alone(far, proxy, monkeypatch):
    monkeypatch.setattr(wire, "_LOOPBACK", wire.re.compile("nothing"))
    url = f"https://127.0.0.1:{far.server_address[1]}/path"
    assert get(url) == b"ok"
    [(asked, headers)] = proxy.seen
    assert asked == f"127.0.0.1:{far.server_address[1]}"
    assert headers["Proxy-Authorization"] == "Basic dXNAZXI6cGFzczp3b3Jk"
    assert "Authorization" not in headers
    assert b"secret" not in proxy.passed
    [inside] = far.seen
    assert inside["Authorization"] == "a secret"
    assert "Proxy-Authorization" not in inside


def test_whoever_is_behind_the_proxy_must_have_the_certificate_of_the_name(far, proxy):
    with pytest.raises(ssl.SSLCertVerificationError):
        get(f"https://{FAR}/path")
    assert far.seen == []


def test_this_machine_and_what_no_proxy_names_are_reached_directly(far, proxy, monkeypatch):
    assert get(f"https://127.0.0.1:{far.server_address[1]}/path") == b"ok"
    assert proxy.seen == []
    monkeypatch.setenv("NO_PROXY", FAR)
    assert wire._proxy_for(FAR) is None
    assert wire._proxy_for("203.0.113.8") is not None


def test_a_refusal_of_the_proxy_is_said_without_its_words(proxy):
    proxy.status = 407
    untrusted = SystemEnvironmentError("untrusted")
    with pytest.raises(OSError, match="407") as caught:
        get(f"https://{FAR}/path")
    assert wire.reason(caught.value, untrusted) == "the proxy of HTTPS_PROXY refuses (407)"


@pytest.mark.parametrize(
    "value", ["https://127.0.0.1:1", "socks5://127.0.0.1:1", "http://a:hidden@:1", "http://h:x"]
)
def test_a_proxy_that_cannot_be_used_is_an_error_that_shows_no_password(monkeypatch, value):
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(SystemEnvironmentError, match="HTTPS_PROXY") as caught:
        wire._proxy_for(FAR)
    assert "hidden" not in caught.value.message


def test_what_goes_without_tls_uses_no_proxy(far, proxy):
    connection = wire.Wire()._connection(urlsplit("http://127.0.0.1:1/x"))
    assert isinstance(connection, http.client.HTTPConnection)
    assert (connection.host, connection.port) == ("127.0.0.1", 1)

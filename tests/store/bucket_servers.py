"""Real S3 servers for tests, and a proxy in front of one, which injects faults and nothing else.

moto has S3's semantics (conditions, checks of parts), rclone checks signatures and leaves files that one can look at.
"""

from __future__ import annotations

import http.client
import http.server
import os
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ROOT / ".services" / "buckets"
KEY_ID, SECRET = "AKIDSEALPOINTTEST", "a-secret-that-nothing-may-print"
BUCKET = "bucket"


def need_services():
    """Skips, or fails where CI says that they must be there."""
    if not (SERVICES / "complete").exists() and not (SERVICES / "bin" / "moto_server").exists():
        say = pytest.fail if os.environ.get("SEALPOINT_REQUIRE_SERVICES") == "1" else pytest.skip
        say("no S3 servers here: scripts/get-services makes them (make test-services)")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """A process that listens; ended by its id."""

    def __init__(self, arguments, log, env=None):
        self.port = free_port()
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [part.replace("PORT", str(self.port)) for part in arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
            )
        self.url = f"http://127.0.0.1:{self.port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    pytest.fail(f"the server does not start: {Path(log).read_text()[-2000:]}")
                time.sleep(0.05)

    def close(self):
        self.process.kill()
        self.process.wait()


def start_moto(directory):
    need_services()
    arguments = [str(SERVICES / "bin" / "python"), str(SERVICES / "bin" / "moto_server")]
    server = Server([*arguments, "-H", "127.0.0.1", "-p", "PORT"], directory / "moto.log")
    make_bucket(server.url)
    return server


def make_bucket(url, name=BUCKET):
    request = urllib.request.Request(f"{url}/{name}", method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60).close()


def start_rclone(directory, auth=f"{KEY_ID},{SECRET}"):
    need_services()
    files = directory / "files"
    (files / BUCKET).mkdir(parents=True)
    arguments = [str(SERVICES / "bin" / "rclone"), "serve", "s3", "--addr", "127.0.0.1:PORT"]
    server = Server(
        [*arguments, "--auth-key", auth, str(files)],
        directory / "rclone.log",
        {"RCLONE_CONFIG": "/dev/null"},
    )
    server.files = files / BUCKET
    return server


class Exchange:
    """One request and the real server's answer to it, in the hands of a rule."""

    def __init__(self, handler, body):
        self.handler = handler
        self.method = handler.command
        self.path = handler.path
        self.headers = dict(handler.headers.items())
        self.body = body
        self.status, self.answer, self.content = 0, {}, b""

    def forward(self, upstream):
        connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=120)
        try:
            connection.putrequest(self.method, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(self.body)
            response = connection.getresponse()
            self.content = response.read()
            self.status = response.status
            self.answer = {k.lower(): v for k, v in response.getheaders()}
            if self.method != "HEAD":
                self.answer["content-length"] = str(len(self.content))
            self.answer.pop("transfer-encoding", None)
            self.answer.pop("connection", None)
        finally:
            connection.close()

    # What a rule may do instead of an answer; each returns True.

    def send(self, status=None, content=None, **headers):
        """The answer, changed."""
        content = self.content if content is None else content
        answer = {**self.answer, "content-length": str(len(content))} if content else self.answer
        answer |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.start(self.status if status is None else status, answer)
        if self.method != "HEAD":
            self.handler.wfile.write(content)
        return True

    def start(self, status, headers):
        self.handler.send_response_only(status)
        for name, value in headers.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()

    def cut(self):
        self.handler.close_connection = True
        try:
            self.handler.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        return True

    def refuse(self, status, code):
        content = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.start(status, {"content-length": str(len(content)), "content-type": "text/xml"})
        self.handler.wfile.write(content)
        return True

    def stall(self, proxy):
        """Nothing comes until the other side has gone away, or the test is over."""
        while not proxy.over.is_set():
            self.handler.connection.settimeout(0.2)
            try:
                if not self.handler.connection.recv(65536):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        return self.cut()

    def drip(self, proxy, data):
        """One byte after the other, for ever."""
        try:
            while not proxy.over.wait(0.1):
                self.handler.wfile.write(data)
        except OSError:
            pass
        return self.cut()


class Proxy:
    """In front of a server at `port`.

    before(exchange): before the request is forwarded; after(exchange): before the answer is given back.  Either says
    True if it answered itself.
    """

    def __init__(self, port):
        self.before = self.after = lambda _: None
        self.seen = []
        self.over = threading.Event()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                try:
                    self._exchange()
                except OSError:
                    self.close_connection = True

            def _exchange(self):
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                length = int(self.headers.get("Content-Length", "0"))
                body = self.rfile.read(length)
                if len(body) < length:
                    self.close_connection = True
                    return
                exchange = Exchange(self, body)
                proxy.seen.append((exchange.method, exchange.path))
                if proxy.before(exchange):
                    return
                exchange.forward(port)
                if not proxy.after(exchange):
                    exchange.send()

            def log_message(self, *_):
                pass

        class Listener(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_):
                pass

        self._server = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def close(self):
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def use(monkeypatch, url, key_id=KEY_ID, secret=SECRET):
    """What every AWS tool takes from its environment, and nothing of the machine's own."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    values = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)

"""The wire under the clients of stores: one HTTP request, bounded in time and in what is taken from the peer.

Every request has a time in which it must be over; then its connection is cut from another thread.  Redirects are never
followed.  What goes by TLS to another machine uses the proxy of HTTPS_PROXY, which sees no more than where to.

Registries (`oci`) use `Wire.exchange`.  For buckets, botocore signs requests and reads answers, but its transport
bounds neither: each byte may come just before the timeout, and an answer in XML is read whole, however long it is.  So
its public hook "before-send" hands each signed request to this module.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from sealpoint.errors import SystemEnvironmentError
from sealpoint.names import printable

CONNECT_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 30.0  # a peer that neither takes nor sends a byte for so long is gone
_REQUEST_SECONDS: Final = 60.0  # for a whole request, and for its bytes at the pace below
_WORK_SECONDS: Final = 600.0  # some servers put the parts together before they answer
_EARLY_SECONDS: Final = 2.0
_SLOWEST: Final = 64 * 1024  # bytes per second
_MAX_DOCUMENT: Final = 16 * 1024 * 1024  # an answer in XML: a page of 1000 names is below 4 MiB
_STEP: Final = 256 * 1024
_POOLED: Final = 16
_LOOPBACK: Final = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")
_TUNNEL: Final = re.compile(r"Tunnel connection failed: (\d{3})")  # http.client's words


class Body:
    """What a request's answer holds, while it is read.  Raises OSError, http.client.HTTPException."""

    def __init__(self, wire: Wire, lease: Lease, answer: http.client.HTTPResponse) -> None:
        self._wire = wire
        self._lease = lease
        self._answer = answer

    def readinto(self, out: memoryview) -> int:
        """As many bytes as there are now, at least one; 0 at the end."""
        data = self._answer.read1(min(len(out), _STEP))
        out[: len(data)] = data
        return len(data)

    def stream(self) -> Iterator[bytes]:
        """All of it, for botocore: an answer in XML.  Raises SystemEnvironmentError for one that does not end."""
        left = _MAX_DOCUMENT
        try:
            while data := self._answer.read1(_STEP):
                left -= len(data)
                if left < 0:
                    raise SystemEnvironmentError(
                        f"the store does not work as expected: its answer is longer than {_MAX_DOCUMENT} bytes",
                        hint="see that the endpoint is that of S3",
                    )
                yield data
            if self._answer.length:
                raise http.client.IncompleteRead(b"", self._answer.length)
        finally:
            self.close()

    def close(self) -> None:
        """Keep the connection if all was read, else cut it."""
        answer = self._answer
        whole = not answer.length and (answer.isclosed() or not answer.chunked)
        keep = whole and answer.length is not None and not answer.will_close
        answer.close()
        self._wire.give_back(self._lease, keep=keep or (whole and answer.chunked))


class Lease:
    """One request's use of a connection: after `seconds` it is cut."""

    def __init__(self, connection: _Cuttable, address: tuple[str, str]) -> None:
        self.connection = connection
        self.address = address
        self.thread = threading.get_ident()
        self.late = False
        self._watch: threading.Timer | None = None

    def start(self, seconds: float) -> None:
        self._watch = threading.Timer(seconds, self._expire)
        self._watch.daemon = True
        self._watch.start()

    def _expire(self) -> None:
        self.late = True
        self.cut()

    def cut(self) -> None:
        """From any thread."""
        self.connection.cutter.cut()

    def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()


class Wire:
    """Sends the requests of one client, from any thread."""

    def __init__(self, *, authorities: str = "AWS_CA_BUNDLE") -> None:
        """authorities: the variable that names a file of authorities instead of the machine's (and SSL_CERT_FILE's)."""
        self._lock = threading.Lock()
        self._authorities = authorities
        self._idle: list[tuple[tuple[str, str], _Cuttable]] = []
        self._leases: set[Lease] = set()
        self._tls: ssl.SSLContext | None = None

    def send(self, request: Any, **_: Any) -> Any:
        """botocore's hook: an AWSPreparedRequest to an AWSResponse.  Raises OSError, http.client.HTTPException."""
        from botocore.awsrequest import AWSResponse

        url = urlsplit(request.url)
        headers = {name: _text(value) for name, value in request.headers.items()}
        headers.pop(
            "Expect", None
        )  # nothing here waits for 100-continue; it is not part of the signature
        work = _WORK_SECONDS if request.method == "POST" and "uploadId=" in url.query else 0.0
        answer, body = self.exchange(request.method, url, request.body, headers, work=work)
        return AWSResponse(request.url, answer.status, _headers(answer), body)

    def exchange(
        self,
        method: str,
        url: SplitResult,
        body: Any,
        headers: Mapping[str, str],
        *,
        work: float = 0.0,
    ) -> tuple[http.client.HTTPResponse, Body]:
        """One request; of the answer only its head is read.  The body has to be closed.

        body: None, bytes, a file or an iterable of bytes, then with a Content-Length; work: seconds that the server
        may think.  Raises OSError, http.client.HTTPException.
        """
        lease = self._lease(url)
        try:
            # One end until there is an answer; its bytes are given their time when its length is known.
            lease.start(work + allowed_seconds(int(headers.get("Content-Length", "0"))))
            lease.connection.patience(work or SILENCE_SECONDS)
            target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
            answer = _exchange(lease, method, target, body, headers)
            lease.stop()
            if lease.late:
                answer.close()
                raise TimeoutError  # the headers are those that came before the cut
            lease.start(allowed_seconds(min(answer.length or 0, 1 << 40)))
        except BaseException as error:
            self.give_back(lease, keep=False)
            if lease.late and isinstance(error, (OSError, http.client.HTTPException)):
                raise TimeoutError("the exchange took too long") from None
            raise
        return answer, Body(self, lease, answer)

    def _lease(self, url: SplitResult) -> Lease:
        address = (url.scheme, url.netloc)
        with self._lock:
            found = [each for each in self._idle if each[0] == address]
            if found:
                self._idle.remove(found[-1])
                connection = found[-1][1]
            else:
                connection = self._connection(url)
            lease = Lease(connection, address)
            self._leases.add(lease)
        return lease

    def _connection(self, url: SplitResult) -> _Cuttable:
        host = url.hostname or ""
        if url.scheme == "http":
            return _Cuttable(host, url.port)
        if self._tls is None:
            authorities = os.environ.get(self._authorities) or None
            self._tls = ssl.create_default_context(cafile=authorities)
        proxy = _proxy_for(host)
        if proxy is None:
            return _Secure(host, url.port, context=self._tls)
        connection = _Secure(proxy.host, proxy.port, context=self._tls)
        connection.set_tunnel(host, url.port or 443, proxy.headers)
        return connection

    def give_back(self, lease: Lease, *, keep: bool) -> None:
        """Once for each lease; more often does nothing."""
        with self._lock:
            if lease not in self._leases:
                return
            self._leases.remove(lease)
            lease.stop()
            if keep and not lease.late and len(self._idle) < _POOLED:
                self._idle.append((lease.address, lease.connection))
                return
        lease.connection.close()

    def interrupt(self, threads: set[int]) -> None:
        """Cut what these threads are sending."""
        with self._lock:
            for lease in self._leases:
                if lease.thread in threads:
                    lease.cut()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()


class _Proxy(NamedTuple):
    """headers: for it alone."""

    host: str
    port: int
    headers: dict[str, str]


def _proxy_for(host: str) -> _Proxy | None:
    """By HTTPS_PROXY and NO_PROXY, as most programs read them; never for this machine.

    Raises SystemEnvironmentError.  A password in the variable is in no message.
    """
    named = urllib.request.getproxies_environment()
    text = named.get("https", "")
    if not text or _LOOPBACK.fullmatch(host) or urllib.request.proxy_bypass(host):
        return None
    wrong = SystemEnvironmentError(
        "HTTPS_PROXY names no proxy that can be used", hint="it must be http://host:port"
    )
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        port = url.port or 80
    except ValueError:
        raise wrong from None
    if url.scheme != "http" or not url.hostname or not text.isascii() or not text.isprintable():
        raise wrong
    headers = {}
    if url.username is not None:
        login = f"{unquote(url.username)}:{unquote(url.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    return _Proxy(url.hostname, port, headers)


def _exchange(
    lease: Lease, method: str, target: str, body: Any, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    try:
        lease.connection.request(method, target, body=body, headers=dict(headers))
    except (BrokenPipeError, ConnectionResetError, TimeoutError) as error:
        # A server that refuses a large body may say so, and no more, before it has read all of it.
        if lease.late or lease.connection.sock is None:
            raise
        lease.connection.patience(_EARLY_SECONDS)
        try:
            answer = lease.connection.getresponse()
        except (OSError, http.client.HTTPException):
            raise error from None
        answer.will_close = True
        return answer
    return lease.connection.getresponse()


def reason(error: Exception, untrusted: SystemEnvironmentError) -> str:
    """Why an exchange failed that may work the next time.

    Raises `untrusted` where the peer's certificate is none that this machine trusts, and `error` itself if it does not
    come from the wire.
    """
    if isinstance(error, TimeoutError):
        return "it is silent or too slow"
    if isinstance(error, ssl.SSLCertVerificationError):
        raise untrusted from None
    if refused := _TUNNEL.match(str(error)):
        return f"the proxy of HTTPS_PROXY refuses ({refused[1]})"
    if isinstance(error, OSError):
        return printable(error.strerror or type(error).__name__)
    if isinstance(error, http.client.HTTPException):
        return f"its answer is broken ({type(error).__name__})"
    raise error


def allowed_seconds(size: int) -> float:
    """In which an exchange of `size` bytes must be over."""
    return _REQUEST_SECONDS + size / _SLOWEST


class _Cutter:
    """A second descriptor of a TCP connection, which ends it, also amid a TLS handshake.

    Never through SSLSocket.shutdown: another thread would then go on in plain text.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self.patience = SILENCE_SECONDS

    def dial(self, address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        """As socket.create_connection.  To find no peer is known sooner than that a peer is silent."""
        sock = socket.create_connection(address, CONNECT_SECONDS)
        sock.settimeout(self.patience)
        self.close()
        with self._lock:
            self._sock = sock.dup()
        return sock

    def cut(self) -> None:
        with self._lock:
            if self._sock is not None:
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # not connected any more

    def close(self) -> None:
        with self._lock:
            if self._sock is not None:
                self._sock.close()
                self._sock = None


class _HeaderLines:
    """What `http.client` reads of an answer's head.  It takes the end of a connection for the end of the head."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._first = True

    def readline(self, limit: int) -> bytes:
        line: bytes = self._file.readline(limit)
        if not line and not self._first:
            raise http.client.IncompleteRead(b"")
        self._first = False
        return line

    def close(self) -> None:
        self._file.close()


class _Answer(http.client.HTTPResponse):
    """An answer whose head is complete, or HTTPException."""

    def begin(self) -> None:
        file: Any = self.fp
        lines: Any = _HeaderLines(file)
        self.fp = lines
        try:
            super().begin()
        finally:
            if self.fp is lines:  # else it was closed
                self.fp = file


class _Cuttable(http.client.HTTPConnection):
    """A connection that another thread can cut."""

    response_class = _Answer

    def __init__(self, host: str, port: int | None, **more: Any) -> None:
        super().__init__(host, port, blocksize=_STEP, **more)
        self.cutter = _Cutter()
        self._create_connection = self.cutter.dial

    def patience(self, seconds: float) -> None:
        """How long the peer may be silent."""
        self.cutter.patience = seconds
        if self.sock is not None:
            self.sock.settimeout(seconds)

    def close(self) -> None:
        super().close()
        self.cutter.close()


class _Secure(_Cuttable, http.client.HTTPSConnection):
    """The same over TLS."""


def _headers(answer: http.client.HTTPResponse) -> Mapping[str, str]:
    return dict(answer.getheaders())


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value

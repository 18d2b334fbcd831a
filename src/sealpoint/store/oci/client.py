"""Requests to a registry: sent by `wire.Wire`, authorised, tried again, and redirected within limits.

Credentials go to the registry's own origin and to the token server that it names, never where a redirect leads.  Of
what a server says, only status and OCI's error code are shown.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.names import printable
from sealpoint.store import retry, wire
from sealpoint.store.oci.authorizer import Authorizer
from sealpoint.store.oci.reference import ArtifactName, is_host, is_loopback
from sealpoint.store.wire import Body, Wire

_LONGEST_WISH: Final = 60.0  # of a server, by Retry-After
_PROBE_SECONDS: Final = 20.0
_REDIRECTS: Final = 5
_MAX_ERROR: Final = 16 * 1024
_WORK_SECONDS: Final = 600.0  # some registries hash a layer before they answer
_CODE: Final = re.compile(rb'"code"\s*:\s*"([A-Z][A-Z_]{1,63})"')
_REDIRECT: Final = {301, 302, 303, 307, 308}

PULL: Final = "pull"
PUSH: Final = "pull,push"
DELETE: Final = "pull,delete"

T = TypeVar("T")
Pieces = Callable[[], Iterable[bytes | memoryview]]


class RegistryAnswerError(Exception):
    """The registry's answer is no, and it stays so.  code: OCI's word, or empty; status: HTTP's."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code


class RetryError(Exception):
    """It may work in a while.  after: seconds that the server asks for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Answer(NamedTuple):
    """url: after redirects; data: all of the body, up to the limit of the request."""

    status: int
    headers: http.client.HTTPMessage
    url: SplitResult
    data: bytes


class Client:
    """One repository.  From any thread.

    Every method raises SystemEnvironmentError where the registry cannot be reached, refuses the credentials or answers
    nonsense; and RegistryAnswerError where it says no to this request.
    """

    def __init__(self, reference: ArtifactName, *, plain_http: bool) -> None:
        """Sends nothing."""
        self.name = f"oci://{reference.registry}/{reference.repository}"
        self._reference = reference
        self._plain_http = plain_http
        self._wire = Wire(authorities="")
        weakref.finalize(self, self._wire.close)
        self._lock = threading.Lock()
        self._origin = ""
        self._auth = Authorizer(reference.registry, reference.repository, self._fetch_token)

    def path(self, rest: str) -> str:
        """Of the API, below the repository."""
        return f"/v2/{self._reference.repository}/{rest}"

    def call(
        self,
        method: str,
        target: str,
        scope: str = PULL,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        limit: int = 65536,
        cancelled: threading.Event | None = None,
    ) -> Answer:
        """A request with a small body and a small answer, tried again.  limit: bytes of the answer."""
        return self.again(
            lambda: self.once(method, target, scope, headers=headers, body=body, limit=limit),
            cancelled,
        )

    def once(
        self,
        method: str,
        target: str,
        scope: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        pieces: tuple[Pieces, int] | None = None,
        limit: int = 65536,
    ) -> Answer:
        """The same, one attempt.  pieces: a body that is made anew for each request, and its length."""
        answer, content, url = self.begin(
            method, target, scope, headers=headers, body=body, pieces=pieces
        )
        try:
            data = bytearray()
            if method != "HEAD":
                self._read(content, data, limit, answer.length)
            return Answer(answer.status, answer.headers, url, bytes(data))
        finally:
            content.close()

    def begin(
        self,
        method: str,
        target: str,
        scope: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        pieces: tuple[Pieces, int] | None = None,
    ) -> tuple[http.client.HTTPResponse, Body, SplitResult]:
        """One request up to an answer that is a success, without its body.  Raises RetryError too."""
        url = self.locate(target)
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        if body is not None or pieces is not None:
            sent["Content-Length"] = str(
                len(body) if body is not None else pieces[1] if pieces else 0
            )
        elif method in {"POST", "PUT", "PATCH"}:
            sent["Content-Length"] = "0"
        for _ in range(_REDIRECTS + 1):
            answer, content = self._authorised(method, url, scope, sent, body, pieces)
            if answer.status not in _REDIRECT:
                break
            location = answer.headers.get("Location", "")
            content.close()
            if method not in {"GET", "HEAD"}:
                raise self._nonsense("it redirects uploads")
            url = self.locate(location, url)
        else:
            raise self._nonsense("it redirects without end")
        if 200 <= answer.status < 300:
            return answer, content, url
        raise self._refusal(method, answer, content)

    def _refusal(self, method: str, answer: http.client.HTTPResponse, content: Body) -> Exception:
        data = bytearray()
        try:
            if method != "HEAD":
                self._read(content, data, _MAX_ERROR, None)
        except (OSError, http.client.HTTPException, SystemEnvironmentError):
            pass  # the status says enough
        finally:
            content.close()
        found = _CODE.search(data)
        code = found[1].decode() if found else ""
        if answer.status == 429 or (answer.status >= 500 and answer.status != 501):
            after = answer.headers.get("Retry-After", "")
            wish = float(after) if re.fullmatch(r"[0-9]{1,9}", after) else 0.0
            return RetryError(f"{code} ({answer.status})".strip(), min(wish, _LONGEST_WISH))
        return RegistryAnswerError(answer.status, code)

    def _authorised(
        self,
        method: str,
        url: SplitResult,
        scope: str,
        headers: dict[str, str],
        body: bytes | None,
        pieces: tuple[Pieces, int] | None,
    ) -> tuple[http.client.HTTPResponse, Body]:
        own = self._is_own(url)
        value = self._auth.header(scope) if own else None

        def exchange() -> tuple[http.client.HTTPResponse, Body]:
            sent = headers if value is None else {**headers, "Authorization": value}
            data = pieces[0]() if pieces is not None else body
            work = _WORK_SECONDS if method == "PUT" else 0.0
            return self._wire.exchange(method, url, data, sent, work=work)

        answer, content = exchange()
        if answer.status == 401 and own:
            content.close()
            self._auth.renew(scope, answer.headers.get_all("WWW-Authenticate") or [], value)
            value = self._auth.header(scope)
            answer, content = exchange()
        if answer.status == 401:
            content.close()
            raise SystemEnvironmentError(
                f"{self.name}: the registry does not accept the credentials",
                hint="log in with `skopeo login` or `docker login`, and check what the account may do",
            )
        return answer, content

    # --- Where requests go. ---

    def locate(self, target: str, base: SplitResult | None = None) -> SplitResult:
        """An address of the registry or one that it names.  Raises SystemEnvironmentError: nothing is sent there."""
        if not self._origin:
            with self._lock:
                self._origin = self._find_origin()
        if not target or not target.isascii() or not target.isprintable() or " " in target:
            raise self._nonsense("it does not name the address for the next step")
        try:
            url = urlsplit(urljoin(base.geturl() if base else self._origin + "/", target))
            port = url.port
        except ValueError:
            raise self._nonsense("it does not name the address for the next step") from None
        if url.username is not None or port == 0 or not is_host(url.hostname or ""):
            raise self._nonsense("it does not name the address for the next step")
        return self._check_transport(url)

    def _is_own(self, url: SplitResult) -> bool:
        return origin_of(url) == origin_of(urlsplit(self._origin))

    def _check_transport(self, url: SplitResult) -> SplitResult:
        plain = url.scheme == "http" and (
            self._is_own(url)
            or (
                self._origin.startswith("http:")
                and (self._plain_http or is_loopback(url.hostname or ""))
            )
        )
        if url.scheme == "https" or plain:
            return url._replace(fragment="")
        raise SystemEnvironmentError(
            f"{self.name}: the registry redirects to {printable(url.hostname or '')} over plain HTTP",
            hint="nothing was sent there",
        )

    def _find_origin(self) -> str:
        """https, or http where that was asked for; on this machine http if the registry does not speak TLS."""
        address = self._reference.address
        if self._plain_http:
            return f"http://{address}"
        if is_loopback(self._reference.host) and not _speaks_tls(address):
            return f"http://{address}"
        return f"https://{address}"

    def _fetch_token(self, realm: str, query: str, basic: str | None, form: bytes | None) -> bytes:
        """From the token server that the registry names; for Authorizer."""
        if not realm.lower().startswith(("https://", "http://")):
            raise self._nonsense("it does not name its token server")
        url = self.locate(realm)
        headers = {"Accept": "application/json"}
        if basic is not None:
            headers["Authorization"] = basic
        if form is not None:
            headers |= {
                "Content-Type": "application/x-www-form-urlencoded",
                "Content-Length": str(len(form)),
            }
        else:
            url = url._replace(query="&".join(part for part in (url.query, query) if part))
        answer, content = self._wire.exchange("GET" if form is None else "POST", url, form, headers)
        if answer.status != 200:
            error = self._refusal("GET", answer, content)
            if isinstance(error, RetryError):
                raise error
            raise SystemEnvironmentError(
                f"{self.name}: the registry's token server refused ({answer.status})",
                hint="log in with `skopeo login` or `docker login`, and check what the account may do",
            )
        data = bytearray()
        try:
            self._read(content, data, 1024 * 1024, answer.length)
        finally:
            content.close()
        return bytes(data)

    def _read(self, content: Body, data: bytearray, limit: int, length: int | None) -> None:
        """All of a body, or a mistake: shorter than it said, or longer than the limit, which no second attempt changes.

        Raises SystemEnvironmentError, OSError, http.client.HTTPException.
        """
        step = memoryview(bytearray(min(limit + 1, 65536)))
        while (length or 0) <= limit and (got := content.readinto(step)):
            data += step[:got]
            if len(data) > limit:
                break
        if len(data) > limit or (length or 0) > limit:
            raise SystemEnvironmentError(
                f"{self.name}: the registry does not work as expected: its answer is longer than {limit} bytes",
                hint="something else has that name, or another server than a registry is there",
            )
        if length is not None and len(data) != length:
            raise http.client.IncompleteRead(b"", length - len(data))

    # --- Again. ---

    def again(self, attempt: Callable[[], T], cancelled: threading.Event | None = None) -> T:
        """Try until it works, or will not."""
        return retry.again(attempt, self._judge, self._nonsense, cancelled)

    def _judge(self, error: Exception) -> retry.Failure:
        if isinstance(error, RetryError):
            return retry.Failure(error.reason, error.after)
        untrusted = SystemEnvironmentError(
            f"{self.name}: the certificate of the registry is not trusted on this machine",
            hint="to trust other authorities, name their file in SSL_CERT_FILE",
        )
        return retry.Failure(wire.reason(error, untrusted))

    def _nonsense(self, reason: str) -> SystemEnvironmentError:
        return SystemEnvironmentError(
            f"{self.name}: the registry does not work as expected: {reason}",
            hint="check the address and the network, then try again",
        )

    def refused(self, error: RegistryAnswerError) -> SystemEnvironmentError:
        """A refusal that the caller has no use for."""
        code = f"{error.code}, " if error.code else ""
        hint = "check what the account may do" if error.status == 403 else None
        return SystemEnvironmentError(
            f"{self.name}: the registry refused ({code}status {error.status})", hint=hint
        )

    def changed(self, what: str) -> FileError:
        return FileError(
            f"{self.name}: {what} was changed or removed while it was read", hint="start again"
        )

    def interrupt(self, threads: set[int]) -> None:
        """Cut what these threads are sending."""
        self._wire.interrupt(threads)

    def close(self) -> None:
        """Let go of connections; more requests open others."""
        self._wire.close()


def _speaks_tls(address: str) -> bool:
    """Whether a server on this machine does.  Its certificate is not looked at: nothing is sent to it here."""
    url = urlsplit(f"https://{address}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        sock = socket.create_connection((url.hostname or "", url.port or 443), _PROBE_SECONDS)
    except OSError:
        return True  # the first request says what is wrong
    try:
        context.wrap_socket(sock, server_hostname=url.hostname).close()
    except OSError:
        return False
    finally:
        sock.close()
    return True


def origin_of(url: SplitResult) -> tuple[str, str, int]:
    """As RFC 6454 compares: a registry at :443 may name itself without the port, and in lower case."""
    return url.scheme, url.hostname or "", url.port or (443 if url.scheme == "https" else 80)

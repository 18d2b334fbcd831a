"""How one repository's requests are authorised: not at all, by a password, or by a token for each scope."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlencode

from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.store.oci import challenge, credentials
from sealpoint.store.oci.manifest import decode_json

_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]{1,65536}=*", re.ASCII)  # RFC 6750
_SHORTEST: Final = 60.0  # seconds; what a token lives if the server does not tell
_MARGIN: Final = 0.8  # of its life a token is used
_CLIENT: Final = "sealpoint"

# realm, query, the header Authorization, the body of a POST; returns the answer's body.
Fetch = Callable[[str, str, str | None, bytes | None], bytes]


class Authorizer:
    """From any thread."""

    def __init__(self, registry: str, repository: str, fetch: Fetch) -> None:
        """fetch: sends the request for a token."""
        self._registry = registry
        self._repository = repository
        self._fetch = fetch
        self._lock = threading.Lock()
        self._basic: str | None = None
        self._tokens: dict[str, tuple[str, float]] = {}  # by scope: header, until when
        self._bearer: dict[str, str] | None = None  # parameters of the challenge

    def header(self, scope: str) -> str | None:
        """What to send as Authorization now.  A token that is about to end is renewed before.

        Raises as `renew`.
        """
        with self._lock:
            if self._basic is not None:
                return self._basic
            value, until = self._tokens.get(scope, ("", 0.0))
            if time.monotonic() < until:
                return value
            if self._bearer is not None:
                return self._get_token(scope)
            return None

    def renew(self, scope: str, challenges: Iterable[str], used: str | None) -> None:
        """After a 401.  challenges: the headers; used: what was sent.

        Raises SystemEnvironmentError, PolicyError; OSError, HTTPException and RetryError of the fetch.
        """
        chosen = challenge.choose(challenges)
        with self._lock:
            if chosen is None:
                raise SystemEnvironmentError(
                    f"oci://{self._registry}: the registry wants a kind of login that sealpoint does not know",
                    hint="sealpoint knows passwords (Basic) and tokens (Bearer)",
                )
            if chosen.scheme == "bearer":
                self._bearer = dict(chosen.parameters)
                known, _ = self._tokens.get(scope, ("", 0.0))
                if not known or known == used:  # else another thread has renewed it
                    self._get_token(scope)
                return
            if used is not None and used == self._basic:
                return  # refused; the caller says so
            found = credentials.find(self._registry)
            if found is None or found.token:
                raise SystemEnvironmentError(
                    f"oci://{self._registry}: the registry wants a user name and a password",
                    hint="log in with `skopeo login` or `docker login` (DOCKER_CONFIG, ~/.docker/config.json)",
                )
            self._basic = found.basic()

    def _get_token(self, scope: str) -> str:
        """The header.  Of the challenge only realm and service count: the scope is what is wanted here, no more."""
        asked = self._bearer or {}
        wanted = {"scope": f"repository:{self._repository}:{scope}"}
        if asked.get("service"):
            wanted["service"] = asked["service"]
        found = credentials.find(self._registry)
        if found is not None and found.token:
            wanted |= {
                "grant_type": "refresh_token",
                "refresh_token": found.token,
                "client_id": _CLIENT,
            }
            data = self._fetch(asked["realm"], "", None, urlencode(wanted).encode())
        else:
            basic = found.basic() if found is not None else None
            data = self._fetch(asked["realm"], urlencode(wanted), basic, None)
        value, seconds = _parse(data, f"oci://{self._registry}: the token server's answer")
        self._tokens[scope] = (value, time.monotonic() + seconds * _MARGIN)
        return value


def _parse(data: bytes, what: str) -> tuple[str, float]:
    """Header and life of a token.  Raises SystemEnvironmentError, which never shows it."""
    try:
        answer = decode_json(data, what)
    except FileError as error:
        raise SystemEnvironmentError(error.message) from None
    token = answer.get("token") or answer.get("access_token")
    if type(token) is not str or not _TOKEN.fullmatch(token):
        raise SystemEnvironmentError(f"{what} has no token")
    seconds = answer.get("expires_in", _SHORTEST)
    if type(seconds) not in (int, float) or not 0 < seconds < 1 << 31:
        seconds = _SHORTEST
    return f"Bearer {token}", max(float(seconds), 1.0)

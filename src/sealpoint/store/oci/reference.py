"""Names of artifacts: `oci://registry[:port]/name[:tag | @sha256:...]`."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from sealpoint.errors import UsageError
from sealpoint.names import printable

SCHEME: Final = "oci://"
_MAX_NAME: Final = 255  # of registry and name together, as the common registries have it
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # RFC 1035: 63
_HOST: Final = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]{{2,39}}\])"
_ADDRESS: Final = re.compile(rf"({_HOST})(?::([1-9][0-9]{{0,4}}))?", re.ASCII)
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_LOOPBACK: Final = re.compile(r"localhost|127(\.\d{1,3}){3}|\[?::1\]?", re.ASCII | re.IGNORECASE)
_LOOKED_UP: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|(?=[^:]*:)[0-9a-fA-F:.]{2,45}",
    re.ASCII,
)
_DOCKER_HUB: Final = "docker.io"


class ArtifactName(NamedTuple):
    """registry: host with its port; repository: the name; tag, digest: at most one is not empty."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def where(self) -> str:
        """What a registry's API is asked for: tag or digest, empty if the name is of a whole repository."""
        return self.tag or self.digest

    @property
    def address(self) -> str:
        """Where the registry's API is."""
        return "registry-1.docker.io" if self.registry == _DOCKER_HUB else self.registry

    @property
    def host(self) -> str:
        """Without the port."""
        found = _ADDRESS.fullmatch(self.registry)
        return found[1] if found else self.registry

    def at(self, digest: str) -> ArtifactName:
        """The same repository, exactly one manifest."""
        return self._replace(tag="", digest=digest)

    def __str__(self) -> str:
        name = f"{SCHEME}{self.registry}/{self.repository}"
        if self.digest:
            return f"{name}@{self.digest}"
        return f"{name}:{self.tag}" if self.tag else name


def parse(url: str) -> ArtifactName:
    """Raises UsageError."""

    def wrong(what: str) -> UsageError:
        return UsageError(
            f"{printable(url)}: {what}",
            hint="oci://registry[:port]/name:tag or oci://registry[:port]/name@sha256:...",
        )

    if not url.startswith(SCHEME):
        raise wrong("this is not a name in a registry")
    address, slash, rest = url[len(SCHEME) :].partition("/")
    if "@" in address:
        raise wrong("a name has no user and password; log in with `docker login`")
    found = _ADDRESS.fullmatch(address)
    if not slash or found is None or int(found[2] or 1) > 65535:
        raise wrong("the part before the first slash is not the address of a registry")
    name, at, digest = rest.partition("@")
    tag = ""
    if not at:
        name, colon, tag = rest.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise wrong("the part after the colon is not a tag")
    elif not _DIGEST.fullmatch(digest):
        raise wrong(
            "the part after @ is not a digest (sha256: and 64 hex digits, without a tag before)"
        )
    if len(address) + len(name) >= _MAX_NAME or not all(map(_COMPONENT.fullmatch, name.split("/"))):
        raise wrong("a name has lower-case letters and digits, and . _ - / between them")
    return ArtifactName(address, name, tag, digest)


def is_digest(value: object) -> bool:
    """Of SHA-256, as registries write it."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_tag(value: object) -> bool:
    """Whether a registry may say that it has such a tag."""
    return isinstance(value, str) and _TAG.fullmatch(value) is not None


def is_host(name: str) -> bool:
    """Whether it can be looked up, as a URL's `hostname` has it: for other labels Python raises UnicodeError.

    Wider than names of registries: redirects lead to buckets, whose names may have underscores.
    """
    return _LOOKED_UP.fullmatch(name) is not None


def is_loopback(host: str) -> bool:
    """Whether what is sent there never leaves the machine."""
    return _LOOPBACK.fullmatch(host) is not None

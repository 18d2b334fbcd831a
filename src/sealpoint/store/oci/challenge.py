"""The header WWW-Authenticate (RFC 9110, section 11.6.1): how a server wants to be asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

_MAX_LENGTH: Final = 8192
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - the grammar's word
_SCHEME: Final = re.compile(rf"({_TOKEN})(?:[ \t]+|(?=,)|$)")
_PARAMETER: Final = re.compile(
    rf"({_TOKEN})[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|({_TOKEN}))[ \t]*(?=,|$)"
)
_BLANK: Final = re.compile(r"[ \t]*(?:,[ \t]*)*")


class Challenge(NamedTuple):
    """scheme, and the names of the parameters: in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse(header: str) -> list[Challenge]:
    """All challenges of one header, in its order.  What follows something malformed is left out.  Never raises."""
    text = header[:_MAX_LENGTH]
    found: list[Challenge] = []
    at = _skip(text, 0)
    while at < len(text):
        parameter = _PARAMETER.match(text, at)
        if parameter is not None and found:
            name, quoted, plain = parameter[1].lower(), parameter[2], parameter[3]
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
            parameters = found[-1].parameters
            if isinstance(parameters, dict):
                parameters.setdefault(name, value)
            at = _skip(text, parameter.end())
            continue
        scheme = _SCHEME.match(text, at)
        if scheme is None:
            break
        found.append(Challenge(scheme[1].lower(), {}))
        at = _skip(text, scheme.end())
    return found


def choose(headers: Iterable[str]) -> Challenge | None:
    """The one to answer: a token before a password; None if there is none that can be."""
    known = [each for header in headers for each in parse(header)]
    for scheme in ("bearer", "basic"):
        for each in known:
            if each.scheme == scheme and (scheme == "basic" or each.parameters.get("realm")):
                return each
    return None


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at

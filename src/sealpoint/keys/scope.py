"""For which checkpoints a signer is believed: the tables that `trust` of the configuration may hold.

A table names keys or authorities and limits them.  All of its limits have to hold; what it does not limit is free.
The limits are about the checkpoint as its origin statement describes it, and hold for every statement of the file:
contents, header (`rekey`) and prune record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from sealpoint.format.constants import CLOCK_TOLERANCE
from sealpoint.format.statement import KINDS

if TYPE_CHECKING:
    from sealpoint.keys.certificate import Certificate

_AGE: Final = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_NAME: Final = re.compile(r"(dns|uri|email|ip):.+", re.DOTALL)
_LISTS: Final = ("key", "authority", "workloads", "kinds", "subjects", "names")


class Claim(NamedTuple):
    """What a file says of its checkpoint, under its signature.  captured: seconds since 1970."""

    workload: str
    kind: str
    captured: int


class Scope(NamedTuple):
    """Limits; an empty one limits nothing.

    workloads: names, or their beginnings followed by `*`; kinds: of `KINDS`; subjects: of certificates, RFC 4514, in
    the same way; names: their alternative names, for instance `dns:node1.example.org`, in the same way; max_age:
    seconds since the capture, which may not lie ahead.
    """

    workloads: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    max_age: int = 0

    def problem_of(self, certificate: Certificate | None) -> str | None:
        """Why these limits exclude who signs; None if they do not.  Without a certificate nothing names anybody."""
        if self.subjects:
            subject = certificate.full_subject if certificate is not None else ""
            if not certificate or not _matches(subject, self.subjects):
                return f"the certificate's subject is none of {_listed(self.subjects)}"
        if self.names:
            names = certificate.names if certificate is not None else ()
            if not any(_matches(name, self.names) for name in names):
                return f"the certificate's alternative names are none of {_listed(self.names)}"
        return None

    def problem_with(self, claim: Claim, now: int) -> str | None:
        """Why these limits exclude a checkpoint; None if they do not."""
        if self.workloads and not _matches(claim.workload, self.workloads):
            what = f"workload {claim.workload!r}" if claim.workload else "without a workload"
            return f"trusted for workloads {_listed(self.workloads)}, and this is {what}"
        if self.kinds and claim.kind not in self.kinds:
            return f"trusted for kinds {_listed(self.kinds)}, and this is kind {claim.kind!r}"
        if self.max_age and claim.captured > now + CLOCK_TOLERANCE:
            # Whoever signs could choose a time that stays young for ever.
            return f"trusted for {self.max_age} s after the capture, which is {claim.captured - now} s ahead of now"
        if self.max_age and claim.captured + self.max_age < now:
            return f"trusted for {self.max_age} s after the capture, which was {now - claim.captured} s ago"
        return None

    @property
    def text(self) -> str:
        """For people; empty where nothing is limited."""
        parts = [
            f"{name} {_listed(values)}"
            for name, values in (
                ("workloads", self.workloads),
                ("kinds", self.kinds),
                ("subjects", self.subjects),
                ("names", self.names),
            )
            if values
        ]
        return ", ".join([*parts, *([f"at most {self.max_age} s old"] if self.max_age else [])])


class TrustTable(NamedTuple):
    """One table of `trust`: paths and literals as in its strings, or bundles of authorities, and their limits."""

    keys: tuple[str, ...]
    authorities: tuple[str, ...]
    scope: Scope

    def to_settings(self) -> dict[str, object]:
        """As `parse_table` reads it."""
        scope = self.scope._asdict()
        age = scope.pop("max_age")
        lists = {"key": self.keys, "authority": self.authorities, **scope}
        settings: dict[str, object] = {name: list(v) for name, v in lists.items() if v}
        return settings | ({"max_age": f"{age}s"} if age else {})


def parse_table(values: Mapping[str, object], resolve: Callable[[str], str]) -> TrustTable:
    """From TOML.  resolve: makes paths absolute.  Raises ValueError with what is wrong, for a sentence."""
    known = (*_LISTS, "max_age")
    for name in values:
        if name not in known:
            raise ValueError(f"no such setting in a table: {name} (known: {', '.join(known)})")
    lists = {name: _strings(name, values[name]) if name in values else () for name in _LISTS}
    if bool(lists["key"]) == bool(lists["authority"]):
        raise ValueError("a table needs either key or authority")
    for name in _LISTS:
        if name in values and not lists[name]:
            raise ValueError(f"{name} is empty: leave it out if it should not limit anything")
    for name in ("workloads", "subjects", "names"):
        for pattern in lists[name]:
            if "*" in pattern[:-1]:
                raise ValueError(f"{name}: {pattern!r}: `*` can only stand at the end")
    if lists["key"] and (lists["subjects"] or lists["names"]):
        raise ValueError("subjects and names limit an authority; a key is one signer already")
    if unknown := [k for k in lists["kinds"] if k not in KINDS]:
        raise ValueError(f"kinds: {unknown[0]!r} is none of {', '.join(KINDS)}")
    if wrong := [n for n in lists["names"] if not _NAME.fullmatch(n)]:
        raise ValueError(f"names: {wrong[0]!r} does not begin with dns:, uri:, email: or ip:")
    scope = Scope(
        lists["workloads"],
        lists["kinds"],
        lists["subjects"],
        lists["names"],
        _age(values["max_age"]) if "max_age" in values else 0,
    )
    return TrustTable(
        tuple(resolve(v) for v in lists["key"]),
        tuple(resolve(v) for v in lists["authority"]),
        scope,
    )


def _strings(name: str, value: object) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(v, str) and v for v in items):
        raise ValueError(f"{name} must be a string or a list of strings, none of them empty")
    return tuple(items)


def _age(value: object) -> int:
    match = _AGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            'max_age must be a number and its unit (s, m, h, d, w), for instance "30d"'
        )
    return int(match[1]) * _SECONDS[match[2]]


def _matches(value: str, patterns: tuple[str, ...]) -> bool:
    return any(value.startswith(p[:-1]) if p.endswith("*") else value == p for p in patterns)


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(values)

"""What a secret looks like in memory: one table, in two steps.

`triggers` are what a scanner looks for in every byte: literals and short expressions that Hyperscan and Python's `re`
both understand, chosen to be rare.  Where one hits, `find` looks closely at the bytes around it and says whether a
secret is there, where it begins and ends.  A detector is wrong sometimes: the report says "looks like".

Formats: RFC 7468 (PEM), RFC 5958 and RFC 8017 (PKCS#8, PKCS#1), RFC 5915 (SEC1), OpenSSH PROTOCOL.key, RFC 7519 (JWT);
tokens as their issuers document them.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from sealpoint.names import text

GUESS: Final = "named-secret"
LONGEST: Final = 16 * 1024  # bytes of a secret, RSA keys of 16384 bits in PEM included
NEAR: Final = 160  # bytes before the end of a trigger in which the secret begins


@dataclass(frozen=True, slots=True)
class Hit:
    """A secret in a buffer at [start, end); name: what stands beside it and says what it is (no secret itself); shown:
    how many bytes at its beginning are the same in all secrets of its kind.
    """

    start: int
    end: int
    kind: str
    name: str = ""
    shown: int = 0


@dataclass(frozen=True, slots=True)
class Detector:
    """kind: as reports and policies name it; what: for people; grave: whoever has it can act in another's name."""

    kind: str
    what: str
    triggers: tuple[bytes, ...]
    find: Callable[[memoryview, int], Iterator[Hit]]
    grave: bool = True


def _literal(data: bytes) -> bytes:
    return b"".join(b"\\x%02x" % byte for byte in data)


def _around(
    pattern: bytes, kind: str, shown: int = 0
) -> Callable[[memoryview, int], Iterator[Hit]]:
    """The matches of an expression that hold the trigger's end.  Groups: `secret`, else the whole; `name`."""
    compiled = re.compile(pattern, re.DOTALL)

    def find(view: memoryview, at: int) -> Iterator[Hit]:
        for match in compiled.finditer(view, max(0, at - NEAR), min(len(view), at + LONGEST)):
            if match.start() >= at:
                return
            if match.end() >= at:
                group = "secret" if "secret" in compiled.groupindex else 0
                name = text(match["name"]) if "name" in compiled.groupindex else ""
                yield Hit(match.start(group), match.end(group), kind, name, shown)
                return

    return find


# --- keys ---

_PEM = re.compile(
    rb"-----BEGIN ((?:[A-Z0-9]{1,10} ){0,2}PRIVATE KEY(?: BLOCK)?|SEALPOINT(?: ENCRYPTED)? IDENTITY)-----"
    rb"(?:\s|\\[nr]|[A-Za-z0-9+/=:,. -](?!----)){40,15000}"
)
_SSH_BINARY = b"openssh-key-v1\0"


def _find_pem(view: memoryview, at: int) -> Iterator[Hit]:
    # The trigger ends within the label.
    start = max(0, at - 48)
    for match in _PEM.finditer(view, start, min(len(view), start + LONGEST)):
        if match.start() > at:
            return
        label = match[1].decode()
        kind = "private-key"
        if "OPENSSH" in label:
            kind = "ssh-key"
        elif "ENCRYPTED" in label or _encrypted(match[0]):
            kind = "encrypted-key"
        yield Hit(match.start(), match.end(), kind, label, 0)


def _encrypted(text: bytes) -> bool:
    return b"Proc-Type: 4,ENCRYPTED" in text


def _find_ssh_binary(view: memoryview, at: int) -> Iterator[Hit]:
    """After the magic word: strings cipher, kdf, its options; u32 1; strings public and private keys."""
    start = at - len(_SSH_BINARY)
    parts: list[bytes] = []
    for number in range(5):
        at += 4 if number == 3 else 0  # how many keys there are; ssh-keygen writes one
        size = int.from_bytes(view[at : at + 4], "big")
        if not size <= LONGEST or at + 4 + size > len(view):
            return
        parts.append(bytes(view[at + 4 : at + 4 + size]))
        at += 4 + size
    if start >= 0 and re.fullmatch(rb"[a-z0-9@.-]{1,40}", parts[0]) and parts[4]:
        kind = "ssh-key" if parts[0] == b"none" else "encrypted-key"
        yield Hit(start, at, kind, "openssh-key-v1")


def _der_length(data: bytes, at: int) -> tuple[int, int] | None:
    """(length, offset of the contents) of the DER element whose length octets begin at `at`."""
    if at >= len(data):
        return None
    first = data[at]
    if first < 0x80:
        return first, at + 1
    count = first & 0x7F
    if not 1 <= count <= 3 or at + 1 + count > len(data):
        return None
    length = int.from_bytes(data[at + 1 : at + 1 + count], "big")
    shortest = length >= 0x80 and length >> 8 * (count - 1)
    return (length, at + 1 + count) if shortest else None


def _der(
    back: int, check: Callable[[bytes, int], bool], name: str
) -> Callable[[memoryview, int], Iterator[Hit]]:
    """A SEQUENCE that begins up to four bytes before the trigger, whose first byte is `back` before its end."""

    def find(view: memoryview, at: int) -> Iterator[Hit]:
        inner = at - back  # where the contents of the SEQUENCE begin
        for header in (4, 3, 2):
            start = inner - header
            if start < 0 or view[start] != 0x30:
                continue
            data = bytes(view[start : start + LONGEST])
            found = _der_length(data, 1)
            if found is None or found[1] != header or found[0] < 32:
                continue
            end = header + found[0]
            if end <= len(data) and check(data[:end], header):
                yield Hit(start, start + end, "private-key", name)
                return

    return find


def _is_pkcs8(data: bytes, at: int) -> bool:
    """Version, AlgorithmIdentifier, then an OCTET STRING that fits."""
    algorithm = at + 3
    found = _der_length(data, algorithm + 1)
    if found is None:
        return False
    octets = found[1] + found[0]
    if octets >= len(data) or data[octets] != 0x04:
        return False
    found = _der_length(data, octets + 1)
    return found is not None and found[1] + found[0] <= len(data)


def _is_pkcs1(data: bytes, at: int) -> bool:
    """Version 0, then nine INTEGERs; the first three are enough: modulus, public exponent, private exponent."""
    at += 3
    for _ in range(3):
        if at >= len(data) or data[at] != 0x02:
            return False
        found = _der_length(data, at + 1)
        if found is None:
            return False
        at = found[1] + found[0]
    return at < len(data)


def _is_sec1(data: bytes, at: int) -> bool:
    """Version 1, an OCTET STRING of the scalar, then [0] the curve or [1] the public key."""
    found = _der_length(data, at + 4)
    return found is not None and found[0] in (32, 48, 66) and _tag(data, found[1] + found[0])


def _tag(data: bytes, at: int) -> bool:
    return at < len(data) and data[at] in (0xA0, 0xA1)


# --- tokens ---

_JWT = re.compile(rb"eyJ[A-Za-z0-9_-]{8,4000}\.eyJ[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{16,2000}")


def _find_jwt(view: memoryview, at: int) -> Iterator[Hit]:
    for match in _JWT.finditer(view, max(0, at - 16), min(len(view), at + LONGEST)):
        if match.start() >= at:
            return
        header = match[0].partition(b".")[0]
        try:
            decoded = json.loads(base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4)))
        except (ValueError, binascii.Error, RecursionError):
            return
        if isinstance(decoded, dict) and isinstance(decoded.get("alg"), str):
            yield Hit(match.start(), match.end(), "jwt", decoded["alg"][:16])
        return


_NAMED = re.compile(
    rb"(?P<name>[A-Za-z0-9_.-]{0,24}(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key)[\w-]{0,16})"
    rb"[\"']?\s{0,2}[:=]>?\s{0,2}[\"']?(?P<secret>[^\s\"'\x00,;&<>(){}\[\]]{8,256})",
    re.IGNORECASE,
)
_NAME_OF_SECRET = (
    rb"(?i)(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key)[\w-]{0,16}"
    rb"[\"']?\s{0,2}[:=]>?\s{0,2}[\"']?[^\s\"'\x00,;&<>(){}\[\]]{8}"
)
_MIN_ENTROPY: Final = (
    2.8  # bits per character; English words have about 2.5 at these lengths, random text more
)


def entropy(data: bytes) -> float:
    """Shannon's, in bits per byte, of the bytes themselves."""
    total = len(data)
    return -sum(n / total * math.log2(n / total) for n in map(data.count, set(data)))


def looks_secret(value: bytes) -> bool:
    """Whether a value beside a telling name is a secret rather than code, a path, a placeholder or a word."""
    if not value.isascii() or not value.decode().isprintable():
        return False
    if value[:1] in b"/$%.*" or b"://" in value:
        return False
    if re.fullmatch(rb"[A-Za-z_][\w.:]*", value) and not re.search(rb"\d", value):
        return False  # a name: of a variable, an attribute, a type
    if re.fullmatch(rb"[\d.:xX-]+", value):
        return False  # a number, a date, an address
    return entropy(value) >= _MIN_ENTROPY


def _find_named(view: memoryview, at: int) -> Iterator[Hit]:
    for match in _NAMED.finditer(view, max(0, at - NEAR), min(len(view), at + 512)):
        if match.start() >= at:
            return
        if match.end() >= at:
            if looks_secret(match["secret"]):
                name = text(match["name"])
                yield Hit(match.start("secret"), match.end("secret"), GUESS, name)
            return


_RSA = bytes.fromhex("300d06092a864886f70d010101")
_EC = (bytes.fromhex("301306072a8648ce3d0201"), bytes.fromhex("301006072a8648ce3d0201"))
_EDWARDS = tuple(bytes.fromhex(f"300506032b65{n:02x}") for n in (0x6E, 0x6F, 0x70, 0x71))
_VERSION_0 = b"\x02\x01\x00"
_MODULUS = tuple(
    b"\x02\x01\x00\x02\x82" + n.to_bytes(2, "big") + b"\0" for n in (129, 257, 385, 513)
)

DETECTORS: Final = (
    Detector(
        "private-key",
        "a private key in PEM",
        (rb"-----BEGIN [A-Z ]{0,20}PRIVATE KEY", rb"-----BEGIN SEALPOINT (?:ENCRYPTED )?IDENTITY"),
        _find_pem,
    ),
    Detector("ssh-key", "an OpenSSH private key", (_literal(_SSH_BINARY),), _find_ssh_binary),
    *(
        Detector(
            "private-key",
            "a private key in DER",
            (_literal(_VERSION_0 + a),),
            _der(3 + len(a), _is_pkcs8, "PKCS#8"),
        )
        for a in (_RSA, *_EC, *_EDWARDS)
    ),
    *(
        Detector(
            "private-key",
            "an RSA private key in DER",
            (_literal(m),),
            _der(len(m), _is_pkcs1, "PKCS#1"),
        )
        for m in _MODULUS
    ),
    *(
        Detector(
            "private-key",
            "an EC private key in DER",
            (_literal(b"\x02\x01\x01\x04" + n),),
            _der(5, _is_sec1, "SEC1"),
        )
        for n in (b"\x20", b"\x30", b"\x42")
    ),
    Detector("jwt", "a JSON web token", (rb"eyJ[\w-]{8}",), _find_jwt),
    Detector(
        "aws-key",
        "the id of an AWS access key",
        (rb"(?:AKIA|ASIA)[A-Z2-7]{16}",),
        _around(rb"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])", "aws-key", 4),
    ),
    Detector(
        "google-key",
        "a Google API key",
        (rb"AIza[\w-]{8}",),
        _around(rb"(?<![\w-])AIza[\w-]{35}(?![\w-])", "google-key", 4),
    ),
    Detector(
        "azure-key",
        "the key of an Azure storage account",
        (rb"AccountKey=[\w+/]{8}",),
        _around(rb"AccountKey=(?P<secret>[\w+/]{86}==)", "azure-key"),
    ),
    Detector(
        "github-token",
        "a GitHub token",
        (rb"gh[pousr]_[A-Za-z0-9]{8}", rb"github_pat_\w{8}"),
        _around(
            rb"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_\w{40,251})", "github-token", 4
        ),
    ),
    Detector(
        "gitlab-token",
        "a GitLab token",
        (rb"glpat-[\w-]{8}",),
        _around(rb"(?<!\w)glpat-[\w.-]{20,64}", "gitlab-token", 6),
    ),
    Detector(
        "slack-token",
        "a Slack token",
        (rb"xox[abprs]-[\w-]{8}",),
        _around(rb"(?<!\w)xox[abprs]-(?:\d{6,}-)?[\w-]{10,250}", "slack-token", 5),
    ),
    Detector(
        "stripe-key",
        "a live key of Stripe",
        (rb"[sr]k_live_\w{8}",),
        _around(rb"(?<!\w)[sr]k_live_[A-Za-z0-9]{16,247}", "stripe-key", 8),
    ),
    Detector(
        "model-key",
        "a key of a model provider",
        (rb"sk-(?:ant|proj|svcacct)-[\w-]{8}", rb"hf_[A-Za-z]{8}"),
        _around(
            rb"(?<![\w-])(?:sk-(?:ant|proj|svcacct)-[\w-]{24,250}|hf_[A-Za-z]{34}(?!\w))",
            "model-key",
            3,
        ),
    ),
    Detector(
        "package-token",
        "a token of a package registry",
        (rb"npm_[A-Za-z0-9]{8}", rb"pypi-AgE[\w-]{8}"),
        _around(
            rb"(?<!\w)(?:npm_[A-Za-z0-9]{36}(?!\w)|pypi-AgE[\w-]{50,1000})", "package-token", 4
        ),
    ),
    Detector(
        "vault-token",
        "a HashiCorp Vault token",
        (rb"hv[sbr]\.[\w-]{8}",),
        _around(rb"(?<![\w.])hv[sbr]\.[\w-]{24,300}", "vault-token", 4),
    ),
    Detector(
        "mail-key",
        "a key of a mail provider",
        (rb"SG\.[\w-]{8}",),
        _around(rb"(?<![\w.])SG\.[\w-]{16,32}\.[\w-]{16,64}", "mail-key", 3),
    ),
    Detector(
        "url-password",
        "a password in a URL",
        (rb"://[^\s:/@\"'\x00]{1,64}:[^\s:/@\"'\x00]{3,64}@",),
        _around(
            rb"(?P<name>[a-z][a-z0-9+.-]{1,20}://[^\s:/@\"'\x00]{1,64}):(?P<secret>[^\s:/@\"'\x00$%{}<>*]{3,64})@",
            "url-password",
        ),
    ),
    Detector(
        GUESS,
        "a value beside a telling name",
        (_NAME_OF_SECRET,),
        _find_named,
        grave=False,
    ),
)

KINDS: Final = {
    **{d.kind: d.what for d in reversed(DETECTORS)},
    "private-key": "a private key",
    "encrypted-key": "a private key under a passphrase",
    "environment": "a secret in an environment variable",
}

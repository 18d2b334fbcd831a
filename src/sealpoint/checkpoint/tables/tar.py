"""Reading and writing tar archives: ustar, pax and GNU long names; front to back, bounded memory, strict.

Python's tarfile ends quietly at a damaged header, reads headers of any size and knows times only as floats, so what was
sealed could be less than what was given.  Here every byte of an archive is understood or refused.  Out of scope:
compression, sparse members, several volumes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from sealpoint.errors import FileError
from sealpoint.format.constants import MAX_U64
from sealpoint.names import text

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)  # the end mark
_MAX_EXTENDED: Final = 1024 * 1024  # of one pax header or long name: they are read in one piece
_MAX_EXTENDED_IN_A_ROW: Final = 16
_NANO: Final = 1_000_000_000
_KINDS: Final = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "character",
    b"4": "block",
    b"5": "directory",
    b"6": "fifo",
}
_FLAGS: Final = {kind: flag for flag, kind in _KINDS.items() if flag not in b"\x007"}
_DEVICES: Final = ("character", "block")
_XATTR: Final = "SCHILY.xattr."
_TIME: Final = re.compile(r"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
_NUMBER: Final = re.compile(r"[0-9]{1,20}")
_MEANINGLESS: Final = {
    "atime",
    "ctime",
    "comment",
    "charset",
    "hdrcharset",
    "LIBARCHIVE.creationtime",
}


class TarSource(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none only at the end."""


@dataclass(slots=True)
class Member:
    """One member.  kind as in docs/spec.md, Attributes; size in bytes, 0 for all but files; mtime in ns since 1970."""

    name: str
    kind: str = "file"
    size: int = 0
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    user: str = ""
    group: str = ""
    link: str = ""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)


class TarReader:
    """Iterate over the members; `readinto` reads the contents of the latest one.

    ignored: keys of pax headers that mean something and that this reader does not keep.
    started: whether there was a header at all, so that this can be an archive.  Raises FileError.
    """

    def __init__(self, source: TarSource) -> None:
        self._source = source
        self._rest = 0  # bytes of the current member still to come
        self._padding = 0
        self._global: dict[str, bytes] = {}
        self.started = False
        self.ignored: set[str] = set()

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def readinto(self, out: memoryview) -> int:
        """Read into the beginning of `out`; returns the number of bytes, 0 at the end of the member."""
        if not self._rest or not out:
            return 0
        data = self._source.read(min(len(out), self._rest))
        if not data:
            raise FileError("the archive is cut short in the middle of a member")
        out[: len(data)] = data
        self._rest -= len(data)
        return len(data)

    def _skip(self) -> None:
        """The rest of the current member.  A source that has `skip(size) -> int` need not read it."""
        skip = getattr(self._source, "skip", None)
        if skip is not None:
            self._rest -= skip(self._rest)
        unread = memoryview(bytearray(64 * 1024))
        while self.readinto(unread):
            pass

    def _next(self) -> Member | None:
        self._skip()
        self._take(self._padding)
        self._padding = 0
        extended: dict[str, bytes] = {}
        for _ in range(_MAX_EXTENDED_IN_A_ROW):
            header = self._header()
            if header is None:
                if extended:
                    raise FileError("the archive is cut short before a member")
                self._end()
                return None
            flag = header[156:157]
            if flag == b"g":
                self._global |= self._pax(header)
            elif flag in b"xX":
                extended |= self._pax(header)
            elif flag in b"LK":
                text = self._extended(header).rstrip(b"\0")
                extended.setdefault("path" if flag == b"L" else "linkpath", text)
            else:
                return self._member(header, {**self._global, **extended})
        raise FileError("the archive has too many extended headers in a row")

    def _header(self) -> bytes | None:
        header = self._take(BLOCK)
        if header == bytes(BLOCK):
            self.started = True
            return None
        stored = _octal(header[148:156])
        plain = header[:148] + b" " * 8 + header[156:]
        # Some old programs added the bytes up as signed ones.
        sums = (sum(plain), sum(plain) - 256 * sum(byte > 127 for byte in plain))
        if stored not in sums:
            raise FileError("the archive has a damaged header")
        self.started = True
        return header

    def _end(self) -> None:
        if self._take(BLOCK) != bytes(BLOCK):
            raise FileError("the archive has a damaged end mark")
        while data := self._source.read(1024 * 1024):
            if data.count(0) != len(data):
                raise FileError("something follows the end of the archive and would be lost")

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._source.read(size - len(data))
            if not piece:
                raise FileError("the archive is cut short: its end mark is missing")
            data += piece
        return data

    def _extended(self, header: bytes) -> bytes:
        size = _number(header[124:136], "size")
        if size > _MAX_EXTENDED:
            raise FileError("the archive has an extended header of absurd size")
        data = self._take(size)
        self._take(-size % BLOCK)
        return data

    def _pax(self, header: bytes) -> dict[str, bytes]:
        data, at = self._extended(header), 0
        values: dict[str, bytes] = {}
        while at < len(data):
            if data.count(0, at) == len(data) - at:
                break  # some programs pad with zeros
            space = data.find(b" ", at, at + 9)
            digits = data[at:space] if space > 0 else b""
            end = at + int(digits) if digits.isdigit() else 0
            equals = data.find(b"=", space, end)
            if not at < end <= len(data) or equals < 0 or data[end - 1] != ord("\n"):
                raise FileError("the archive has a malformed pax header")
            key = _text(data[space + 1 : equals], "a pax header")
            if key.startswith("GNU.sparse."):
                raise FileError(
                    "the archive has sparse members, which cannot be sealed", hint=_SPARSE
                )
            values[key] = data[equals + 1 : end - 1]
            at = end
        return values

    def _member(self, header: bytes, pax: dict[str, bytes]) -> Member:
        flag, posix = header[156:157], header[257:263] == b"ustar\0"
        name = _cut(header[:100])
        if posix and header[345]:
            name = _cut(header[345:500]) + b"/" + name
        name = pax.get("path") or name
        shown = name[:80].decode(errors="backslashreplace")
        if flag == b"S":
            raise FileError(
                f"archive member {shown!r} is sparse and cannot be sealed", hint=_SPARSE
            )
        if flag not in _KINDS:
            raise FileError(f"archive member {shown!r} is of a kind that cannot be sealed")
        member = Member(_text(name, "a name in the archive"), _KINDS[flag])
        if member.kind == "file" and name.endswith(b"/"):
            member.kind = "directory"  # as the oldest tars write it
        what = f"archive member {shown!r}"
        size = _pax_number(pax, "size", header[124:136], what)
        if member.kind == "file":
            member.size = self._rest = size
            self._padding = -size % BLOCK
        member.mode = _number(header[100:108], what) & 0o7777
        member.uid = _pax_number(pax, "uid", header[108:116], what)
        member.gid = _pax_number(pax, "gid", header[116:124], what)
        member.mtime = _mtime(pax.get("mtime"), header[136:148], what)
        if header[257:262] == b"ustar":
            member.user = _text(pax.get("uname") or _cut(header[265:297]), what)
            member.group = _text(pax.get("gname") or _cut(header[297:329]), what)
        if member.kind in ("symlink", "hardlink"):
            member.link = _text(pax.get("linkpath") or _cut(header[157:257]), what)
            if not member.link or "\0" in member.link:
                raise FileError(f"{what} is a link to nothing")
        if member.kind in _DEVICES:
            member.major = _number(header[329:337], what)
            member.minor = _number(header[337:345], what)
        self._rest_of_pax(member, pax, what)
        return member

    def _rest_of_pax(self, member: Member, pax: dict[str, bytes], what: str) -> None:
        used = {"path", "linkpath", "size", "uid", "gid", "uname", "gname", "mtime"}
        for key, value in pax.items():
            if key.startswith(_XATTR):
                member.xattrs[key[len(_XATTR) :]] = value
            elif key not in used | _MEANINGLESS:
                self.ignored.add(key)
        if "" in member.xattrs:
            raise FileError(f"{what} has an extended attribute without a name")


_SPARSE: Final = "archive the files again without --sparse"


def _cut(field_: bytes) -> bytes:
    return field_.split(b"\0", 1)[0]


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        around = data[max(0, error.start - 40) :][:80]
        raise FileError(
            f"{what} is not UTF-8, as names in a sealed file must be: '{text(around)}'",
            hint="rename it, or leave it out",
        ) from None


def _octal(data: bytes) -> int | None:
    digits = data.strip(b" \0")
    if not digits:
        return 0
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None


def _signed(data: bytes, what: str) -> int:
    if data[0] in (0x80, 0xFF):  # GNU: binary, for what octal digits cannot hold
        value = int.from_bytes(data[1:], "big", signed=False)
        return value - (1 << 8 * (len(data) - 1)) if data[0] == 0xFF else value
    octal = _octal(data)
    if octal is None:
        raise FileError(f"{what}: malformed number in the archive")
    return octal


def _number(data: bytes, what: str) -> int:
    value = _signed(data, what)
    if not 0 <= value <= MAX_U64:
        raise FileError(f"{what}: impossible number in the archive")
    return value


def _pax_number(pax: dict[str, bytes], key: str, plain: bytes, what: str) -> int:
    if not pax.get(key):
        return _number(plain, what)
    text = pax[key].decode("latin-1")
    if not _NUMBER.fullmatch(text) or int(text) > MAX_U64:
        raise FileError(f"{what}: impossible {key} in the archive")
    return int(text)


def _mtime(pax: bytes | None, plain: bytes, what: str) -> int:
    """In ns; a time before 1970 counts as 1970."""
    if not pax:
        value = _signed(plain, what) * _NANO
    else:
        match = _TIME.fullmatch(pax.decode("latin-1"))
        if match is None:
            raise FileError(f"{what}: impossible mtime in the archive")
        value = int(match[2]) * _NANO + int((match[3] or "").ljust(9, "0")[:9])
        value = -value if match[1] else value
    if value > MAX_U64:
        raise FileError(f"{what}: impossible mtime in the archive")
    return max(0, value)


def encode(member: Member) -> bytes:
    """The header blocks of a member: ustar, and before it pax for what ustar cannot hold.

    Contents, padded to whole blocks, are to follow.  Raises FileError for devices that no archive can hold.
    """
    name = member.name.encode() + (b"/" if member.kind == "directory" else b"")
    link, seconds = member.link.encode(), member.mtime // _NANO
    pax: dict[str, bytes] = {}

    def field_(key: str, value: bytes, width: int) -> bytes:
        if len(value) > width or not value.isascii():
            pax[key] = value
            return value[:width] if value.isascii() else b""
        return value

    def number(key: str, value: int, width: int) -> bytes:
        if value >= 8 ** (width - 1):
            if not key:
                raise FileError(f"archive member {member.name!r}: its device number does not fit")
            pax[key] = b"%d" % value
            value = 0
        return b"%0*o\0" % (width - 1, value)

    fields = [
        (field_("path", name, 100), 100),
        (b"%07o\0" % member.mode, 8),
        (number("uid", member.uid, 8), 8),
        (number("gid", member.gid, 8), 8),
        (number("size", member.size, 12), 12),
        (number("mtime", seconds, 12), 12),
        (b" " * 8, 8),
        (_FLAGS[member.kind], 1),
        (field_("linkpath", link, 100), 100),
        (b"ustar\x0000", 8),
        (field_("uname", member.user.encode(), 31), 32),
        (field_("gname", member.group.encode(), 31), 32),
        (number("", member.major, 8), 8),
        (number("", member.minor, 8), 8),
    ]
    if nano := member.mtime % _NANO:
        pax["mtime"] = (b"%d.%09d" % (seconds, nano)).rstrip(b"0")
    pax |= {_XATTR + key: value for key, value in sorted(member.xattrs.items())}
    return (_pax_blocks(name, pax) if pax else b"") + _block(fields)


def _block(fields: list[tuple[bytes, int]]) -> bytes:
    header = b"".join(value.ljust(width, b"\0") for value, width in fields).ljust(BLOCK, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _pax_blocks(name: bytes, values: dict[str, bytes]) -> bytes:
    records = b"".join(_record(key.encode(), value) for key, value in values.items())
    short = name.rstrip(b"/").rpartition(b"/")[2][:80]
    fields = [
        (b"PaxHeaders/" + (short if short.isascii() else b"x"), 100),
        (b"%07o\0" % 0o644, 8),
        (b"%07o\0" % 0, 8),
        (b"%07o\0" % 0, 8),
        (b"%011o\0" % len(records), 12),
        (b"%011o\0" % 0, 12),
        (b" " * 8, 8),
        (b"x", 1),
        (b"", 100),
        (b"ustar\x0000", 8),
    ]
    return _block(fields) + records + bytes(-len(records) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """A pax record says its own length, digits included."""
    rest = len(key) + len(value) + 3  # space, equals sign, line feed
    size = rest + 1
    while rest + len(str(size)) != size:
        size = rest + len(str(size))
    return b"%d %s=%s\n" % (size, key, value)

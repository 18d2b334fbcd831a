"""Key files on disk: bounded reading, private files that are never overwritten, PEM blocks."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from dataclasses import dataclass

from sealpoint import ownership
from sealpoint.errors import IdentityError, SystemEnvironmentError, UsageError

MAX_KEY_FILE = (
    64 * 1024
)  # no key is larger; stops a wrong path (a disk, a log) before it is read into memory
MAX_BUNDLE = 4 * 1024 * 1024  # a system's bundle of certificate authorities has about 220 KiB
_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----\s*")


@dataclass(frozen=True, slots=True, repr=False)
class PemBlock:
    """One block: its label, and its text from BEGIN to END."""

    label: str
    text: bytes


def read_key_file(path: str, *, limit: int = MAX_KEY_FILE) -> bytes:
    """The whole file, at most `limit` bytes; a pipe (`<(…)`) will do.

    Raises UsageError, SystemEnvironmentError (no permission), IdentityError (too large), and, where root's
    configuration names it, PolicyError: others could have written it.
    """
    shown = _shown(path)
    try:
        configured = isinstance(path, ownership.Configured)
        opener = ownership.open_owned(path, "the key file") if configured else path
        with open(opener, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            data = b""
            while size <= limit and len(data) <= limit:
                part = file.read(limit + 1 - len(data))
                if not part:
                    return data
                data += part
    except PermissionError:
        raise SystemEnvironmentError(f"{shown}: no permission to read it") from None
    except FileNotFoundError:
        raise UsageError(f"{shown}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL or half a surrogate in the path
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise UsageError(f"{shown}: cannot be read ({reason})") from None
    raise IdentityError(f"{shown}: larger than {limit // 1024} KiB, so not a key file")


def _shown(path: str) -> str:
    return path if len(path) <= 200 else path[:200] + "…"


def pem_blocks(data: bytes) -> list[PemBlock]:
    """All complete PEM blocks, whatever stands between them (OpenSSL writes attributes there).  Takes linear time."""
    found: list[PemBlock] = []
    label, lines = b"", list[bytes]()
    for line in data.splitlines(keepends=True):
        begin = _BEGIN.fullmatch(line)
        if begin:
            label, lines = begin[1], [line]
        elif lines:
            lines.append(line)
            if line.rstrip() == b"-----END " + label + b"-----":
                found.append(PemBlock(label.decode(), b"".join(lines)))
                lines = []
    return found


def write_new_file(path: str, data: bytes, *, mode: int) -> None:
    """Create `path` durably with `mode`.  Raises UsageError if anything has that name, SystemEnvironmentError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, mode)
    except FileExistsError:
        raise UsageError(
            f"{path}: exists already and is not overwritten",
            hint="choose another directory; without its old key, nobody can open what was sealed to it",
        ) from None
    except OSError as error:
        raise SystemEnvironmentError(f"{path}: cannot be created ({error.strerror})") from None
    try:
        try:
            os.fchmod(fd, mode)
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        os.unlink(path)  # ours, and incomplete
        raise SystemEnvironmentError(f"{path}: cannot be written ({error.strerror})") from None


def permissions_warning(path: str) -> str | None:
    """What to tell the owner of a private key file that others can read; None where all is well."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(info.st_mode) and info.st_mode & 0o077:
        mode = f"{info.st_mode & 0o777:04o}"
        return f"{_shown(path)} holds a private key and is open to others (mode {mode}): chmod 600"
    return None


def encode_armour(label: str, data: bytes) -> bytes:
    """PEM with 64 columns."""
    text = base64.b64encode(data)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    begin, end = f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode()
    return b"\n".join([begin, *lines, end]) + b"\n"


def decode_armour(block: PemBlock) -> bytes:
    """The bytes of a block as `encode_armour` makes it and nothing else.  Raises IdentityError."""
    body = b"".join(block.text.splitlines()[1:-1])
    try:
        data = base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error):
        data = b""
    if encode_armour(block.label, data) != block.text.rstrip() + b"\n":
        raise IdentityError("the armour of the key file is damaged")
    return data

"""Every error that sealpoint raises on purpose, sorted by who can put it right.

A message says what happened and to what; the hint says what to do about it.  The command line prints both and
ends with `exit_code`; a traceback on a terminal is a defect.  No error text carries key material or contents.

Exit codes are part of the public contract (docs/reference/commands.md has the table) and never change their meaning.
"""

from __future__ import annotations

import warnings
from typing import ClassVar


class SealpointError(Exception):
    """Base of the tree.  Raised itself only for defects of sealpoint (exit code 1)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SealpointError):
    """The caller asked for something that cannot be: no such PID, output exists, contradicting options."""

    exit_code = 2


class FileError(SealpointError):
    """A sealed file (or an archive to be sealed) is malformed, damaged, truncated or tampered with."""

    exit_code = 3


class IdentityError(SealpointError):
    """A key does not fit: wrong identity, wrong passphrase, unreadable or malformed key file."""

    exit_code = 4


class PolicyError(SealpointError):
    """The input is well-formed but policy says no: untrusted or missing signer, expired certificate."""

    exit_code = 5


class SystemEnvironmentError(SealpointError):
    """This machine cannot do it: no CRIU or one that does not run here, no permission, no space."""

    exit_code = 6


class CriuError(SealpointError):
    """CRIU ran and failed.  A dumped process runs on; nothing of a restored one is left."""

    exit_code = 7


class NoTrustedSignerGivenError(SealpointError):
    """`verify` found the file intact, but was told no signer to trust: intact is not yet authentic."""

    exit_code = 8


class OmissionWarning(UserWarning):
    """A reader left something of a checkpoint out: it is beyond a limit, or cannot be read by this version.

    The text says what.  No error, because the rest is right; the command line says it on standard error.
    """


def left_out(what: str) -> None:
    """Say that something is missing in what a reader shows."""
    warnings.warn(what, OmissionWarning, stacklevel=2)

"""What can be wrong with one archive, sorted by what the agent does about it."""

from __future__ import annotations

from sealpoint.errors import FileError, SystemEnvironmentError


class UnfinishedError(SystemEnvironmentError):
    """Somebody still writes it, or nobody has begun: it is looked at again."""


class RefusedArchiveError(FileError):
    """It cannot be sealed as it is: it stays where it is, in the clear, until it changes."""


class GoneError(SystemEnvironmentError):
    """Somebody else has removed it."""


class ChangedError(SystemEnvironmentError):
    """It was changed while it was sealed: what was sealed of it is dropped, and it is sealed again."""


class DepotError(SystemEnvironmentError):
    """The store does not take it now: everything waits, longer each time."""

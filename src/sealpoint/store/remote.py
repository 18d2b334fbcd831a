"""What every remote store can do: the one interface in front of buckets and registries.

A sealed file lies in a store in two parts.  The head is its first 64 + 2S bytes: preamble and header slots, which a
rekey replaces.  The body is the rest and never changes.  Head and body together are exactly the local file.  Knows
nothing of what is in them: whoever opens the file verifies it, as if it came from a disk that someone else can write.

Every name of a store for messages (`name`) is its URL without credentials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from sealpoint.errors import SystemEnvironmentError


class UncertainCommitError(SystemEnvironmentError):
    """Nobody knows whether a file got its name: the connection broke before the answer.  Its parts are left there."""


class Spooled(Protocol):
    """The body of a sealed file in the making, as far as it was written, to be read again as often as needed."""

    def read(self, offset: int, size: int) -> memoryview:
        """`size` bytes from `offset` of the body; all of them are there.  Raises SystemEnvironmentError."""


class Upload(Protocol):
    """A body on its way into a store.  Nothing is visible under the final name before `commit` returns.

    parallel: how many threads may be in `send` at a time; 1 where the protocol wants one part after the other.
    """

    parallel: int

    def part_size(self, number: int) -> int:
        """Bytes of part `number` (from 0), unless it is the last; the parts of one upload grow, so that 5 TiB fit."""

    def send(self, number: int, offset: int, size: int) -> None:
        """Send one part, from the spool, and see it acknowledged; tries again as often as that is sensible.

        Where the store loses an upload, sends what went before again.  Raises SystemEnvironmentError, UsageError.
        """

    def commit(self, head: bytes, properties: Mapping[str, str]) -> str:
        """The body is complete: give it its name; returns a URL that names exactly this file.

        properties: public facts by their annotation keys, for `list`; nobody believes them.  Raises UsageError where
        the name is taken and may not be replaced; UncertainCommitError; SystemEnvironmentError, and then nothing is
        visible.
        """

    def abort(self) -> None:
        """From any thread, also amid `send`: give up and leave no parts behind.  Does its best, never raises."""


class RemoteFile(Protocol):
    """A sealed file in a store.  `read_into` notices when it has changed since it was found.

    size: bytes of head and body; head_size: of the head.
    """

    name: str
    size: int
    head_size: int
    properties: Mapping[str, str]

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill `out` from `offset` of the whole file, by one request where it lies in one part.  From any thread.

        Raises FileError (changed meanwhile, shorter than it said), SystemEnvironmentError.
        """

    def close(self) -> None:
        """Let go of connections."""


class StoredFile(NamedTuple):
    """One of a store's sealed files.  size: bytes, None if unknown; properties: nobody believes them."""

    name: str
    size: int | None
    properties: Mapping[str, str]


class Incomplete(NamedTuple):
    """What a killed upload left behind.  since: RFC 3339, where the store tells."""

    name: str
    since: str | None


class Store(Protocol):
    """A place for one sealed file in a store, by its URL; for `list` also one for several.

    name: the URL, for messages.
    """

    name: str

    def check_free(self, *, force: bool, unconditional: bool) -> None:
        """Before anything is dumped: may `commit` create this name?

        unconditional: also where the store cannot create-only.  Raises UsageError, SystemEnvironmentError.
        """

    def begin(self, spooled: Spooled, *, force: bool, unconditional: bool) -> Upload:
        """Start an upload.  Raises UsageError, SystemEnvironmentError."""

    def open(self) -> RemoteFile:
        """The file of that name.  Raises UsageError (there is none), FileError, SystemEnvironmentError."""

    def replace_head(self, file: RemoteFile, head: bytes, properties: Mapping[str, str]) -> str:
        """Put another head before the same body; of two who do so at the same time one fails.  Returns as `commit`.

        file: from `open`, with the head to be replaced.  Raises SystemEnvironmentError where it is another by now.
        """

    def list(self) -> Iterator[StoredFile]:
        """The sealed files beside and below it.  Raises UsageError, SystemEnvironmentError."""

    def incomplete(self) -> Iterator[Incomplete]:
        """What killed uploads left beside and below it; empty where the store cannot tell."""

    def remove_incomplete(self, leftover: Incomplete) -> None:
        """Raises SystemEnvironmentError."""

    def remove(self) -> None:
        """Delete the file of that name with all its parts.  Raises UsageError, SystemEnvironmentError."""

    def close(self) -> None:
        """Let go of connections; more requests open others."""

"""Where the agent puts sealed files: a directory, or below a URL.  Names, what is there already, and removing it."""

from __future__ import annotations

import contextlib
import os
import re
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, Protocol

from sealpoint.agent.settings import Settings
from sealpoint.checkpoint import Opening, claimed_id
from sealpoint.errors import FileError, PolicyError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import PREAMBLE_SIZE
from sealpoint.format.preamble import Preamble
from sealpoint.format.raw import read_exactly
from sealpoint.keys import load_trust
from sealpoint.store.location import is_url, open_remote, open_store

if TYPE_CHECKING:
    from sealpoint.store.output import Target

_STRANGE: Final = re.compile(r"[^a-z0-9.-]+")
_PARTS: Final = (24, 44, 27)  # characters of namespace, pod and container in a name; a tag has 128
_SUFFIX: Final = ".sealed"


class Depot(Protocol):
    """One place for many sealed files.  Every `url` is one that `place` made."""

    name: str

    def check(self) -> None:
        """Raises UsageError, SystemEnvironmentError where nothing can be put there."""

    def place(self, name: str) -> str:
        """The URL or path of a name.  Raises UsageError."""

    def output(self, url: str) -> AbstractContextManager[Target]:
        """To write a sealed file to.  Raises UsageError (the name is taken), SystemEnvironmentError."""

    def identifier(self, url: str) -> str | None:
        """The id that what is there claims to have, in hex; None if nothing is there, or no sealed file.

        Raises SystemEnvironmentError.
        """

    def remove(self, url: str) -> None:
        """Raises SystemEnvironmentError, UsageError."""

    def free(self) -> int | None:
        """Bytes that can be written on this machine; None if that is nothing to look at."""


def file_name(container: tuple[str, str, str], name: str, when: int, identifier: str) -> str:
    """namespace_pod_container_time_id, of characters that every store takes; unique by the id.

    container: (namespace, pod, container), "" where it is not known; name: of the archive; when: seconds since 1970.
    """
    parts = [_clean(part, size) for part, size in zip(container, _PARTS, strict=True)]
    if not any(parts):
        parts = [_clean(name.partition(".")[0], sum(_PARTS)) or "archive"]
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(max(0, min(when, 1 << 37))))
    return "_".join([*filter(None, parts), stamp, identifier[:12]])


def _clean(text: str, size: int) -> str:
    return _STRANGE.sub("-", text.lower())[:size].strip(".-")


def open_depot(settings: Settings) -> Depot:
    """What `store` stands for.  Raises UsageError, SystemEnvironmentError."""
    name = settings.store
    if is_url(name):
        return RemoteDepot(settings)
    return DirectoryDepot(name)


class DirectoryDepot:
    """As `Depot`: a directory of this machine."""

    def __init__(self, path: str) -> None:
        self.name = os.path.abspath(path)

    def check(self) -> None:
        """See Depot."""
        if not os.path.isdir(self.name):
            raise UsageError(f"there is no directory {self.name}", hint="make it, for root alone")

    def place(self, name: str) -> str:
        """See Depot."""
        return os.path.join(self.name, name + _SUFFIX)

    def output(self, url: str) -> AbstractContextManager[Target]:
        """See Depot."""
        from sealpoint.store.output import OutputFile

        return OutputFile(url)

    def identifier(self, url: str) -> str | None:
        """See Depot."""
        found = claimed_id(url)
        return None if found is None else found.hex()

    def remove(self, url: str) -> None:
        """See Depot."""
        try:
            os.unlink(url)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SystemEnvironmentError(f"cannot remove {url}: {error.strerror}") from None

    def free(self) -> int | None:
        """See Depot."""
        return free_in(self.name)


class RemoteDepot:
    """As `Depot`: names below the URL of a bucket, tags of a repository of a registry."""

    def __init__(self, settings: Settings) -> None:
        """Raises UsageError."""
        self.name = settings.store
        self._settings = settings
        scheme, _, rest = self.name.partition("://")
        self._tags = scheme == "oci"
        if self._tags and ((":" in rest.rpartition("/")[2] and "/" in rest) or "@" in rest):
            raise UsageError(
                f"{self.name} names one file",
                hint="name the repository, without a tag: each archive gets a tag there",
            )
        open_store(self.place("check")).close()

    def check(self) -> None:
        """See Depot."""

    def place(self, name: str) -> str:
        """See Depot."""
        if self._tags:
            return f"{self.name}:{name}"
        return f"{self.name.rstrip('/')}/{name}{_SUFFIX}"

    def output(self, url: str) -> AbstractContextManager[Target]:
        """See Depot."""
        from sealpoint.store.uploading import StoreDestination, Writing

        settings = self._settings
        return StoreDestination(url).open(
            Writing(
                unconditional=settings.unconditional,
                spool=settings.spool,
                timeout=settings.commit_timeout,
            )
        )

    def identifier(self, url: str) -> str | None:
        """See Depot."""
        try:
            with contextlib.closing(open_remote(url)) as source:
                head = read_exactly(source, PREAMBLE_SIZE, 0)
            return Preamble.decode(head).checkpoint_id.hex()
        except (UsageError, FileError):
            return None

    def remove(self, url: str) -> None:
        """See Depot."""
        with contextlib.closing(open_store(url)) as store:
            store.remove()

    def free(self) -> int | None:
        """See Depot."""
        return None if self._settings.spool is None else free_in(self._settings.spool)


def free_in(directory: str) -> int:
    """Bytes.  Raises SystemEnvironmentError."""
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise SystemEnvironmentError(f"cannot use {directory}: {error.strerror}") from None
    return status.f_bavail * status.f_frsize


def is_ours(url: str, checkpoint: str, signers: tuple[str, ...]) -> int | None:
    """The size of the whole sealed file with that id that one of `signers` (key ids) has signed; None: there is none.

    Raises SystemEnvironmentError where the store does not answer.
    """
    opening = Opening(load_trust(signers, allow_expired=True), alone=True, unproven=True)
    try:
        with opening.open(url) as found:
            if found.reference.checkpoint_id.hex() != checkpoint:
                return None
            return found.authentic.file.size
    except (FileError, PolicyError, UsageError):
        return None

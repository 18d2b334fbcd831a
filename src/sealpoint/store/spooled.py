"""A sealed file that is durable here before a store gets it: whoever waits for it need not wait for the store.

It has a name in a directory until the store has acknowledged all of it.  What a killed process leaves there is a whole
sealed file, which `sealpoint copy` puts into the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from types import TracebackType
from typing import Final, Self

from sealpoint.errors import SealpointError, SystemEnvironmentError, UsageError
from sealpoint.names import printable
from sealpoint.store.location import open_store
from sealpoint.store.output import Buffer, OutputFile
from sealpoint.store.source import pieces
from sealpoint.store.uploading import RemoteOutput, Writing

_LONGEST: Final = 120  # characters of a URL in a name


def name_for(url: str) -> str:
    """Of the file in the spool: the same for the same URL."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", url)[:_LONGEST]
    return (
        f"{readable}.{hashlib.sha256(url.encode(errors='surrogateescape')).hexdigest()[:8]}.sealed"
    )


class SpooledOutput:
    """A Target (store.output), durable with its commit; `upload` then brings it to the store.  A context manager.

    path: where it is until then.
    """

    def __init__(self, url: str, directory: str, how: Writing) -> None:
        """Raises UsageError (a name is taken, in the store or in the directory), SystemEnvironmentError."""
        self._url, self._how = url, how
        self._store = open_store(url)
        self._store.check_free(force=how.force, unconditional=how.unconditional)
        self.path = os.path.join(os.path.abspath(directory), name_for(url))
        if os.path.lexists(self.path):
            raise UsageError(
                f"{self.path} exists: a checkpoint that was to go to {printable(url)}",
                hint=self._advice,
            )
        self._file = OutputFile(self.path)
        self.committed = False

    @property
    def _advice(self) -> str:
        return f"bring it there with `sealpoint copy`, then remove it: sealpoint copy {self.path} {self._url}"

    def write(self, *buffers: Buffer) -> None:
        """See Target."""
        self._file.write(*buffers)

    def sync(self) -> None:
        """See Target."""
        self._file.sync()

    def commit(self) -> None:
        """See Target."""
        self._file.commit()
        self.committed = True

    def cancel(self) -> None:
        """See Target."""
        self._file.cancel()

    def mark_failed(self) -> str | None:
        """See Target."""
        return self._file.mark_failed()

    def upload(self) -> None:
        """After `commit`: bring it to the store, and remove it here once the store has acknowledged it.

        Raises SystemEnvironmentError and UsageError: it is still here, and the error says where.
        """
        fd = self._file.fd
        try:
            with RemoteOutput(self._store, self._how._replace(source=fd)) as out:
                for piece in pieces(fd):
                    out.write(piece)
                out.commit()
        except SealpointError as error:
            kind = UsageError if isinstance(error, UsageError) else SystemEnvironmentError
            raise kind(
                f"{error.message}; the checkpoint is complete, and stays in {self.path}",
                hint=self._advice,
            ) from None
        with contextlib.suppress(OSError):  # it is there twice then, which harms nobody
            if os.path.samestat(os.lstat(self.path), os.fstat(fd)):
                os.unlink(self.path)

    def close(self) -> None:
        """What was not committed is gone."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

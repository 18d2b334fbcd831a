"""The one way to make a sealed file: a value that says how, and an object that commits or leaves nothing behind.

Every command, the drop-in, podman and the library come through here, so none can forget a step of the undoing.  Out of
scope: what is put into the file (`builder`), and where it goes (`store.output`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Self

from sealpoint import arguments
from sealpoint.checkpoint.opening.access import signing_by, wrap_for
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.errors import SealpointError, UsageError
from sealpoint.format.constants import Suite
from sealpoint.format.derive import RootKeys
from sealpoint.format.preamble import Preamble
from sealpoint.format.writer import SealedWriter, Signing, Wrap
from sealpoint.keys import Recipient, Signer, load_recipient, load_signer
from sealpoint.store.output import Target

Path = str | os.PathLike[str]
COMPRESSIONS: Final = ("auto", "none", "lz4", "zstd")


@dataclass(frozen=True)
class Sealing:
    """How to seal: to whom, signed by whom, with which cipher and compression.

    recipients: open all of it; metadata_recipients: the process tree and files, but no memory.  Each is a key, the path
    of one, or a literal.  signer: a key, or the path of one without a passphrase.  unsigned: no signer, and on purpose.
    suite: by its label, too.  compression: one of COMPRESSIONS.

    Raises UsageError where nobody could open the file, nobody signs it, or a value is unknown; IdentityError.
    """

    recipients: Sequence[Recipient | Path]
    signer: Signer | Path | None = None
    metadata_recipients: Sequence[Recipient | Path] = ()
    suite: Suite | str = Suite.AES_256_GCM
    compression: str = "auto"
    unsigned: bool = False
    wrap: Wrap = field(init=False, repr=False, compare=False)
    signing: Signing = field(init=False, repr=False, compare=False)
    cipher: Suite = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if arguments.flag(self.unsigned, "unsigned") != (self.signer is None):
            raise UsageError(
                "no signing key is given, or both a signing key and unsigned",
                hint="name a signer, or say unsigned",
            )
        if self.compression not in COMPRESSIONS:
            raise UsageError(
                f"unknown compression {self.compression!r}",
                hint=f"one of {', '.join(COMPRESSIONS)}",
            )
        full = _loaded(self.recipients, "recipients")
        metadata = _loaded(self.metadata_recipients, "metadata_recipients")
        signer = self.signer
        if signer is not None and not isinstance(signer, Signer):
            signer = load_signer(signer)
        values = {
            # Loaded once and kept: a key file that is replaced later changes nothing.
            "recipients": full,
            "metadata_recipients": metadata,
            "signer": signer,
            "wrap": wrap_for(full, metadata),
            "signing": signing_by(signer),
            "cipher": _suite(self.suite),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def compressed(self, compression: str) -> Sealing:
        """The same with another compression."""
        return replace(self, compression=compression)

    def into(
        self,
        out: Target,
        *,
        roots: RootKeys | None = None,
        workers: int | None = None,
        observe: Callable[[memoryview], None] | None = None,
    ) -> Sealer:
        """Begin a sealed file.  observe: see Pipeline.  Raises SealpointError."""
        return Sealer(self, out, roots=roots, workers=workers, observe=observe)


class Sealer:
    """A sealed file in the making: `finish`, then `commit`.  A context manager that undoes what is not committed.

    builder: takes the objects; preamble: of the file.
    """

    def __init__(
        self,
        sealing: Sealing,
        out: Target,
        *,
        roots: RootKeys | None = None,
        workers: int | None = None,
        observe: Callable[[memoryview], None] | None = None,
    ) -> None:
        """See `Sealing.into`."""
        self._out = out
        self._writer = SealedWriter(
            out, suite=sealing.cipher, wrap=sealing.wrap, signing=sealing.signing, roots=roots
        )
        self.builder = CheckpointBuilder(
            self._writer, compression=sealing.compression, workers=workers, observe=observe
        )
        self.preamble: Preamble = self._writer.preamble

    @property
    def checkpoint_id(self) -> bytes:
        """Of the file."""
        return self.preamble.checkpoint_id

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        return self._writer.size

    @property
    def committed(self) -> bool:
        """Whether the file is complete and where it should be."""
        return self._out.committed

    def finish(self, **how: Any) -> bytes:
        """Write all that is left; returns the origin digest.  `how`: see `CheckpointBuilder.finish`.  Once only."""
        return self.builder.finish(**how)

    def sync(self) -> None:
        """Make durable what was written, so that `commit` has little to wait for.  Raises SystemEnvironmentError."""
        self._out.sync()

    def commit(self) -> None:
        """Durable, then named.  Raises SealpointError where the file is not complete; SystemEnvironmentError."""
        if not self.builder.finished:
            raise SealpointError("a sealed file that is not complete is not committed")
        self._out.commit()

    def mark_failed(self) -> str | None:
        """After a commit that turned out wrong; returns where what was written went."""
        return self._out.mark_failed()

    def abort(self, error: BaseException) -> None:
        """Give up: whoever waits for a buffer, the disk or a reader gets `error`.  Nothing more can be added."""
        if not self._out.committed:
            self._out.cancel()  # a reader who does not read must not keep us
        self.builder.abort(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if value is not None:
            self.abort(value)
        elif not self._out.committed:
            self.abort(SealpointError("the sealed file was given up"))


def _loaded(recipients: Sequence[Recipient | Path], what: str) -> tuple[Recipient, ...]:
    return tuple(
        r if isinstance(r, Recipient) else load_recipient(r)
        for r in arguments.items(recipients, what)
    )


def _suite(suite: Suite | str) -> Suite:
    for candidate in Suite:
        if suite in (candidate, candidate.label):
            return candidate
    raise UsageError(f"unknown suite {suite!r}", hint=f"one of {', '.join(s.label for s in Suite)}")

"""Copying a sealed file as it is, byte for byte, without any key.

What is written are the very bytes that were checked: public parts are read once, and every frame is compared with the
signed index as it passes.  Out of scope: the file's parents, and stored chunks to which it refers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from sealpoint.checkpoint.opening.access import authenticate
from sealpoint.errors import FileError, PolicyError
from sealpoint.format.raw import ByteSource, Descriptor, read_exactly
from sealpoint.format.reader import AuthenticFile
from sealpoint.keys import TrustPolicy
from sealpoint.keys.load import in_file
from sealpoint.store.locks import read_settled

if TYPE_CHECKING:
    from sealpoint.checkpoint.opening.opener import OpenedCheckpoint
    from sealpoint.store.output import Buffer, Target

_STEP = 1024 * 1024


def copy(
    checkpoint: OpenedCheckpoint,
    policy: TrustPolicy,
    out: Target,
    progress: Callable[[int], None] = lambda _: None,
) -> AuthenticFile:
    """Write the newest file of `checkpoint` to `out`, and commit that.

    policy: by which it was opened.  progress: gets the bytes that were written.  Raises FileError, PolicyError (it is
    another file by now), SystemEnvironmentError.
    """
    source, before = checkpoint.top.source, checkpoint.authentic
    frames = before.file.preamble.frames_offset, before.file.trailer.index_offset
    seen: list[_Seen] = []

    def read() -> AuthenticFile:
        seen[:] = [_Seen(source, *frames)]
        return authenticate(seen[0], policy)[0]

    try:
        authentic = read_settled(source.fd if isinstance(source, Descriptor) else None, read)
        if authentic.reference != before.reference:
            raise FileError("it has become another file meanwhile", hint="try again")
        ends: tuple[list[Buffer], list[Buffer]] = [seen[0].head], [seen[0].tail]
        for piece in itertools.chain(ends[0], authentic.frames(), ends[1]):
            for start in range(0, len(piece), _STEP):
                part = memoryview(piece)[start : start + _STEP]
                out.write(part)
                progress(len(part))
    except (FileError, PolicyError) as error:
        raise in_file(error, checkpoint.label) from None
    out.commit()
    return authentic


class _Seen:
    """A ByteSource: another, of which all but the frames was read once and stays as it was then."""

    def __init__(self, source: ByteSource, start: int, end: int) -> None:
        """start, end: where the frames are."""
        self.size = source.size
        if not 0 < start <= end < self.size:
            raise FileError("the sealed file ends before it should")
        self._source, self._start, self._end = source, start, end
        self.head = read_exactly(source, start, 0)
        self.tail = read_exactly(source, self.size - end, end)

    def read_into(self, out: memoryview, offset: int) -> None:
        """See ByteSource."""
        if offset + len(out) <= self._start:
            out[:] = self.head[offset : offset + len(out)]
        elif offset >= self._end:
            at = offset - self._end
            out[:] = self.tail[at : at + len(out)]
        else:
            self._source.read_into(out, offset)

    def close(self) -> None:
        """The other stays open."""

"""A checkpoint in two sealed files: its memory pages lie in one of their own, as a page server stores them.

The pages file is complete and signed by itself.  The main file names it, by checkpoint id and origin digest, in its
metadata manifest, which its own origin statement signs.  So the two belong together, and neither can be exchanged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final

from sealpoint.checkpoint.opening.access import CheckedFile, authenticate
from sealpoint.criu.roles import SUMMARY_NAME
from sealpoint.errors import FileError
from sealpoint.format.constants import Role
from sealpoint.format.manifest import Stream
from sealpoint.format.opened import OpenFile, Scratch
from sealpoint.format.raw import ByteSource
from sealpoint.format.reader import AuthenticFile, SealedFile
from sealpoint.format.statement import ParentRef
from sealpoint.keys import Identity, TrustPolicy

LAYOUT: Final = "pages"
_CHECKPOINT, _ORIGIN = "pages", "pages-origin"
_OBJECTS: Final = re.compile(r"(?:pages|pagemap|pagemap-shmem)-\d+\.img", re.ASCII)
_SHIFT: Final = 1 << 32  # streams of the pages file are numbered from here on


def belongs(image: str) -> bool:
    """Whether CRIU sends an image to a page server rather than to the images directory."""
    return _OBJECTS.fullmatch(image) is not None


def file_name(checkpoint_id: bytes) -> str:
    """Name of a pages file, beside or far from the file that refers to it."""
    return f"pages-{checkpoint_id.hex()}.sealed"


def properties(pages: ParentRef) -> dict[str, str]:
    """What the main file says of its pages file."""
    return {_CHECKPOINT: pages.checkpoint_id.hex(), _ORIGIN: pages.origin_digest.hex()}


def reference(main: OpenFile) -> ParentRef | None:
    """Which pages file a checkpoint needs, None if it has its pages itself.  Raises FileError."""
    values = main.manifests[Role.METADATA].properties
    if _CHECKPOINT not in values and _ORIGIN not in values:
        return None
    try:
        checkpoint, origin = bytes.fromhex(values[_CHECKPOINT]), bytes.fromhex(values[_ORIGIN])
        if len(checkpoint) != 16 or len(origin) != 32:
            raise ValueError
    except (KeyError, ValueError):
        raise FileError("the checkpoint gives its pages file an impossible name") from None
    return ParentRef(checkpoint, origin)


def copied_properties(opened: OpenFile) -> dict[str, str]:
    """The properties of a file that is made of all that `opened` holds, those pages included that lie beside it."""
    properties = dict(opened.manifests[Role.METADATA].properties)
    if isinstance(opened, WithPages):
        for name in (_CHECKPOINT, _ORIGIN):
            properties.pop(name, None)
    return properties


def is_pages_file(opened: OpenFile) -> bool:
    """Whether a sealed file is the pages of another."""
    return opened.manifests[Role.METADATA].properties.get("layout") == LAYOUT


def check_stored(file: ByteSource, checkpoint_id: bytes, policy: TrustPolicy) -> None:
    """What a page server, which has no key, can see of a file that it stored.  Raises FileError, PolicyError."""
    if SealedFile(file).preamble.checkpoint_id != checkpoint_id:
        raise FileError("the file is of another checkpoint than announced")
    authenticate(file, policy)


class WithPages(OpenFile):
    """A checkpoint and its pages file as one.  Closes the pages file with `close`."""

    def __init__(self, main: OpenFile, pages: OpenFile, source: ByteSource) -> None:
        """Raises FileError."""
        self.authentic: AuthenticFile = main.authentic
        self.roots = main.roots
        self.manifests = main.manifests
        self._main, self._pages, self._source = main, pages, source
        self._shifted = {
            s.number + _SHIFT: (s._replace(number=s.number + _SHIFT), s) for s in pages.streams()
        }
        self.entries = dict(main.entries)
        for entry in pages.entries.values():
            if entry.name == SUMMARY_NAME:
                continue
            if not belongs(entry.name) or entry.name in self.entries:
                raise FileError(f"the pages file holds {entry.name!r}, which does not belong there")
            stream, _ = self._shifted[entry.stream.number + _SHIFT]
            self.entries[entry.name] = entry._replace(stream=stream)

    def streams(self) -> Iterator[Stream]:
        """Every stream of both files."""
        yield from self._main.streams()
        yield from (stream for stream, _ in self._shifted.values())

    def read_chunk_into(
        self, stream: Stream, counter: int, out: memoryview, scratch: Scratch
    ) -> int:
        """As that of the file in which the stream lies.  Raises FileError."""
        if stream.number in self._shifted:
            return self._pages.read_chunk_into(
                self._shifted[stream.number][1], counter, out, scratch
            )
        return self._main.read_chunk_into(stream, counter, out, scratch)

    def stored_size(self, stream: Stream) -> int:
        """See OpenFile."""
        if stream.number in self._shifted:
            return self._pages.stored_size(self._shifted[stream.number][1])
        return self._main.stored_size(stream)

    def is_freed(self, stream: Stream, counter: int) -> bool:
        """See OpenFile."""
        if stream.number in self._shifted:
            return self._pages.is_freed(self._shifted[stream.number][1], counter)
        return self._main.is_freed(stream, counter)

    def close(self) -> None:
        """Let go of the pages file."""
        self._source.close()


def lacks_pages(opened: OpenFile) -> bool:
    """Whether a checkpoint needs a pages file and has not been joined with it."""
    return not isinstance(opened, WithPages) and reference(opened) is not None


def is_missing(main: OpenFile, directory: str) -> bool:
    """Whether a checkpoint has its pages in a file that is not in `directory`.  Raises FileError."""
    wanted = reference(main)
    return wanted is not None and not os.path.lexists(
        os.path.join(directory, file_name(wanted.checkpoint_id))
    )


def missing(pages: ParentRef) -> FileError:
    """To be raised where the pages of a checkpoint are needed and their file is not there."""
    return FileError(
        f"the memory of this checkpoint is missing: it lies in {file_name(pages.checkpoint_id)}",
        hint="the page server of the dump has it: put both files into one directory",
    )


def join(
    main: OpenFile,
    directory: str,
    policy: TrustPolicy,
    identities: Sequence[Identity],
    stores: Sequence[str] = (),
) -> OpenFile:
    """`main` itself, or together with the pages file that it names (`WithPages`), which must lie in `directory`.

    Raises FileError, PolicyError, IdentityError: the pages file is missing, or is not the one that was signed.
    """
    wanted = reference(main)
    if wanted is None or not main.has_memory:
        return main
    path = os.path.join(directory, file_name(wanted.checkpoint_id))
    if not os.path.lexists(path):
        raise missing(wanted)
    checked = CheckedFile.open(path, policy, stores=stores)
    try:
        if checked.authentic.reference != wanted:
            raise FileError(f"{path} is not the pages file of this checkpoint")
        pages = checked.unlock(identities)
        if not is_pages_file(pages) or not pages.has_memory:
            raise FileError(f"{path} holds no memory pages")
        return WithPages(main, pages, checked.source)
    except BaseException:
        checked.close()
        raise

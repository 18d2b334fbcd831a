"""Sealed files that are objects of another: what the drop-in sealed, inside an engine's archive that was sealed later.

The file inside keeps its keys and its signatures.  The outer file names it, by checkpoint id and origin digest, in its
metadata manifest, which its own origin statement signs.  So the two belong together, and the policy is asked for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from sealpoint.checkpoint.opening.access import authenticate, unwrap_with
from sealpoint.criu.roles import SUMMARY_NAME, role_of
from sealpoint.errors import FileError, IdentityError, PolicyError
from sealpoint.format.constants import Role
from sealpoint.format.manifest import Entry, Stream
from sealpoint.format.opened import OpenFile, Scratch
from sealpoint.format.raw import ByteSource
from sealpoint.format.reader import AuthenticFile
from sealpoint.format.statement import ParentRef
from sealpoint.keys import Identity, TrustPolicy, VerifiedSignature
from sealpoint.keys.load import in_file

NAME: Final = "inventory.img"  # in whose place the drop-in leaves its sealed file
_PROPERTY: Final = "part:"
_SHIFT: Final = 1 << 33  # streams of part n are numbered from n times this on
_TRUST_NOBODY: Final = TrustPolicy(names_only=True)


class SealedPart(NamedTuple):
    """An authentic sealed file that is an object of another.  name: of that object."""

    name: str
    authentic: AuthenticFile
    signers: tuple[VerifiedSignature, ...]


def is_place(name: str) -> bool:
    """Whether a sealed file under that name counts as a part."""
    return name.endswith(f"/{NAME}")


def properties(found: Mapping[str, ParentRef]) -> dict[str, str]:
    """What the outer file says of its parts, by the names of their objects."""
    return {
        _PROPERTY + name: f"{part.checkpoint_id.hex()}:{part.origin_digest.hex()}"
        for name, part in found.items()
    }


def references(values: Mapping[str, str]) -> dict[str, ParentRef]:
    """Which parts a file must hold, from the properties of its metadata manifest.  Raises FileError."""
    found = {}
    for key, value in values.items():
        if not key.startswith(_PROPERTY):
            continue
        name = key.removeprefix(_PROPERTY)
        identifier, _, origin = value.partition(":")
        try:
            part = ParentRef(bytes.fromhex(identifier), bytes.fromhex(origin))
            if len(part.checkpoint_id) != 16 or len(part.origin_digest) != 32 or not is_place(name):
                raise ValueError
        except ValueError:
            raise FileError("the checkpoint names a sealed file inside it impossibly") from None
        found[name] = part
    return found


def without(values: Mapping[str, str]) -> dict[str, str]:
    """The other properties, for a file that says anew which parts it has."""
    return {key: value for key, value in values.items() if not key.startswith(_PROPERTY)}


def names(opened: OpenFile) -> tuple[str, ...]:
    """The objects that are sealed files.  Raises FileError."""
    return tuple(references(opened.manifests[Role.METADATA].properties))


def look(source: ByteSource) -> ParentRef:
    """By which a sealed file is named that becomes a part, when all of it is as it says of itself.  Raises FileError.

    Whom to believe is asked when it is opened, not when it is sealed.
    """
    authentic, _ = authenticate(source, _TRUST_NOBODY)
    if authentic.interrupted:
        raise FileError(
            "a rekey of it was interrupted", hint="finish that first: sealpoint rekey FILE --repair"
        )
    authentic.check_frames()
    return authentic.reference


def check(opened: OpenFile, policy: TrustPolicy) -> list[SealedPart]:
    """All parts, each of them there, the one that was signed, and signed itself by somebody whom `policy` believes.

    Without those that are out of reach for an identity that opens metadata only.  Raises FileError, PolicyError.
    """
    found = []
    for name, wanted in references(opened.manifests[Role.METADATA].properties).items():
        entry = opened.entries.get(name)
        if entry is None and not opened.has_memory and role_of(name) is Role.MEMORY:
            continue
        if entry is None:
            raise FileError(f"the sealed file {name!r} inside the checkpoint is missing")
        try:
            authentic, signers = authenticate(_Object(opened, entry), policy)
        except (FileError, PolicyError) as error:
            raise in_file(error, f"the sealed file {name!r} inside the checkpoint") from None
        if authentic.reference != wanted:
            raise FileError(f"the sealed file {name!r} inside is not the one that was signed")
        found.append(SealedPart(name, authentic, signers))
    return found


def verify(
    part: SealedPart,
    identities: Sequence[Identity],
    progress: Callable[[int], None] = lambda _: None,
) -> bool:
    """Check every frame, and with a key for it every chunk; returns whether there was one.  Raises FileError."""
    part.authentic.check_frames(progress)
    inner = _unlocked(part, identities)
    if inner is not None:
        inner.verify_all(progress)
    return inner is not None


def look_through(
    opened: OpenFile, found: Sequence[SealedPart], identities: Sequence[Identity]
) -> OpenFile:
    """`opened` with the objects of its parts in place of those, as far as the keys open them.  Raises FileError."""
    # An increment, or one whose memory is in a store, is not whole by itself.
    alone = [
        p for p in found if p.authentic.origin.parent is None and not p.authentic.origin.references
    ]
    inside = {part.name: inner for part in alone if (inner := _unlocked(part, identities))}
    return _WithParts(opened, inside) if inside else opened


def _unlocked(part: SealedPart, identities: Sequence[Identity]) -> OpenFile | None:
    try:
        return OpenFile.unlock(part.authentic, unwrap_with(identities))
    except IdentityError:
        return None  # it is sealed to others than the file that it lies in
    except FileError as error:
        raise in_file(error, f"the sealed file {part.name!r} inside the checkpoint") from None


class _Object:
    """A ByteSource: an object of a sealed file, decrypted where it is read."""

    def __init__(self, opened: OpenFile, entry: Entry) -> None:
        self._opened, self._entry = opened, entry
        self.size = entry.size

    def read_into(self, out: memoryview, offset: int) -> None:
        """See ByteSource."""
        if not 0 <= offset <= offset + len(out) <= self.size:
            raise FileError("the sealed file ends before it should")
        have = 0
        for piece in self._opened.read(self._entry, Scratch(), start=offset, size=len(out)):
            out[have : have + len(piece)] = piece
            have += len(piece)

    def close(self) -> None:
        """The outer file stays open."""


class _WithParts(OpenFile):
    """A sealed archive in which images of the sealed files inside have the names that they would have in the clear."""

    def __init__(self, outer: OpenFile, inside: Mapping[str, OpenFile]) -> None:
        self.authentic = outer.authentic
        self.roots = outer.roots
        self.manifests = outer.manifests
        self._outer = outer
        self._where: dict[int, tuple[OpenFile, Stream]] = {}
        self.entries = {n: e for n, e in outer.entries.items() if n not in inside}
        for place, (name, inner) in enumerate(inside.items(), 1):
            prefix = name.removesuffix(NAME)
            for entry in inner.entries.values():
                if entry.name == SUMMARY_NAME:
                    continue
                if prefix + entry.name in self.entries:
                    raise FileError(
                        f"{prefix + entry.name!r} is in the archive and in the sealed file inside it"
                    )
                number = entry.stream.number + place * _SHIFT
                self._where[number] = (inner, entry.stream)
                self.entries[prefix + entry.name] = entry._replace(
                    name=prefix + entry.name, stream=entry.stream._replace(number=number)
                )

    def streams(self) -> Iterator[Stream]:
        """See OpenFile."""
        yield from self._outer.streams()
        for number, (_, stream) in self._where.items():
            yield stream._replace(number=number)

    def _find(self, stream: Stream) -> tuple[OpenFile, Stream]:
        return self._where.get(stream.number, (self._outer, stream))

    def read_chunk_into(
        self, stream: Stream, counter: int, out: memoryview, scratch: Scratch
    ) -> int:
        """See OpenFile."""
        file, own = self._find(stream)
        return file.read_chunk_into(own, counter, out, scratch)

    def stored_size(self, stream: Stream) -> int:
        """See OpenFile."""
        file, own = self._find(stream)
        return file.stored_size(own)

    def is_freed(self, stream: Stream, counter: int) -> bool:
        """See OpenFile."""
        file, own = self._find(stream)
        return file.is_freed(own, counter)

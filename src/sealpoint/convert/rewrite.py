"""A new sealed file from an existing one in which some objects are replaced: derived from it, and signed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sealpoint.checkpoint import Adder, Sealing, copied_properties, evidence, parts, whole
from sealpoint.criu.roles import SUMMARY_NAME
from sealpoint.errors import FileError, IdentityError, UsageError
from sealpoint.inspect.sealed import SealedSource
from sealpoint.progress import Report, silent
from sealpoint.store.output import Target


def rewrite(
    source: SealedSource,
    out: Target,
    replaced: Mapping[str, bytes],
    sealing: Sealing,
    *,
    report: Report = silent,
) -> bytes:
    """Write `source` with the objects `replaced` to `out`; returns the id of the new checkpoint.

    All else is kept: names, attributes, order, time of capture, workload, place in a chain.  The objects are decrypted
    and encrypted chunk by chunk.  Raises SealpointError, FileError among them where the images would no longer belong
    together; nothing is then left under the output's name.
    """
    opened, origin = source.opened, source.checkpoint.authentic.origin
    if inside := parts.names(opened):
        raise UsageError(
            f"{source.label} holds a sealed file, {inside[0]}, whose signature would not fit a change",
            hint="open it, change that file, and seal the archive again",
        )
    if not opened.has_memory:
        raise IdentityError(
            f"{source.label}: the identity given opens metadata only, and a new file needs all of it",
            hint=f"use the identity of: {', '.join(source.memory_recipients())}",
        )
    properties = copied_properties(opened)
    before = whole.recorded(properties)
    with sealing.into(out) as sealer:
        taken = whole.Taken(as_files=whole.FILES in before.values())
        adder = Adder(sealer.builder, report, taken)
        for entry in sorted(opened.entries.values(), key=lambda e: e.number):
            if entry.name == SUMMARY_NAME:
                continue  # the builder makes its own
            data = replaced.get(entry.name)
            kind = (entry.attributes or {}).get("type", "file")
            if kind != "file":
                adder.add(entry.name, None, 0, entry.attributes)
            elif data is not None:
                adder.add(entry.name, Pieces(iter([data])), len(data), entry.attributes)
            else:
                pieces = Pieces(opened.read(entry))
                adder.add(entry.name, pieces, entry.size, entry.attributes)
        kinds = _kinds(source, taken, replaced)
        if before:
            properties |= whole.properties(kinds)
        sealer.finish(
            kind="derived",
            derived_from=source.checkpoint.authentic.reference,
            workload=origin.workload,
            parent=origin.parent,
            chain=(origin.chain_root, origin.chain_sequence) if origin.parent else None,
            properties=properties,
            captured=origin.captured,
        )
        sealer.commit()
    return sealer.checkpoint_id


def _kinds(
    source: SealedSource, taken: whole.Taken, replaced: Mapping[str, bytes]
) -> dict[str, str]:
    """Of the new sets of images.  Raises FileError where something is wrong that was not wrong before."""
    if taken.as_files:
        return {"": whole.FILES}
    opened = source.opened
    old = whole.Taken.of(
        opened.entries,
        {name: entry.size for name, entry in opened.entries.items()},
        lambda name: opened.read(opened.entries[name]),
    )
    known = old.verdicts()
    verdicts = taken.verdicts()
    problems = [
        prefix + problem
        for prefix, (_, wrong) in verdicts.items()
        for problem in wrong
        if problem not in known.get(prefix, ("", []))[1]
    ]
    if problems:
        raise FileError(
            f"with {', '.join(sorted(replaced))} replaced, {source.label} is no longer a complete checkpoint: "
            f"{evidence.said(problems)}",
            hint="without --into, crit encode makes the image alone",
        )
    return {prefix: kind for prefix, (kind, _) in verdicts.items()}


class Pieces:
    """Reads from pieces that follow one another."""

    def __init__(self, pieces: Iterator[memoryview | bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readinto(self, out: memoryview) -> int:
        """Into the beginning of `out`; 0 only at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        take = min(len(out), len(self._rest))
        out[:take] = self._rest[:take]
        self._rest = self._rest[take:]
        return take

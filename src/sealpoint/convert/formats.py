"""Between the CRIUsec format, plain images and sealed files.

What is read is authenticated before it is written: signatures and chunks of a sealed file, the messages and the digest
over the pages of a CRIUsec dump.  The latter proves little (`sealpoint.criusec.limits`), so whoever makes a signed file
of it vouches for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import blake3

from sealpoint.checkpoint import Adder, Item, Member, whole
from sealpoint.convert.rewrite import Pieces
from sealpoint.criu.roles import SUMMARY_NAME
from sealpoint.criusec.dump import PageCheck
from sealpoint.criusec.write import DumpWriter
from sealpoint.errors import FileError, UsageError
from sealpoint.format.constants import ID_SIZE
from sealpoint.format.statement import ParentRef
from sealpoint.inspect.encrypted import EncryptedSource
from sealpoint.inspect.source import Images
from sealpoint.progress import Progress, Report, silent

if TYPE_CHECKING:
    from sealpoint.checkpoint import Sealing
    from sealpoint.keys.rsa import RsaRecipient
    from sealpoint.store.output import Target


def reference(source: EncryptedSource) -> ParentRef:
    """What a sealed file names as that of which it was made: H(cipher.img), and the first half of it as the id."""
    dump = next(iter(source.dumps.values()))
    digest = blake3.blake3(dump.envelope_bytes).digest()
    return ParentRef(digest[:ID_SIZE], digest)


def check(source: EncryptedSource, report: Report = silent) -> dict[str, PageCheck]:
    """Authenticate all that can be, of every dump in the source.  Raises FileError, IdentityError.

    Returns what came of the digest over pages, by the prefix of the dump.
    """
    total = sum(source.size(n) for n in source.names())  # opens every image
    done = 0

    def progress(size: int) -> None:
        nonlocal done
        done += size
        report(Progress(done, total))

    return {prefix: dump.check_pages(progress) for prefix, dump in source.dumps.items()}


def plain_items(source: EncryptedSource, names: list[str]) -> list[Item]:
    """Files to be written in the clear."""
    now = time.time_ns()
    return [
        Item(Member(name, size=source.size(name), mtime=now), partial(_chunks, source, name))
        for name in names
    ]


def _chunks(source: EncryptedSource, name: str) -> Iterator[memoryview]:
    return source.chunks(name)


def encrypted_items(images: Images, recipient: RsaRecipient) -> tuple[list[Item], DumpWriter]:
    """Files of a CRIUsec dump made of plain images, to be written in this order.  Raises UsageError, FileError."""
    if images.parent() is not None:
        raise UsageError(
            f"{images.label} is an increment, and the CRIUsec format has none",
            hint="make one complete checkpoint of it first: sealpoint flatten",
        )
    writer = DumpWriter(images.source, images.prefix, recipient)
    if not writer.names():
        raise FileError(f"{images.label} has no CRIU images")
    now = time.time_ns()
    items = [Item(Member(f.name, size=f.size, mtime=now), f.pieces) for f in writer.files()]
    return items, writer


def seal_source(
    source: EncryptedSource,
    out: Target,
    sealing: Sealing,
    *,
    as_files: bool = False,
    report: Report = silent,
) -> tuple[bytes, dict[str, str]]:
    """Write the plain images into a sealed file derived from the dump; returns the new checkpoint's id, and what it is.

    as_files: also if they are not a complete checkpoint.

    Raises SealpointError; nothing is then left under the output's name.
    """
    with sealing.into(out) as sealer:
        taken = whole.Taken(as_files=as_files)
        adder = Adder(sealer.builder, report, taken)
        for name in source.names():
            if name != SUMMARY_NAME:
                adder.add(name, Pieces(source.chunks(name)), source.size(name), None)
        kinds = taken.judge(
            source.label, hint="to keep the files as they are, use --as-files or --format plain"
        )
        properties = {"layout": "directory", "converted-from": "criusec"}
        sealer.finish(
            kind="derived",
            derived_from=reference(source),
            properties=properties | whole.properties(kinds),
        )
        sealer.commit()
    return sealer.checkpoint_id, kinds

"""Seal an existing directory or archive into one sealed file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, NamedTuple

from sealpoint.checkpoint.sealing.archive import seal_path
from sealpoint.checkpoint.sealing.sealer import Sealing
from sealpoint.progress import Report, silent
from sealpoint.store.output import Target


class SealResult(NamedTuple):
    """What came of it; sizes in bytes.  ignored: keys of an archive's headers that were not kept.

    kinds: of each set of images, by what names in it begin with; parentless: those whose parent is not within reach.
    """

    checkpoint_id: bytes
    origin_digest: bytes
    objects: int
    plain_size: int
    file_size: int
    kinds: Mapping[str, str]
    ignored: tuple[str, ...] = ()
    parentless: tuple[str, ...] = ()


def seal(
    path: str,
    out: Target,
    sealing: Sealing,
    *,
    as_files: bool = False,
    report: Report = silent,
    file: IO[bytes] | None = None,
    workload: str = "",
) -> SealResult:
    """Seal what is at `path`: sets of images, each of which must be whole, or with `as_files` anything.

    file: an archive that is open already, buffered; `path` is then its name in messages.  workload: signed, public.

    Raises SealpointError; nothing is then left under the output's name.
    """
    with sealing.into(out) as sealer:
        sealed = seal_path(path, sealer.builder, report, as_files=as_files, file=file)
        count, plain_size = sealer.builder.count, sealer.builder.size  # without the summary
        digest = sealer.finish(properties=sealed.properties, workload=workload)
        sealer.commit()
    return SealResult(
        sealer.checkpoint_id,
        digest,
        count,
        plain_size,
        sealer.size,
        sealed.kinds,
        sealed.ignored,
        sealed.parentless,
    )

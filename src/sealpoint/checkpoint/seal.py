"""Seal an existing directory or archive into one sealed file."""

from __future__ import annotations

from typing import NamedTuple

from sealpoint.checkpoint.archive import seal_path
from sealpoint.checkpoint.builder import CheckpointBuilder
from sealpoint.checkpoint.progress import Report, silent
from sealpoint.format.constants import Suite
from sealpoint.format.writer import SealedWriter, Signing, Wrap
from sealpoint.store.output import Target


class SealResult(NamedTuple):
    """What came of it; sizes in bytes.  ignored: keys of an archive's headers that were not kept."""

    checkpoint_id: bytes
    origin_digest: bytes
    objects: int
    plain_size: int
    file_size: int
    ignored: tuple[str, ...] = ()


def seal(
    path: str,
    out: Target,
    *,
    wrap: Wrap,
    signing: Signing,
    suite: Suite = Suite.AES_256_GCM,
    compression: str = "auto",
    report: Report = silent,
) -> SealResult:
    """Raises SealpointError; nothing is then left under the output's name."""
    writer = SealedWriter(out, suite=suite, wrap=wrap, signing=signing)
    builder = CheckpointBuilder(writer, compression=compression)
    try:
        sealed = seal_path(path, builder, report)
        count, plain_size = builder.count, builder.size  # without the summary
        digest = builder.finish(properties=sealed.properties)
        out.commit()
    except BaseException as error:
        out.cancel()  # a reader who does not read must not keep us
        builder.abort(error)
        raise
    return SealResult(
        writer.preamble.checkpoint_id,
        digest,
        count,
        plain_size,
        writer.size,
        sealed.ignored,
    )

"""Joins format, keys and CRIU: seal a run, open a file, serve it back, and what becomes of it over time.

Everything outside of this package enters it here, and by these names; import-linter forbids the rest.  They are loaded
when they are asked for (PEP 562), so that a command loads the rooms that it needs.  Within, each room imports what is
below it: live, history, sealing, opening, tables.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sealpoint.checkpoint.history import retention as retention
    from sealpoint.checkpoint.history.freeing import (
        Pruned as Pruned,
        prune_parents as prune_parents,
    )
    from sealpoint.checkpoint.history.increments import Track as Track
    from sealpoint.checkpoint.history.merge import MergeResult as MergeResult, merge as merge
    from sealpoint.checkpoint.history.rekey import RekeyRequest as RekeyRequest, rekey as rekey
    from sealpoint.checkpoint.history.retention import show_time as show_time
    from sealpoint.checkpoint.live import peer as peer
    from sealpoint.checkpoint.live.admission import (
        Admission as Admission,
        describe_admitted as describe_admitted,
        show_capture_time as show_capture_time,
    )
    from sealpoint.checkpoint.live.dump import (
        Dump as Dump,
        DumpRequest as DumpRequest,
        DumpResult as DumpResult,
    )
    from sealpoint.checkpoint.live.migrate import (
        MigrateRequest as MigrateRequest,
        MigrateResult as MigrateResult,
        Sender as Sender,
    )
    from sealpoint.checkpoint.live.mount_capture import (
        PARENT_LINK as PARENT_LINK,
        CaptureFilesystem as CaptureFilesystem,
    )
    from sealpoint.checkpoint.live.receive import (
        Receiver as Receiver,
        ReceiveRequest as ReceiveRequest,
    )
    from sealpoint.checkpoint.live.restore import (
        Restore as Restore,
        RestoreRequest as RestoreRequest,
        RestoreResult as RestoreResult,
        check_restorable as check_restorable,
    )
    from sealpoint.checkpoint.live.watch import (
        Watch as Watch,
        WatchedCheckpoint as WatchedCheckpoint,
        WatchRequest as WatchRequest,
    )
    from sealpoint.checkpoint.opening import (
        extract as extract,
        opener as opener,
        parts as parts,
        separate_pages as separate_pages,
    )
    from sealpoint.checkpoint.opening.access import (
        CheckedFile as CheckedFile,
        Opinion as Opinion,
        describe_stanza as describe_stanza,
        explain as explain,
        require_recipient as require_recipient,
        signing_by as signing_by,
    )
    from sealpoint.checkpoint.opening.chain import (
        SEALED_IMAGE as SEALED_IMAGE,
        claimed_id as claimed_id,
        newest_in as newest_in,
    )
    from sealpoint.checkpoint.opening.copying import copy as copy
    from sealpoint.checkpoint.opening.expectation import Expectation as Expectation
    from sealpoint.checkpoint.opening.extract import Item as Item
    from sealpoint.checkpoint.opening.flat import Flat as Flat, Runs as Runs
    from sealpoint.checkpoint.opening.front import Front as Front
    from sealpoint.checkpoint.opening.opener import (
        ImageData as ImageData,
        OpenedCheckpoint as OpenedCheckpoint,
        Opening as Opening,
        Task as Task,
    )
    from sealpoint.checkpoint.opening.parts import SealedPart as SealedPart
    from sealpoint.checkpoint.opening.separate_pages import copied_properties as copied_properties
    from sealpoint.checkpoint.opening.stored_pages import (
        WithChunks as WithChunks,
        check_references as check_references,
    )
    from sealpoint.checkpoint.opening.view import View as View
    from sealpoint.checkpoint.sealing.archive import Adder as Adder, seal_archive as seal_archive
    from sealpoint.checkpoint.sealing.builder import (
        CheckpointBuilder as CheckpointBuilder,
        LargeObject as LargeObject,
    )
    from sealpoint.checkpoint.sealing.chunking import ChunkAdder as ChunkAdder
    from sealpoint.checkpoint.sealing.existing import SealResult as SealResult, seal as seal
    from sealpoint.checkpoint.sealing.sealer import Sealer as Sealer, Sealing as Sealing
    from sealpoint.checkpoint.tables import (
        evidence as evidence,
        summary as summary,
        tar as tar,
        whole as whole,
    )
    from sealpoint.checkpoint.tables.delta import DELTA_NAME as DELTA_NAME
    from sealpoint.checkpoint.tables.evidence import (
        Kind as Kind,
        NoEvidenceError as NoEvidenceError,
    )
    from sealpoint.checkpoint.tables.seen import Seen as Seen
    from sealpoint.checkpoint.tables.tar import Member as Member, TarReader as TarReader
    from sealpoint.checkpoint.tables.whole import Taken as Taken

# Which module has what; a room (without a dot) has modules that are used as such.
_PLACES: Final[dict[str, tuple[str, ...]]] = {
    "history": ("retention",),
    "history.freeing": ("Pruned", "prune_parents"),
    "history.increments": ("Track",),
    "history.merge": ("MergeResult", "merge"),
    "history.rekey": ("RekeyRequest", "rekey"),
    "history.retention": ("show_time",),
    "live": ("peer",),
    "live.admission": ("Admission", "describe_admitted", "show_capture_time"),
    "live.dump": ("Dump", "DumpRequest", "DumpResult"),
    "live.migrate": ("MigrateRequest", "MigrateResult", "Sender"),
    "live.mount_capture": ("CaptureFilesystem", "PARENT_LINK"),
    "live.receive": ("ReceiveRequest", "Receiver"),
    "live.restore": ("Restore", "RestoreRequest", "RestoreResult", "check_restorable"),
    "live.watch": ("Watch", "WatchRequest", "WatchedCheckpoint"),
    "opening": ("extract", "opener", "parts", "separate_pages"),
    "opening.access": (
        "CheckedFile",
        "Opinion",
        "describe_stanza",
        "explain",
        "require_recipient",
        "signing_by",
    ),
    "opening.chain": ("SEALED_IMAGE", "claimed_id", "newest_in"),
    "opening.copying": ("copy",),
    "opening.expectation": ("Expectation",),
    "opening.extract": ("Item",),
    "opening.flat": ("Flat", "Runs"),
    "opening.front": ("Front",),
    "opening.opener": ("ImageData", "OpenedCheckpoint", "Opening", "Task"),
    "opening.parts": ("SealedPart",),
    "opening.separate_pages": ("copied_properties",),
    "opening.stored_pages": ("WithChunks", "check_references"),
    "opening.view": ("View",),
    "sealing.archive": ("Adder", "seal_archive"),
    "sealing.builder": ("CheckpointBuilder", "LargeObject"),
    "sealing.chunking": ("ChunkAdder",),
    "sealing.existing": ("SealResult", "seal"),
    "sealing.sealer": ("Sealer", "Sealing"),
    "tables": ("evidence", "summary", "tar", "whole"),
    "tables.delta": ("DELTA_NAME",),
    "tables.evidence": ("Kind", "NoEvidenceError"),
    "tables.seen": ("Seen",),
    "tables.tar": ("Member", "TarReader"),
    "tables.whole": ("Taken",),
}
_PLACE_OF: Final = {name: place for place, names in _PLACES.items() for name in names}
__all__ = sorted(_PLACE_OF)  # noqa: PLE0605 - said once, above


def __getattr__(name: str) -> Any:
    place = _PLACE_OF.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "." not in place:
        return import_module(f"{__name__}.{place}.{name}")
    return getattr(import_module(f"{__name__}.{place}"), name)

"""Several files of a chain made into one: with all parents (flatten), or with the nearest ones only (prune).

The new file holds the same images as the newest of them and says for which file it stands, so that later increments
find it in the place of that one.  Out of scope: which files are merged (`retention`), and where the result goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sealpoint.checkpoint.opening import separate_pages
from sealpoint.checkpoint.opening.flat import ChunkReader, Flat, FlatImage, Runs
from sealpoint.checkpoint.sealing.builder import PACK_LIMIT, CheckpointBuilder, LargeObject
from sealpoint.checkpoint.sealing.chunking import ChunkAdder
from sealpoint.checkpoint.sealing.sealer import Sealing
from sealpoint.checkpoint.tables import whole
from sealpoint.checkpoint.tables.chunk_table import can_be_stored
from sealpoint.checkpoint.tables.delta import DELTA_NAME, Delta, PageRuns
from sealpoint.checkpoint.tables.pages_thread import PagesTarget
from sealpoint.criu.pagemap import PAGE
from sealpoint.criu.roles import role_of
from sealpoint.errors import UsageError
from sealpoint.format.manifest import Entry
from sealpoint.format.opened import OpenFile, Scratch
from sealpoint.progress import Progress, Report, silent
from sealpoint.store.output import Target


class MergeResult(NamedTuple):
    """The new file: id and origin digest, and its size in bytes."""

    checkpoint_id: bytes
    origin_digest: bytes
    file_size: int


def merge(
    files: Sequence[OpenFile],
    out: Target,
    sealing: Sealing,
    *,
    count: int | None = None,
    report: Report = silent,
    store: ChunkAdder | None = None,
) -> MergeResult:
    """Make one file of the first `count` files of a chain, newest first; of all if None.

    Everything is verified as it is read.  store: takes the pages, if there is one.  Commits `out`.  Raises
    SealpointError, and nothing is then left of it.
    """
    count = len(files) if count is None else count
    flat = Flat(files)
    properties = separate_pages.copied_properties(files[0])
    if count == len(files):
        whole.require_alone(files[0])
        properties |= whole.properties(_kinds(flat, properties))
    if count < len(files) and count >= len(flat.deltas) + 1:
        raise UsageError("increments that CRIU made cannot be merged in part", hint="flatten them")
    with sealing.into(out) as sealer:
        builder = sealer.builder
        _Merge(flat, builder, count, report, store).run()
        if store is not None:
            store.finish(builder)
        top = files[0].authentic.origin
        reference = top.stands_for or files[0].authentic.reference
        parent = None if count == len(files) else files[count].authentic
        digest = sealer.finish(
            kind="merged",
            workload=top.workload,
            captured=top.captured,
            derived_from=reference,
            parent=None if parent is None else parent.reference,
            chain=None if parent is None else (parent.origin.chain_root, top.chain_sequence),
            properties=properties,
        )
        sealer.commit()
    return MergeResult(sealer.checkpoint_id, digest, sealer.size)


def _kinds(flat: Flat, properties: dict[str, str]) -> dict[str, str]:
    """Of the sets of images in the new file.  Raises FileError where pages of them would be missing."""
    scratch = Scratch()
    taken = whole.Taken.of(
        flat.top.entries,
        {image.name: image.size for image in flat.images.values()},
        lambda name: flat.read(flat.images[name], scratch),
    )
    taken.require_pages()
    if whole.FILES in whole.recorded(properties).values():
        return {}  # nobody vouched for more than their pages
    return {prefix: kind for prefix, (kind, _) in taken.verdicts().items()}


class _Merge:
    def __init__(
        self,
        flat: Flat,
        builder: CheckpointBuilder,
        count: int,
        report: Report,
        store: ChunkAdder | None,
    ) -> None:
        self._flat, self._builder, self._count, self._report = flat, builder, count, report
        self._store = store
        self._reader: ChunkReader = flat.chunk_reader()
        self._total = sum(i.size for i in flat.images.values())
        self._done = 0
        self._delta = Delta()

    def run(self) -> None:
        partly = self._count < len(self._flat.files)
        if partly:
            self._delta.parent = self._flat.whole_images(self._count)
            for name, runs in self._flat.located(stop=self._count).items():
                self._changed(name, runs)
        for image in self._flat.images.values():
            if not partly or image.runs is None:
                self._whole(image)
            self._done += image.size
            self._report(Progress(self._done, self._total))
        if partly:
            table = self._builder.large(DELTA_NAME)
            table.write(self._delta.encode())
            table.finish()

    def _whole(self, image: FlatImage) -> None:
        attributes = image.entry.attributes if image.entry is not None else None
        pieces = self._flat.read(image)
        if image.runs is None and image.size <= PACK_LIMIT[role_of(image.name)]:
            self._builder.add(image.name, b"".join(map(bytes, pieces)), attributes)
            return
        if self._store is not None and can_be_stored(image.name, image.size):
            self._stored(self._store.target(self._builder, image.name, attributes), pieces)
            return
        target = self._builder.large(image.name, attributes)
        for piece in pieces:
            target.write(piece)
        target.finish()

    @staticmethod
    def _stored(target: PagesTarget, pieces: Iterator[memoryview]) -> None:
        try:
            for piece in pieces:
                target.write(piece)
            target.finish()
        except BaseException:
            target.abandon()
            raise

    def _changed(self, image: str, found: Runs) -> None:
        """Pages of the files that are merged; the others stay with the parent."""
        target = self._builder.large(image)
        runs = self._delta.images[image] = PageRuns()
        bases, base = {}, 0
        for name, pages in self._delta.parent.items():
            bases[name], base = base, base + pages
        for source, first, count in found.parts():
            file, entry = found.objects[source]
            if file < self._count:
                self._copy(target, file, entry, first, count)
                runs.add(None, count)
            else:
                runs.add(bases[entry.name] + first, count)
        target.finish()
        self._builder.summary.pages(image, runs.pages * PAGE)

    def _copy(self, target: LargeObject, file: int, entry: Entry, first: int, count: int) -> None:
        runs = Runs()
        runs.add(file, entry, first, count)
        done = 0
        while done < runs.size:
            space = target.space()
            size = runs.fill(space, done, self._reader)
            target.wrote(size)
            done += size

"""One dump in every layout in which sealed files hold it: whole, in parts, and with what it needs elsewhere."""

from __future__ import annotations

from pathlib import Path

from sealpoint.checkpoint.history import merge
from sealpoint.checkpoint.history.increments import Track
from sealpoint.checkpoint.opening import separate_pages
from sealpoint.checkpoint.opening.access import wrap_for
from sealpoint.checkpoint.opening.opener import Opening
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import PARENT, PRESENT, Pagemap
from sealpoint.format.constants import Suite
from sealpoint.format.statement import ParentRef
from sealpoint.format.writer import SealedWriter
from sealpoint.state.chains import StateStore
from sealpoint.store.output import OutputFile
from tests.checkpoint.chain_helpers import seal_images
from tests.checkpoint.checkpoint_helpers import Keys
from tests.checkpoint.store_helpers import Store
from tests.inspect import small_dump
from tests.inspect.small_dump import PAGE
from tests.inspect.test_inspect_coredump import core_image

IMAGES = small_dump.a_tree() | {"core-10.img": core_image(10)}
PIDS = [pid for pid, _ in small_dump.TREE]
WHOLE = "dump.sealed"  # the file that is opened, in the directory of each layout


class Layouts:
    """Makes the layouts below `directory`, each in a directory of its own."""

    def __init__(self, directory: Path, keys: Keys) -> None:
        self.directory, self.keys = directory, keys

    def make(self, name: str) -> tuple[Path, list[str]]:
        """The file, and the options that commands need to find its parts."""
        place = self.directory / name
        if not place.exists():
            place.mkdir()
            getattr(self, "_" + name.replace(" ", "_"))(place)
        elsewhere = place / "elsewhere"
        options = []
        if name == "chunks elsewhere":
            options = ["--store", str(elsewhere)]
        elif name == "parent elsewhere":
            options = ["--parents", str(elsewhere)]
        return place / WHOLE, options

    def _whole(self, place: Path) -> None:
        seal_images(self.keys, place / WHOLE, IMAGES)

    def _pages_beside(self, place: Path) -> None:
        seal_beside(self.keys, place / WHOLE, IMAGES)

    def _chunks_beside(self, place: Path) -> None:
        plain = place / "plain"
        seal_images(self.keys, plain, IMAGES)
        Store(place / "store", self.keys).add_file(plain, "dump")
        (place / "store" / "chunks").rename(place / "chunks")
        for path in (place / "store").iterdir():
            path.rename(place / path.name)

    def _chunks_elsewhere(self, place: Path) -> None:
        plain = place / "plain"
        seal_images(self.keys, plain, IMAGES)
        Store(place / "elsewhere", self.keys).add_file(plain, "dump").rename(place / WHOLE)

    def _delta(self, place: Path, steps: int = 2) -> list[Path]:
        """As `dump --track` makes it: all but the last file have other pages."""
        states = StateStore(str(place / "state"))
        made: list[Path] = []
        for step in range(steps):
            images, last = dict(IMAGES), step + 1 == steps
            for pid in PIDS if not last else []:
                name = f"pages-{pid}.img"
                images[name] = bytes([97 + step]) * PAGE + images[name][PAGE:]
            path = place / (WHOLE if last else f"before-{step}.sealed")
            _tracked(self.keys, states, path, images, made[-1] if made else None)
            made.append(path)
        return made

    def _parent_elsewhere(self, place: Path) -> None:
        first, _ = self._delta(place)
        (place / "elsewhere").mkdir()
        first.rename(place / "elsewhere" / first.name)

    def _parent_merged(self, place: Path) -> None:
        """The parent was merged with its own parent, as `prune` does it: it has another id."""
        first, second, _ = self._delta(place, 3)
        self._merge(second, 2, second)
        first.unlink()

    def _parent_merged_elsewhere_in_name(self, place: Path) -> None:
        """The same, and the merged file has another name."""
        self._parent_merged(place)
        (place / "before-1.sealed").rename(place / "whatever")

    def _criu_s_increment(self, place: Path) -> None:
        self._by_pagemaps(place)

    def _criu_s_increment_on_a_flattened_one(self, place: Path) -> None:
        first = self._by_pagemaps(place)
        self._merge(first, 1, first)

    def _by_pagemaps(self, place: Path) -> Path:
        """As the drop-in makes it of CRIU's own increments: one page of five is new, the others are the parent's."""
        before, after = dict(IMAGES), dict(IMAGES)
        for pid in PIDS:
            name, pages = f"pagemap-{pid}.img", f"pages-{pid}.img"
            table = Pagemap(pid)
            for number, (start, count, _, _) in enumerate(
                pagemap.decode(IMAGES[name], name).runs()
            ):
                table.add(start, count, PARENT if number else PRESENT)
            after[name] = pagemap.encode(table)
            after[pages] = IMAGES[pages][:PAGE]
            before[pages] = b"x" * PAGE + IMAGES[pages][PAGE:]
        first = place / "before.sealed"
        state = seal_images(self.keys, first, before)
        chain = (state.reference.checkpoint_id, 1)
        seal_images(self.keys, place / WHOLE, after, parent=state.reference, chain=chain)
        return first

    def _merge(self, path: Path, count: int, target: Path) -> None:
        with (
            Opening(self.keys.policy, lambda: [self.keys.identity]).open(str(path)) as checkpoint,
            OutputFile(str(target), force=True) as out,
        ):
            merge.merge(checkpoint.whole(), out, self.keys.sealing(), count=count)


NAMES = [
    "whole", "pages beside", "chunks beside", "chunks elsewhere", "delta", "parent elsewhere", "parent merged",
    "parent merged elsewhere in name", "criu s increment", "criu s increment on a flattened one",
]  # fmt: skip


def seal_beside(keys: Keys, path: Path, images: dict[str, bytes]) -> Path:
    """As a dump with a page server: memory in a sealed file of its own.  Returns the path of that."""
    beside = path.with_suffix(".pages")
    with OutputFile(str(path)) as out, OutputFile(str(beside)) as pages_out:
        main, pages = (
            CheckpointBuilder(
                SealedWriter(
                    o,
                    suite=Suite.AES_256_GCM,
                    wrap=wrap_for([keys.recipient]),
                    signing=keys.signing,
                ),
                compression="lz4",
            )
            for o in (out, pages_out)
        )
        pages.summary = main.summary
        for name, data in images.items():
            target = (pages if separate_pages.belongs(name) else main).large(name)
            target.write(data)
            target.finish()
        digest = pages.finish(properties={"layout": separate_pages.LAYOUT})
        reference = ParentRef(pages.checkpoint_id, digest)
        main.finish(properties=separate_pages.properties(reference))
        out.commit()
        pages_out.commit()
    return beside.rename(path.parent / separate_pages.file_name(reference.checkpoint_id))


def _tracked(keys: Keys, states: StateStore, path: Path, images: dict[str, bytes], parent) -> None:
    def say(text: str) -> None:
        raise AssertionError(text)

    track = Track(states, say)
    if parent is None:
        track.start(None)
    else:
        with Opening(keys.policy, alone=True).open(str(parent)) as checkpoint:
            track.start(checkpoint.links[0])
    with OutputFile(str(path)) as out:
        writer = SealedWriter(
            out, suite=Suite.AES_256_GCM, wrap=wrap_for([keys.recipient]), signing=keys.signing
        )
        builder = CheckpointBuilder(writer, compression="none")
        for name, data in images.items():
            if name.startswith("pages-"):
                target = track.pages(builder, name)
                target.write(data)
                target.finish()
            else:
                builder.add(name, data)
        track.finish(builder)
        out.commit()

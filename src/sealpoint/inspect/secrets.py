"""The secrets that a checkpoint exposes: in the memory of its tasks, their environment, and its other objects.

Nothing that is found leaves this module in full unless the caller asks for it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sealpoint.criu.roles import is_pages
from sealpoint.errors import left_out
from sealpoint.format.constants import Role
from sealpoint.inspect import memory
from sealpoint.inspect.detectors import DETECTORS, GUESS, LONGEST, Hit
from sealpoint.inspect.memory import AddressSpace, Block
from sealpoint.inspect.scanner import Scanner
from sealpoint.inspect.search import LOOK_BEHIND, Buffer, Pattern, Window
from sealpoint.inspect.tasks import read_tree
from sealpoint.names import text

if TYPE_CHECKING:
    from sealpoint.inspect.source import Images, Source

_MOST_FINDINGS: Final = 10_000  # that are listed; the others are only counted
_MOST_PLACES: Final = 8  # of each that are listed
_MOST_ENVIRONMENT: Final = 8 * 1024 * 1024  # bytes, four times what execve takes by default
_GRAVE: Final = {d.kind for d in DETECTORS if d.grave} | {"encrypted-key"}
_TELLING: Final = re.compile(
    rb"PASS(?:W(?:OR)?D|PHRASE)?(?:_|$)|PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL"
    rb"|(?:^|_)PWD?$|(?:^|_)AUTH$",
    re.IGNORECASE,
)
_NO_SECRETS: Final = {b"PWD", b"OLDPWD"}


@dataclass(frozen=True, slots=True)
class SecretPlace:
    """pid and address of a task's memory, with the name of the mapping; else an object and the offset in it."""

    pid: int
    address: int
    within: str


@dataclass(slots=True)
class Secret:
    """One secret, however often it is there.

    kind: a key of detectors.KINDS; name: what stands beside it; size: bytes; shown: the part that is the same in all of
    its kind; value: the secret itself where it was asked for, else empty; grave: not merely suspicious.
    """

    kind: str
    name: str
    size: int
    shown: str
    grave: bool
    value: bytes = b""
    occurrences: int = 0
    places: list[SecretPlace] = field(default_factory=list)


@dataclass(slots=True)
class Exposure:
    """All that was found.  counts: different secrets of each kind; scanned: bytes; unlisted: beyond the limit."""

    findings: list[Secret] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    scanned: int = 0
    unlisted: int = 0


class Survey:
    """Collects an exposure.  reveal: keep the secrets themselves."""

    def __init__(
        self, *, reveal: bool = False, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        self.exposure = Exposure()
        self._reveal = reveal
        self._progress = progress
        self._scanner = Scanner()
        self._known: dict[bytes, Secret] = {}
        self._shared: set[int] = set()
        self._read: set[str] = set()

    def images(self, images: Images, pids: list[int] | None = None) -> None:
        """The memory of all tasks, or of some.  Raises FileError, UsageError, IdentityError."""
        chosen = memory.pids(images) if pids is None else pids
        if not chosen:  # withheld, which the first task's image says: nothing found must not be taken for nothing there
            chosen = [task.pid for task in read_tree(images, commands=False)[:1]]
        for pid in chosen:
            space = AddressSpace.load(images, pid)
            self._space(space)
            maps = [space.pages_of(m) for m in space.mappings]
            self._read |= {images.prefix + p.layers[0].name for p in maps if p and p.layers}

    def objects(self, source: Source) -> None:
        """What is no memory of a task and may hold some all the same: queues, ghost files, the engine's own files.

        Pages images, too, that are not a task's own: those of parents hold pages that were changed since.
        """
        for name in source.names():
            base = name.rpartition("/")[2]
            if source.role(name) is Role.MEMORY and not (is_pages(base) and name in self._read):
                self._object(source, name)

    def _object(self, source: Source, name: str) -> None:
        def place(offset: int) -> SecretPlace:
            return SecretPlace(0, offset, name)

        window = Window(self._pattern())
        offset = 0
        for data in source.chunks(name):
            self._collect(window.feed(Block(data, [(0, len(data), offset)])), place)
            offset += len(data)
            self._count(len(data))
        self._collect(window.flush(), place)

    def _space(self, space: AddressSpace) -> None:
        start, end = space.mm.mm_env_start, space.mm.mm_env_end
        if end - start > _MOST_ENVIRONMENT:
            left_out(
                f"process {space.pid}: names are looked at in the first {_MOST_ENVIRONMENT >> 20} MiB of its"
                f" environment only, of {end - start} bytes"
            )
        variables = list(_environment(space, start, min(end, start + _MOST_ENVIRONMENT)))
        specific: list[int] = []

        def place(address: int) -> SecretPlace:
            mapping = space.at(address)
            return SecretPlace(space.pid, address, mapping.name if mapping is not None else "")

        def found(hits: Iterator[tuple[int, bytes, Hit]]) -> Iterator[tuple[int, bytes, Hit]]:
            for address, data, hit in hits:
                if start <= address < end:
                    if hit.kind == GUESS:
                        continue  # it is listed as a variable
                    specific.append(address)
                yield address, data, hit

        window = Window(self._pattern())
        for mapping in space.mappings:
            if mapping.shared is not None:
                if mapping.shared in self._shared:
                    continue
                self._shared.add(mapping.shared)
            for block in space.blocks(mapping):
                self._collect(found(window.feed(block)), place)
                self._count(len(block.data))
        self._collect(found(window.flush()), place)
        for name, value, address in variables:
            if not any(address <= at < address + len(value) for at in specific):
                self._add(Hit(0, len(value), "environment", name), value, place(address))

    def _pattern(self) -> Pattern:
        def scan(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, Hit]]:
            skip = max(0, start - LOOK_BEHIND)
            for hit in self._scanner.scan(buffer.view[skip:end]):
                if hit.start + skip >= start:
                    yield hit.start + skip, hit.end + skip, hit

        return Pattern(scan, LONGEST, LONGEST)

    def _collect(
        self, hits: Iterator[tuple[int, bytes, Hit]], place: Callable[[int], SecretPlace]
    ) -> None:
        for address, data, hit in hits:
            self._add(hit, data, place(address))

    def _add(self, hit: Hit, value: bytes, place: SecretPlace) -> None:
        digest = hashlib.blake2b(value, digest_size=16, person=hit.kind.encode()).digest()
        finding = self._known.get(digest)
        if finding is None:
            self.exposure.counts[hit.kind] += 1
            if len(self._known) >= _MOST_FINDINGS:
                self.exposure.unlisted += 1
                return
            finding = self._known[digest] = Secret(
                hit.kind,
                hit.name,
                hit.end - hit.start,
                text(value[: hit.shown]),
                hit.kind in _GRAVE,
                value if self._reveal else b"",
            )
            self.exposure.findings.append(finding)
        finding.occurrences += 1
        if len(finding.places) < _MOST_PLACES:
            finding.places.append(place)

    def _count(self, size: int) -> None:
        self.exposure.scanned += size
        self._progress(size)


def _environment(space: AddressSpace, start: int, end: int) -> Iterator[tuple[str, bytes, int]]:
    """(name, value, address of the value) of variables whose names say that they hold a secret."""
    data = space.peek(start, max(0, end - start))
    at = start
    for entry in data.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if (
            equals
            and name not in _NO_SECRETS
            and _TELLING.search(name)
            and len(value) >= 4
            and not value.startswith(b"/")  # where a secret is, not what it is
        ):
            yield text(name), value, at + len(name) + 1
        at += len(entry) + 1

"""Increments on any kernel: a whole dump streams through, and only pages that the parent has not are stored.

What must be known of the parent, digests of its pages and the key they were made with, is in the state store.  Without
it the dump stores everything, and says why.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sealpoint.checkpoint.history.matching import DIGEST, KEY, Matcher, ParentPages, TrackedPages
from sealpoint.checkpoint.opening.chain import ChainLink
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.checkpoint.tables.delta import DELTA_NAME, Delta, PageRuns
from sealpoint.checkpoint.tables.pages_thread import PagesTarget
from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.format.constants import MAX_CHAIN
from sealpoint.format.statement import ParentRef
from sealpoint.state.chains import NoStateError, State, StateStore
from sealpoint.store.naming import make_durable

Say = Callable[[str], None]
_KEY_SECTION: Final = "page-key"
_DIGESTS: Final = "digests "  # and the name of the image


@dataclass(slots=True)
class Track:
    """One tracked dump.  store: of states, None where none outlives this process; say: gets remarks for the user.

    parent: the state to build on, None for a dump of all pages; reference: the file that it stands for.  state: of the
    finished dump.
    """

    store: StateStore | None
    say: Say
    workload: str = ""
    state: State | None = None
    _parent: State | None = None
    _reference: ParentRef | None = None
    _pages: ParentPages | None = None
    _key: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _delta: Delta = field(default_factory=Delta)
    _digests: dict[str, bytes] = field(default_factory=dict)

    def start(self, parent: ChainLink | None) -> None:
        """Begin a chain, or continue `parent`, which is authentic.  Raises UsageError."""
        self._key = os.urandom(KEY)
        if parent is None:
            return
        assert self.store is not None
        origin = parent.checkpoint.authentic.origin
        if self.workload not in ("", origin.workload):
            raise UsageError(
                f"{parent.path} is of the workload {origin.workload!r}, not {self.workload!r}"
            )
        self.workload = origin.workload
        if origin.chain_sequence >= MAX_CHAIN - 1:
            self._full(f"{parent.path} is the last that its chain can have")
            return
        references = [parent.reference, *([origin.stands_for] if origin.stands_for else [])]
        reason = ""
        for reference in references:
            try:
                state = self.store.load(reference)
            except NoStateError as error:
                reason = reason or str(error)
                continue
            if _KEY_SECTION not in state.sections:
                reason = "it was dumped without --track"
                continue
            state.chain = (origin.chain_root, origin.chain_sequence)
            try:
                make_durable(parent.path)  # it may be a copy that was made a moment ago
            except OSError as error:
                reason = f"it cannot be made durable ({error.strerror})"
                break
            self._continue(state, parent.reference)
            return
        self._full(f"{parent.path} cannot be continued: {reason}")

    def follow(self, before: Track) -> None:
        """Continue what another track has just finished in this process."""
        assert before.state is not None
        self.workload = before.workload
        self._continue(before.state, before.state.reference)

    def _continue(self, state: State, reference: ParentRef) -> None:
        self._parent, self._reference = state, reference
        self._key = state.sections[_KEY_SECTION]
        self._pages = ParentPages(
            {
                name.removeprefix(_DIGESTS): data
                for name, data in state.sections.items()
                if name.startswith(_DIGESTS) and len(data) % DIGEST == 0
            }
        )
        self._delta.parent = self._pages.pages

    def _full(self, reason: str) -> None:
        self.say(f"a full dump is made: {reason}")

    @property
    def continues(self) -> bool:
        """Whether this becomes an increment."""
        return self._parent is not None

    @property
    def changed(self) -> tuple[int, int]:
        """Pages that were stored, and pages in all."""
        tables = self._delta.images.values()
        return sum(t.own_pages for t in tables), sum(t.pages for t in tables)

    def pages(
        self,
        builder: CheckpointBuilder,
        name: str,
        large: Callable[[str], PagesTarget] | None = None,
    ) -> PagesTarget:
        """Where a pages image of the dump goes.  large: makes what takes those that are stored."""

        def done(digests: bytes, runs: PageRuns) -> None:
            with self._lock:
                self._digests[name] = digests
                self._delta.images[name] = runs
            builder.summary.pages(name, runs.pages * PAGE)  # as it is, not as it is stored

        matcher = None if self._pages is None else Matcher(self._pages, name)
        return TrackedPages((large or builder.large)(name), self._key, matcher, done)

    def finish(
        self,
        builder: CheckpointBuilder,
        captured: int | None = None,
        properties: dict[str, str] | None = None,
    ) -> bytes:
        """Complete the sealed file; returns its origin digest.

        captured: seconds since 1970, now if None; properties: of the metadata manifest.  Raises SealpointError.
        """
        chain = None
        if self._parent is not None:
            table = builder.large(DELTA_NAME)
            table.write(self._delta.encode())
            table.finish()
            chain = (self._parent.chain[0], self._parent.chain[1] + 1)
        origin = builder.finish(
            workload=self.workload,
            parent=self._reference,
            chain=chain,
            captured=captured,
            properties=properties,
        )
        sections = {_DIGESTS + name: data for name, data in sorted(self._digests.items())}
        self.state = State(
            ParentRef(builder.checkpoint_id, origin),
            chain or (builder.checkpoint_id, 0),
            self._reference,
            self.workload,
            builder.layout(),
            {_KEY_SECTION: self._key, **sections},
        )
        if self.store is None:
            return origin
        try:
            self.store.save(self.state)
        except SystemEnvironmentError as error:
            self.say(f"the next dump will be a full one: {error.message}")
        return origin

    def failed(self) -> None:
        """The file did not come to be: nothing may continue it."""
        if self.state is not None and self.store is not None:
            self.store.remove(self.state.reference.checkpoint_id)

"""Pre-dumps and dumps that continue them: what CRIU may see of the parent, and what is remembered for the next step.

CRIU finds out what has changed by the kernel's soft-dirty bits, and reads inventory and pagemaps of the parent.  The
dump side cannot open the parent's sealed file; it has kept those images in its state store.  Without a state, or where
the bits are relative to another dump, the dump is a full one, and says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sealpoint.checkpoint import (
    PARENT_LINK,
    SEALED_IMAGE,
    CaptureFilesystem,
    CheckpointBuilder,
    Pruned,
    prune_parents,
)
from sealpoint.config import Config
from sealpoint.criu import pagemap
from sealpoint.dropin.pod import Pod
from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.format.raw import Descriptor
from sealpoint.format.reader import SealedFile
from sealpoint.format.statement import ParentRef, digest
from sealpoint.format.writer import Signing
from sealpoint.keys import TrustPolicy
from sealpoint.state.chains import DEFAULT_STATE, NoStateError, State, StateStore
from sealpoint.state.container_workload import container_of, workload_of
from sealpoint.state.newest import Mark, Newest
from sealpoint.state.soft_dirty import Tracking, supported
from sealpoint.store.naming import make_durable

Say = Callable[[str], None]
_INVENTORY: Final = "inventory.img"


@dataclass(frozen=True, slots=True)
class Step:
    """What was asked for.  pid: root of the tree; parent: directory of the parent, relative to the images directory.

    track: changes of memory are to be tracked from here on; pre_dump: memory only; dedup: free what parents lose.
    root: the root directory of a container, if an engine names one; pod: what Kubernetes calls it.
    """

    pid: int = 0
    parent: str = ""
    track: bool = False
    pre_dump: bool = False
    dedup: bool = False
    root: str = ""
    pod: Pod | None = None


@dataclass(slots=True)
class Increment:
    """One step of a chain, from before CRIU starts until it has ended.

    parent_images: what CRIU gets to see of the parent; None makes it a full dump.
    """

    step: Step
    directory: int
    config: Config
    say: Say
    parent_images: dict[str, bytes] | None = None
    _parent: State | None = None
    _done: ParentRef | None = None
    _workload: str = ""
    _captured: int = 0
    _store: StateStore = field(init=False)
    _tracking: Tracking = field(init=False)

    def __post_init__(self) -> None:
        """Raises UsageError, SystemEnvironmentError: it cannot be done at all."""
        self._store = store_of(self.config)
        self._tracking = Tracking(self._store.directory, self.step.pid)
        if self.step.pre_dump and not supported():
            raise SystemEnvironmentError(
                "this kernel does not track changes of memory (CONFIG_MEM_SOFT_DIRTY): no pre-dump is possible"
            )
        if self.step.parent:
            self._find_parent()
        if self.tracks:
            self._begin_tracking()
        self._workload = self._parent.workload if self._parent is not None else self._of_container()

    def _begin_tracking(self) -> None:
        try:
            self._tracking.begin()
        except SystemEnvironmentError:
            if self._tracking.last():  # a wrong record could lead to an increment that lacks pages
                raise
            self._full("cannot record the state against which the next changes of memory count")

    def _of_container(self) -> str:
        """The workload of the container that is dumped, empty where there is none."""
        if self.step.pod is not None and self.config.cluster:
            return self.step.pod.workload(self.config.cluster)
        if not self.config.container_workloads or self.step.pid <= 0:
            return ""
        container = container_of(self.step.pid, self.step.root)
        if not container:
            return ""
        try:
            return workload_of(container, self._store)
        except SystemEnvironmentError as error:
            self.say(f"the checkpoint has no workload: {error.message}")
            return ""

    @property
    def tracks(self) -> bool:
        """Whether CRIU resets the soft-dirty bits."""
        return self.step.track or self.step.pre_dump

    def _full(self, reason: str) -> None:
        self._parent = self.parent_images = None
        self.say(f"a full dump is made: {reason}")

    def _find_parent(self) -> None:
        where = self.step.parent
        try:
            directory = os.open(
                where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.directory
            )
        except OSError as error:
            raise UsageError(
                f"the parent images directory {where} cannot be opened: {error.strerror}"
            ) from None
        try:
            reference = reference_of(directory)
            make_durable(_INVENTORY, directory)  # it may be a copy that was made a moment ago
        except (OSError, FileError):
            self._full(f"{where} holds no sealed checkpoint")
            return
        finally:
            os.close(directory)
        if not self.tracks:
            self._full("without memory tracking (--track-mem) nothing can be left to a parent")
            return
        try:
            state = self._store.load(reference)
        except NoStateError as error:
            self._full(f"{where} cannot be continued: {error}")
            return
        if self._tracking.last() != reference.checkpoint_id.hex():
            self._full(f"{where} is not the last tracked dump of process {self.step.pid}")
        elif _INVENTORY not in state.sections:
            self._full(f"this machine knows too little about {where}")
        else:
            self._parent = state
            self.parent_images = _images(state)

    def finish(
        self,
        builder: CheckpointBuilder,
        filesystem: CaptureFilesystem,
        properties: dict[str, str],
    ) -> None:
        """Complete the sealed file; all but its name.  Raises SealpointError."""
        parent = self._parent
        self._captured = int(time.time())
        chain = None
        if parent is not None:
            chain = (parent.chain[0], parent.chain[1] + 1)
        origin = builder.finish(
            workload=self._workload,
            captured=self._captured,
            parent=None if parent is None else parent.reference,
            chain=chain,
            properties=properties,
        )
        self._done = ParentRef(builder.checkpoint_id, origin)
        if not self.tracks:
            return
        state = State(
            self._done,
            chain or (builder.checkpoint_id, 0),
            None if parent is None else parent.reference,
            self._workload,
            layout=builder.layout(),
            sections=filesystem.kept or {},
        )
        try:
            self._store.save(state)
        except SystemEnvironmentError as error:
            self.say(f"the next dump will be a full one: {error.message}")

    def committed(self) -> None:
        """The file has its name: link its parent's directory as CRIU does, for who restores it."""
        if self._parent is not None:
            _link(self.directory, self.step.parent)
        if self.tracks and self._done is not None:
            try:
                self._tracking.done(self._done.checkpoint_id)
            except SystemEnvironmentError as error:
                self.say(f"the next dump will be a full one: {error.message}")

    def ended(self, *, success: bool, signing: Signing, path: str) -> None:
        """CRIU has ended.  If it failed after the commit, nothing may continue this file."""
        if self._done is None:
            return
        if not success:
            self._store.remove(self._done.checkpoint_id)
            if self.tracks:
                self._tracking.begin()
            return
        if not self.step.pre_dump:  # which nobody restores
            self._note()
        if self.step.dedup and self._parent is not None:
            dedup(path, self._done, self.config, signing, self.say)

    def _note(self) -> None:
        """Older checkpoints of this workload are from now on restored on request only."""
        assert self._done is not None
        mark = Mark(self._done.checkpoint_id, self._captured, 1)
        try:
            Newest(self._store.directory).note(self._workload, mark)
        except SystemEnvironmentError as error:
            self.say(error.message)


def states_of(config: Config) -> str:
    """Directory of the state store of this machine."""
    return config.state or DEFAULT_STATE


def store_of(config: Config) -> StateStore:
    """The state store of this machine."""
    return StateStore(states_of(config))


def dedup(path: str, child: ParentRef, config: Config, signing: Signing, say: Say) -> None:
    """Free what the parents of a sealed file lose by it, and say what came of it.  Never raises SealpointError."""
    if not signing.signers:
        say("nothing is freed, because that needs a signer")
        return
    try:
        results = prune_parents(path, child, store_of(config), signing, policy_of(config, signing))
    except SealpointError as error:
        say(f"nothing is freed: {error.message}")
        return
    for result in results:
        say(told(result))


def policy_of(config: Config, signing: Signing) -> TrustPolicy:
    """Whom a machine that dumps believes: those who are configured, and itself."""
    return config.policy(more=signing.signers)


def told(result: Pruned) -> str:
    """What came of one parent, in words."""
    name = f"checkpoint {result.checkpoint_id.hex()}" + (f" ({result.path})" if result.path else "")
    if result.reason:
        return f"nothing is freed of {name}: {result.reason}"
    if not result.freed:
        return f"nothing can be freed of {name}"
    return f"{result.freed} bytes are freed of {name}, which now restores only in this chain"


def reference_of(directory: int) -> ParentRef:
    """By which the sealed file of an images directory is named.  Raises OSError, FileError.

    Nothing of it is authentic; but a state opens only for what this machine itself has sealed.
    """
    fd = os.open(SEALED_IMAGE, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    try:
        file = SealedFile(Descriptor(fd))
        return ParentRef(file.preamble.checkpoint_id, digest(file.origin_envelope.payload))
    finally:
        os.close(fd)


def _images(state: State) -> dict[str, bytes]:
    """The parent's inventory and pagemaps; and its pages images, which CRIU opens but does not read, empty."""
    images = {n: d for n, d in state.sections.items() if n == _INVENTORY or pagemap.is_pagemap(n)}
    for name, data in list(images.items()):
        if name != _INVENTORY:
            images[pagemap.decode(data, name).pages_name] = b""
    return images


def _link(directory: int, target: str) -> None:
    """Make or replace the link `parent`."""
    try:
        if os.readlink(PARENT_LINK, dir_fd=directory) == target:
            return
    except OSError:
        pass
    temporary = f".{PARENT_LINK}.{os.urandom(6).hex()}"
    try:
        os.symlink(target, temporary, dir_fd=directory)
        os.rename(temporary, PARENT_LINK, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        raise SystemEnvironmentError(f"cannot link the parent: {error.strerror}") from None

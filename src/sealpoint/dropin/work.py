"""What the drop-in does for a dump (capture, commit at post-dump) and for a restore (verify, serve, approve)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import Final

from sealpoint import config as configuration, process
from sealpoint.checkpoint import (
    SEALED_IMAGE,
    Admission,
    CaptureFilesystem,
    Expectation,
    Kind,
    Opening,
    Sealer,
    Sealing,
    View,
    check_restorable,
    describe_admitted,
    evidence,
    peer,
    separate_pages,
    signing_by,
    whole,
)
from sealpoint.config import Config
from sealpoint.criu.callers import Callers
from sealpoint.criu.fuse import FuseServer
from sealpoint.dropin import lazy_link, pod as pods
from sealpoint.dropin.increments import Increment, Say, Step, dedup, states_of
from sealpoint.dropin.pod import Pod
from sealpoint.errors import CriuError, PolicyError, SealpointError, UsageError
from sealpoint.format.constants import MAGIC, Suite
from sealpoint.format.statement import ParentRef
from sealpoint.keys import Recipient, Signer
from sealpoint.store.output import OutputFile
from sealpoint.store.page_server import PageServerOutput

_USER_NAMESPACE: Final = re.compile(r"userns-\d+\.img")


def _path(directory: int) -> str:
    """Path of the sealed file in a directory: its name where that still leads there, for the sake of messages."""
    path = f"/proc/self/fd/{directory}"
    try:
        name = os.readlink(path)
        if os.path.samefile(name, path):
            path = name
    except OSError:
        pass
    return f"{path}/{SEALED_IMAGE}"


def _no_passphrase() -> bytes:
    raise UsageError(
        "the drop-in cannot use a key with a passphrase, because it cannot ask for one"
    )


def _once(
    recipients: list[Recipient], metadata: list[Recipient]
) -> tuple[list[Recipient], list[Recipient]]:
    """Each recipient once; of both kinds, as one of everything."""
    full = {r.fingerprint: r for r in recipients}
    others = {r.fingerprint: r for r in metadata if r.fingerprint not in full}
    return list(full.values()), list(others.values())


def opening(config: Config) -> Opening:
    """How the drop-in opens checkpoints: as the configuration says.  Raises UsageError, PolicyError, IdentityError."""
    from sealpoint import keys

    policy = config.policy()
    return Opening(
        policy,
        lambda: [keys.load_identity(i, passphrase=_no_passphrase) for i in config.identities],
        expected=Expectation.of(config.expect_workloads, config.expect),
    )


def load_signer(config: Config) -> Signer:
    """The configured signer.  Raises UsageError, IdentityError."""
    from sealpoint import keys

    if not config.signer:
        raise UsageError(
            "no signer is configured", hint=f"set signer in {configuration.SYSTEM_PATH}"
        )
    return keys.load_signer(
        config.signer,
        passphrase=_no_passphrase,
        certificate=config.signer_certificate or None,
    )


class DumpWork:
    """Seals what CRIU writes; the sealed file appears in the directory before the tree may end.

    passed: whether CRIU asked if the checkpoint is complete, and the answer was yes.
    """

    def __init__(
        self,
        directory: int,
        config: Config,
        pages_out: PageServerOutput | None = None,
        *,
        step: Step | None = None,
        say: Say = lambda _: None,
    ) -> None:
        """pages_out: where memory pages go to, None for the same file.  `say` gets remarks for who asked for the dump.

        Raises SealpointError: no recipients, unusable keys, no space, no FUSE, a stranger's page server, no pre-dump on
        this kernel.
        """
        from sealpoint import keys

        step = step or Step()
        if pages_out is not None and (step.parent or step.track or step.pre_dump):
            raise UsageError("increments cannot be sent to a page server")
        signer = load_signer(config)
        if not config.recipients:
            raise UsageError(
                "no recipient is configured", hint=f"set recipients in {configuration.SYSTEM_PATH}"
            )
        certificates = keys.CertificatePolicy(
            authorities=keys.load_authorities(config.recipient_authorities)
        )
        full, partly = pods.recipients(config, step.pod)
        recipients = [keys.load_recipient(r, policy=certificates) for r in full]
        metadata = [keys.load_recipient(r, policy=certificates) for r in partly]
        if step.pod is not None:  # a namespace may name again who is a recipient of everything
            recipients, metadata = _once(recipients, metadata)
        sealing = Sealing(
            recipients,
            signer,
            metadata,
            suite=config.suite or Suite.AES_256_GCM,
            compression=config.compress or "auto",
        )
        self.passed = False
        self._signing = sealing.signing
        self._step = step
        self._root = process.pid_inside(step.pid) if step.pid > 0 else None
        self._increment = Increment(step, directory, config, say)
        self._out = OutputFile(_path(directory), force=True)  # as CRIU does, but only when complete
        self._pages_out = pages_out
        if pages_out is not None:
            pages_out.prove = partial(peer.prove, self._signing, peer.PAGE_SERVER)
        self._sealers: list[Sealer] = []
        try:
            for out in (self._out, pages_out):
                if out is None:
                    continue
                self._sealers.append(sealing.into(out))
            builders = [sealer.builder for sealer in self._sealers]
            builders[-1].summary = builders[0].summary  # sizes of pages are known there
            self._filesystem = CaptureFilesystem(
                *builders,
                parent=self._increment.parent_images,
                keep=self._increment.tracks,
            )
            self.server = FuseServer(self._filesystem, read_only=False, threads=1)
        except BaseException as error:
            self._give_up(error)
            self._let_go()
            raise

    def _give_up(self, error: BaseException) -> None:
        """Wake whoever waits for a buffer, the disk or the far side."""
        for sealer in reversed(self._sealers):  # the far side first: the other may wait for it
            sealer.abort(error)

    def _let_go(self) -> None:
        if self._pages_out is not None:
            self._pages_out.close()
        self._out.close()

    @property
    def error(self) -> BaseException | None:
        """Why CRIU could not write."""
        return self._filesystem.error

    def when_failed(self, call: Callable[[BaseException], None]) -> None:
        """Call it once, as soon as CRIU cannot write."""
        self._filesystem.on_error = call

    @property
    def _kinds(self) -> frozenset[Kind]:
        """What CRIU's images may be."""
        if self._step.pre_dump:
            return frozenset((Kind.PRE_DUMP,))
        return evidence.WHOLE | ({Kind.INCREMENT} if self.continues else frozenset())

    @property
    def continues(self) -> bool:
        """Whether CRIU is to make an increment."""
        return self._increment.parent_images is not None

    def notified(self, script: str) -> None:
        """At post-dump: complete, durable, named; else an error."""
        if script == "post-dump":
            self.complete()

    def complete(self) -> None:
        """When CRIU has written everything: at post-dump, after a pre-dump at its end.  Raises SealpointError."""
        if self._out.committed:
            return
        self._filesystem.wait_complete(self._kinds, root=self._root)
        main, properties = self._sealers[0], whole.properties({"": str(self._filesystem.kind)})
        for pages in self._sealers[1:]:
            digest = pages.finish(
                properties={"layout": separate_pages.LAYOUT} | whole.properties({"": Kind.PAGES})
            )
            properties |= separate_pages.properties(ParentRef(pages.checkpoint_id, digest))
            pages.sync()
        self._increment.finish(main.builder, self._filesystem, properties)
        main.sync()
        for sealer in reversed(
            self._sealers
        ):  # what this side's file refers to must exist before it does
            sealer.commit()
        self._increment.committed()
        self.passed = True

    def ended(self, *, success: bool) -> None:
        """A dump that failed after the commit leaves no file that could be taken for a checkpoint."""
        if not success:
            self._out.mark_failed()
        self._increment.ended(success=success, signing=self._signing, path=self._out.path)

    def close(self) -> None:
        """Whatever is not committed is gone."""
        self.when_failed(lambda _: None)  # what happens now is no news
        if not self._out.committed:
            error = CriuError("the dump ended before it was complete")
            self._filesystem.fail(error)
            self._give_up(error)
        self.server.close()
        self._let_go()  # last: nobody writes any more


class RestoreWork:
    """Verifies, serves, and approves at post-restore.

    passed: whether CRIU asked if everything has verified, and the answer was yes.
    """

    def __init__(
        self,
        directory: int,
        config: Config,
        say: Say = lambda _: None,
        *,
        tell: Say = lambda _: None,
        auto_dedup: bool = False,
        lazy: int | None = None,
        siblings: bool = False,
        pod: Pod | None = None,
    ) -> None:
        """auto_dedup: free what the parents lose by it when it is restored; `say` gets what came of that.

        tell: gets what is restored, at the gate.
        lazy: CRIU's work directory for a lazy restore, in which its daemon listens.
        pod: the container that is restored, None if it is in no pod.
        siblings: whether the first task becomes CRIU's sibling, and CRIU does not tell its pid.
        Raises SealpointError: not sealed, trusted, allowed or for us, damaged, a parent is missing or another.
        """
        self._config, self._say = config, say
        self._dedup = auto_dedup
        self.passed = False
        self.tasks: Callable[[], list[int]] = (
            list  # pids of what CRIU restores, from whoever follows it
        )
        if lazy is not None and auto_dedup:
            raise UsageError("auto-dedup would free pages that a lazy restore still needs")
        _require_sealed(directory)
        self._tell = tell
        self._checkpoint = opening(config).open(_path(directory))
        self._link: lazy_link.LazyLink | None = None
        try:
            pods.require_place(config, pod, self._checkpoint.origin.workload)
            self._admission = Admission(self._checkpoint, states_of(config), tell)
            if lazy is not None:
                require_lazy(config)
                self._link = lazy_link.LazyLink(lazy, self.reference)
            check_restorable(self._checkpoint.file())
            self._checkpoint.require_chunks()
            flat = self._checkpoint.flat
            self._view = View(flat)
            self._seen = flat.observe()
            whole.require_pages(self._seen)
            others = any(_USER_NAMESPACE.fullmatch(name) for name in flat.images)
            callers = Callers(siblings=siblings) if others else None
            self.server = FuseServer(self._view, read_only=True, callers=callers)
        except BaseException:
            if self._link is not None:
                self._link.close()
            self._checkpoint.close()
            raise

    def notified(self, script: str) -> None:
        """At post-restore, before any restored code runs: everything has verified, asked for or not."""
        if script != "post-restore":
            return
        if self._view.error is not None:
            raise self._view.error
        evidence.require_opened(self._seen, self._view.opened, lazy=self._link is not None)
        if self._link is not None:
            self._link.check()  # it authenticates each page before its use
        else:
            self._view.verify_rest()
        for line in describe_admitted(self._checkpoint):
            self._tell(f"restoring {line}")
        self._admission.permit()
        if self.server.callers is not None:
            self.server.callers.dismiss()
        self._admission.passed(self.tasks())
        self.passed = True

    @property
    def reference(self) -> ParentRef:
        """By which this checkpoint is told from others."""
        return self._checkpoint.reference

    @property
    def error(self) -> BaseException | None:
        """Why CRIU could not read."""
        return self._view.error

    def when_failed(self, call: Callable[[BaseException], None]) -> None:
        """Call it once, as soon as CRIU cannot read."""
        self._view.on_error = call

    def complete(self) -> None:
        """All has been asked at post-restore."""

    def ended(self, *, success: bool) -> None:
        """CRIU has undone a failed restore itself."""
        if success and self._dedup and len(self._checkpoint.links) > 1:
            link = self._checkpoint.links[0]
            signing = signing_by(load_signer(self._config) if self._config.signer else None)
            dedup(link.path, link.reference, self._config, signing, self._say)

    def close(self) -> None:
        """Let go."""
        if self._link is not None:
            self._link.close()
        self.server.close()
        self._checkpoint.close()


def require_lazy(config: Config) -> None:
    """Raises PolicyError unless the configuration allows what a lazy restore means."""
    if not config.allow_lazy_restore:
        raise PolicyError(
            "a lazy restore runs the tree before all of its memory was verified, which is not allowed here",
            hint=f"set allow_lazy_restore = true in {configuration.SYSTEM_PATH}",
        )


def is_plain(directory: int) -> bool:
    """Whether a directory holds images that are not sealed.  Raises SealpointError: it holds none at all."""
    try:
        fd = os.open(_path(directory), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        raise SealpointError(f"the images directory holds no {SEALED_IMAGE}") from None
    try:
        return os.pread(fd, len(MAGIC), 0) != MAGIC
    finally:
        os.close(fd)


def _require_sealed(directory: int) -> None:
    if is_plain(directory):
        raise PolicyError(
            "the checkpoint is not sealed: this machine restores sealed checkpoints only",
            hint="seal it first, restore it with the real CRIU, or set allow_plain_images = true in "
            + configuration.SYSTEM_PATH,
        )

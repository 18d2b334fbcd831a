"""What the drop-in does for a dump (capture, commit at post-dump) and for a restore (verify, serve, approve)."""

from __future__ import annotations

import os
from collections.abc import Callable

from sealpoint import config as configuration
from sealpoint.checkpoint import pages_file
from sealpoint.checkpoint.access import Checkpoint, require_trust, signing_by, wrap_for
from sealpoint.checkpoint.builder import CheckpointBuilder
from sealpoint.checkpoint.capture_fs import CaptureFilesystem
from sealpoint.checkpoint.restore import check_restorable
from sealpoint.checkpoint.view import View
from sealpoint.config import Config
from sealpoint.criu.fuse import FuseServer
from sealpoint.criu.roles import is_pages
from sealpoint.dropin.session import IMAGE
from sealpoint.errors import CriuError, PolicyError, SealpointError, UsageError
from sealpoint.format.constants import MAGIC, Suite
from sealpoint.format.reader import Scratch
from sealpoint.format.statement import ParentRef
from sealpoint.format.writer import SealedWriter
from sealpoint.store.output import OutputFile
from sealpoint.store.page_server import PageServerOutput


def _path(directory: int) -> str:
    """Path of the sealed file in a directory: its name where that still leads there, for the sake of messages."""
    path = f"/proc/self/fd/{directory}"
    try:
        name = os.readlink(path)
        if os.path.samefile(name, path):
            path = name
    except OSError:
        pass
    return f"{path}/{IMAGE}"


def _no_passphrase() -> bytes:
    raise UsageError(
        "a key with a passphrase cannot be used by the drop-in: nobody is there to be asked"
    )


class DumpWork:
    """Seals what CRIU writes; the sealed file appears in the directory before the tree may end."""

    def __init__(
        self, directory: int, config: Config, pages_out: PageServerOutput | None = None
    ) -> None:
        """pages_out: where memory pages go to, None for the same file.

        Raises SealpointError: no recipients, unusable keys, no space, no FUSE, a stranger's page server.
        """
        from sealpoint import keys

        if not config.signer:
            raise UsageError(
                "no signer is configured", hint=f"set signer in {configuration.SYSTEM_PATH}"
            )
        if not config.recipients:
            raise UsageError(
                "no recipient is configured", hint=f"set recipients in {configuration.SYSTEM_PATH}"
            )
        certificates = keys.CertificatePolicy(
            authorities=keys.load_authorities(config.recipient_authorities)
        )
        recipients = [keys.load_recipient(r, policy=certificates) for r in config.recipients]
        metadata = [keys.load_recipient(r, policy=certificates) for r in config.metadata_recipients]
        signer = keys.load_signer(
            config.signer,
            passphrase=_no_passphrase,
            certificate=config.signer_certificate or None,
        )
        wanted = config.suite or Suite.AES_256_GCM.label
        suite = next((s for s in Suite if s.label == wanted), Suite.AES_256_GCM)
        self._out = OutputFile(_path(directory), force=True)  # as CRIU does, but only when complete
        self._pages_out = pages_out
        self._builders: list[CheckpointBuilder] = []
        try:
            for out in (self._out, pages_out):
                if out is None:
                    continue
                writer = SealedWriter(
                    out,
                    suite=suite,
                    wrap=wrap_for(recipients, metadata),
                    signing=signing_by(signer),
                )
                builder = CheckpointBuilder(writer, compression=config.compress or "auto")
                self._builders.append(builder)
            self._builders[-1].summary = self._builders[0].summary  # sizes of pages are known there
            self._filesystem = CaptureFilesystem(*self._builders)
            self.server = FuseServer(self._filesystem, read_only=False, threads=1)
        except BaseException as error:
            self._give_up(error)
            self._let_go()
            raise

    def _give_up(self, error: BaseException) -> None:
        """Wake whoever waits for a buffer, the disk or the far side."""
        if self._pages_out is not None:
            self._pages_out.cancel()
        for builder in self._builders:
            builder.abort(error)

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

    def notified(self, script: str) -> None:
        """At post-dump: complete, durable, named; else an error."""
        if script != "post-dump":
            return
        self._filesystem.wait_complete()
        main, properties = self._builders[0], {}
        if self._pages_out is not None:
            pages = self._builders[1]
            digest = pages.finish(properties={"layout": pages_file.LAYOUT})
            properties = pages_file.properties(ParentRef(pages.checkpoint_id, digest))
            self._pages_out.sync()
        main.finish(properties=properties)
        self._out.sync()
        if self._pages_out is not None:
            self._pages_out.commit()  # what this side's file refers to must exist before it does
        self._out.commit()

    def ended(self, *, success: bool) -> None:
        """A dump that failed after the commit leaves no file that could be taken for a checkpoint."""
        if not success:
            self._out.mark_failed()

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
    """Verifies, serves, and approves at post-restore."""

    def __init__(self, directory: int, config: Config) -> None:
        """Raises SealpointError: not sealed, not trusted, not for us, damaged."""
        from sealpoint import keys

        _require_sealed(directory)
        policy = keys.load_trust(config.trust, ca_bundles=config.signer_authorities)
        require_trust(policy)
        identities = [keys.load_identity(i, passphrase=_no_passphrase) for i in config.identities]
        self._checkpoint = Checkpoint.open(_path(directory), policy)
        try:
            opened = pages_file.join(
                self._checkpoint.unlock(identities),
                os.path.dirname(_path(directory)),
                policy,
                identities,
            )
            check_restorable(opened)
            self._view = View(opened)
            scratch = Scratch()
            for entry in opened.entries.values():
                if not is_pages(entry.name):
                    for _ in opened.read(entry, scratch):
                        pass
            self.server = FuseServer(self._view, read_only=True)
        except BaseException:
            os.close(self._checkpoint.fd)
            raise

    def notified(self, script: str) -> None:
        """At post-restore, before any restored code runs: everything has verified, asked for or not."""
        if script != "post-restore":
            return
        if self._view.error is not None:
            raise self._view.error
        self._view.verify_rest()

    @property
    def error(self) -> BaseException | None:
        """Why CRIU could not read."""
        return self._view.error

    def when_failed(self, call: Callable[[BaseException], None]) -> None:
        """Call it once, as soon as CRIU cannot read."""
        self._view.on_error = call

    def ended(self, *, success: bool) -> None:
        """CRIU has undone a failed restore itself."""

    def close(self) -> None:
        """Let go."""
        self.server.close()
        os.close(self._checkpoint.fd)


def _require_sealed(directory: int) -> None:
    try:
        fd = os.open(_path(directory), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        raise SealpointError(f"the images directory holds no {IMAGE}") from None
    try:
        sealed = os.pread(fd, len(MAGIC), 0) == MAGIC
    finally:
        os.close(fd)
    if not sealed:
        raise PolicyError(
            "the checkpoint is not sealed: this machine restores sealed checkpoints only",
            hint="seal it first, or restore it with the real CRIU",
        )

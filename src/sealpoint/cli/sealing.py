"""The one decorator of commands that seal a checkpoint, and what its options mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import click

from sealpoint.cli import keyring, options
from sealpoint.cli.printable import printable
from sealpoint.errors import UsageError
from sealpoint.format.constants import Suite

if TYPE_CHECKING:
    from sealpoint.checkpoint import Sealing
    from sealpoint.store.output import Destination, OutputFile, OutputPipe
    from sealpoint.store.spooled import SpooledOutput
    from sealpoint.store.uploading import RemoteOutput, StoreDestination


@dataclass(frozen=True)
class SealOptions:
    """What the command line says about how to seal; the fields are the options of their names.

    stores: whether the output may be a URL.
    """

    recipients: tuple[str, ...] = ()
    metadata_recipients: tuple[str, ...] = ()
    allow_expired_recipient: bool = False
    signer: str | None = None
    sign_certificate: str | None = None
    sign_passphrase_file: str | None = None
    unsigned: bool = False
    passphrase_file: str | None = None
    compress: str | None = None
    suite: str | None = None
    force: bool = False
    output: str = ""
    spool: str | None = None
    unconditional: bool = False
    stores: bool = False

    def sealing(self) -> Sealing:
        """Recipients, signer and form: the options, else the configuration.  Raises UsageError, IdentityError."""
        from sealpoint.checkpoint import Sealing, require_recipient

        config = keyring.configured()
        full = list(self.recipients) or list(config.recipients)
        require_recipient(full)  # before anybody is asked for a passphrase
        metadata = list(self.metadata_recipients)
        if not metadata and not self.recipients:
            metadata = list(config.metadata_recipients)
        load = functools.partial(
            keyring.load_recipients,
            passphrases=keyring.Passphrases(self.passphrase_file),
            config=config,
            allow_expired=self.allow_expired_recipient,
        )
        return Sealing(
            recipients=load(full),
            metadata_recipients=load(metadata),
            signer=keyring.load_signer(
                self.signer,
                self.sign_certificate,
                self.sign_passphrase_file,
                config,
                unsigned=self.unsigned,
            ),
            unsigned=self.unsigned,
            suite=self.suite or config.suite or Suite.AES_256_GCM,
            compression=self.compress or config.compress or "auto",
        )

    @functools.cached_property
    def target(self) -> Destination | StoreDestination:
        """Where the sealed file goes, as it was when this was first asked.  Raises UsageError."""
        from sealpoint.store.location import is_url
        from sealpoint.store.output import destination

        if self.stores and is_url(self.output):
            from sealpoint.store.uploading import StoreDestination

            return StoreDestination(self.output)
        if self.spool is not None or self.unconditional:
            raise UsageError("--spool and --unconditional are for an output in a store")
        return destination(self.output)

    @property
    def remote(self) -> bool:
        """Whether the sealed file goes to a store."""
        from sealpoint.store.output import Destination

        return not isinstance(self.target, Destination)

    @property
    def piped(self) -> bool:
        """Whether the sealed file goes into a pipe or the like, so that words have to go to standard error."""
        return self.target.streams

    @property
    def where(self) -> str:
        """The output, for people."""
        return printable(self.target.label)

    def open_output(
        self, *, timeout: float | None = None, later: bool = False
    ) -> AbstractContextManager[OutputFile | OutputPipe | RemoteOutput]:
        """What the sealed file is written to; timeout, later: of a store, see `uploading.Writing`.

        Raises UsageError, SystemEnvironmentError.
        """
        from sealpoint.store.output import Destination

        target = self.target
        if isinstance(target, Destination):
            return target.open(force=self.force)
        from sealpoint.store.uploading import Writing

        return target.open(
            Writing(
                force=self.force,
                unconditional=self.unconditional,
                spool=self.spool,
                timeout=timeout,
                later=later,
            )
        )

    def open_spooled(self) -> SpooledOutput:
        """For an output in a store: what is durable in --spool before the store gets it.

        Raises UsageError, SystemEnvironmentError.
        """
        if not self.remote or self.spool is None:
            raise UsageError(
                "--commit spool is for an output in a store, and needs --spool DIR",
                hint="the sealed file lies in that directory until the store has it",
            )
        from sealpoint.store.spooled import SpooledOutput
        from sealpoint.store.uploading import Writing

        how = Writing(force=self.force, unconditional=self.unconditional)
        return SpooledOutput(self.output, self.spool, how)


_FIELDS: Final = tuple(field.name for field in fields(SealOptions))
A_FILE: Final = "The sealed file, or - for standard output."
A_FILE_OR_URL: Final = (
    "The sealed file; - for standard output; or its URL, s3://bucket/key or oci://host/name:tag."
)


def seals_checkpoint(
    output: str | None = None, *, metavar: str = "FILE|-", new: bool = True, stores: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the options of a command that seals a checkpoint, which it gets as `seal`.

    output: the help of its --output; None where the command has none.  new: False where it only replaces files of its
    own, which keep their form.  stores: the output may be a URL.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*args: Any, **given: Any) -> Any:
            own = [n for n in _FIELDS if n in given and (n != "output" or output is not None)]
            told = {name: given.pop(name) for name in own}
            return command(*args, seal=SealOptions(stores=stores, **told), **given)

        parts = [options.recipient_options, options.sign_options]
        if new:
            parts += [options.unsigned_option, options.passphrase_file, options.form_options]
            parts.append(options.force_option)
        else:
            parts.append(options.passphrase_file)
        if output is not None:
            parts.insert(
                0, click.option("-o", "--output", required=True, metavar=metavar, help=output)
            )
        if stores:
            parts += [options.upload_options, options.plain_http_option]
        return options.stack(*parts)(run)

    return decorate

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
from sealpoint.format.constants import Suite

if TYPE_CHECKING:
    from sealpoint.checkpoint import Sealing
    from sealpoint.store.output import Destination, OutputFile, OutputPipe


@dataclass(frozen=True)
class SealOptions:
    """What the command line says about how to seal; the fields are the options of their names."""

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
    def target(self) -> Destination:
        """Where the sealed file goes, as it was when this was first asked.  Raises UsageError."""
        from sealpoint.store.output import destination

        return destination(self.output)

    @property
    def piped(self) -> bool:
        """Whether the sealed file goes into a pipe or the like, so that words have to go to standard error."""
        return self.target.streams

    @property
    def where(self) -> str:
        """The output, for people."""
        return printable(self.target.label)

    def open_output(self) -> AbstractContextManager[OutputFile | OutputPipe]:
        """What the sealed file is written to.  Raises UsageError, SystemEnvironmentError."""
        return self.target.open(force=self.force)


_FIELDS: Final = tuple(field.name for field in fields(SealOptions))
A_FILE: Final = "The sealed file, or - for standard output."


def seals_checkpoint(
    output: str | None = None, *, metavar: str = "FILE|-", new: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the options of a command that seals a checkpoint, which it gets as `seal`.

    output: the help of its --output; None where the command has none.  new: False where it only replaces files of its
    own, which keep their form.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*args: Any, **given: Any) -> Any:
            own = [n for n in _FIELDS if n in given and (n != "output" or output is not None)]
            told = {name: given.pop(name) for name in own}
            return command(*args, seal=SealOptions(**told), **given)

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
        return options.stack(*parts)(run)

    return decorate

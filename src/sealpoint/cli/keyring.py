"""Passphrases, keys and recipients that a command was given, or that the configuration names."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from sealpoint import config as configuration
from sealpoint.cli.notice import warn_ownership, warn_permissions
from sealpoint.config import Config
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.keys import Identity, Recipient, Signer

PASSPHRASE: Final = "passphrase"  # noqa: S105 - the literal that asks for a passphrase in place of a key
_MAX_PASSPHRASE: Final = 4096
_CONFIGURATION: Final = "sealpoint.configuration"


def configured() -> Config:
    """The configuration files, for what options leave open; read once for each command."""
    kept = click.get_current_context().find_root().meta
    if _CONFIGURATION not in kept:
        kept[_CONFIGURATION] = configuration.load()
    config: Config = kept[_CONFIGURATION]
    return config


class Passphrases:
    """Passphrases from a file or a prompt: each prompt is shown once, a file has one passphrase."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._known: dict[str, bytes] = {}

    def get(self, prompt: str = "Passphrase", *, confirm: bool = False) -> bytes:
        """Raises UsageError where there is neither a file nor a terminal."""
        key = "" if self._path else prompt
        if key not in self._known:
            value = self._read(self._path) if self._path else _ask(prompt, confirm=confirm)
            if not value:
                raise UsageError("the passphrase is empty")
            self._known[key] = value
        return self._known[key]

    @staticmethod
    def _read(path: str) -> bytes:
        try:
            if path == "-":
                if sys.stdin is None:
                    raise UsageError("there is no standard input to read the passphrase from")
                data = sys.stdin.buffer.readline(_MAX_PASSPHRASE + 1)
            else:
                with open(path, "rb") as file:
                    data = file.readline(_MAX_PASSPHRASE + 1)
        except OSError as error:
            raise UsageError(f"passphrase file {path}: {error.strerror}") from None
        if len(data) > _MAX_PASSPHRASE:
            raise UsageError(f"the passphrase is longer than {_MAX_PASSPHRASE} bytes")
        return data.rstrip(b"\r\n")


def _ask(prompt: str, *, confirm: bool) -> bytes:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        raise UsageError(
            "a passphrase is needed, and there is no terminal to ask for it",
            hint="give --passphrase-file (or --sign-passphrase-file for a signing key)",
        ) from None
    value: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return value.encode(errors="surrogateescape")


def check_standard_input(file: str, passphrase_file: str | None) -> None:
    """Raises UsageError if both the checkpoint and the passphrase are to come from standard input."""
    if file == passphrase_file == "-":
        raise UsageError(
            "standard input cannot carry both the checkpoint and the passphrase",
            hint="put the passphrase into a file: --passphrase-file F",
        )


def load_recipients(
    names: Sequence[str], passphrases: Passphrases, config: Config, *, allow_expired: bool
) -> list[Recipient]:
    """Files and literals to recipients."""
    from sealpoint import keys

    policy = keys.CertificatePolicy(
        authorities=keys.load_authorities(config.recipient_authorities), allow_expired=allow_expired
    )
    warn_ownership(names)
    return [
        keys.passphrase_recipient(passphrases.get("New passphrase", confirm=True))
        if name == PASSPHRASE
        else keys.load_recipient(name, policy=policy)
        for name in names
    ]


def load_signer(
    signer: str | None,
    certificate: str | None,
    passphrase_path: str | None,
    config: Config,
    *,
    unsigned: bool = False,
) -> Signer | None:
    """Who signs: the option, else the configuration; None if `unsigned`.  Raises UsageError where nothing says."""
    from sealpoint import keys

    path = signer or config.signer
    if unsigned:
        if signer:
            raise UsageError("--sign and --unsigned contradict each other")
        return None
    if not path:
        raise UsageError(
            "no signing key given",
            hint="name one with --sign, or in config.toml; make one with: sealpoint keygen DIR --signer",
        )
    passphrases = Passphrases(passphrase_path)
    chain = certificate or (config.signer_certificate if not signer else "")
    loaded = keys.load_signer(
        path,
        passphrase=partial(passphrases.get, f"Passphrase of {path}"),
        certificate=chain or None,
    )
    warn_permissions([path])
    warn_ownership([path, chain] if chain else [path])
    return loaded


def load_identities(
    names: Sequence[str], passphrases: Passphrases, config: Config
) -> list[Identity]:
    """Private keys: the options, else the configuration.  Empty if neither names any."""
    from sealpoint import keys

    chosen = list(names) or list(config.identities)
    loaded = [
        keys.passphrase_identity(passphrases.get())
        if name == PASSPHRASE
        else keys.load_identity(name, passphrase=partial(passphrases.get, f"Passphrase of {name}"))
        for name in chosen
    ]
    files = [n for n in chosen if n != PASSPHRASE]
    warn_permissions(files)
    warn_ownership(files)
    return loaded

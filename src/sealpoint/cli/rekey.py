"""`sealpoint rekey`."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from sealpoint.cli import keyring, notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.format.writer import Signing
    from sealpoint.keys import TrustPolicy


@click.command()
@click.argument("file", metavar="FILE|URL")
@reads_checkpoint()
@options.sign_options
@click.option(
    "--add",
    multiple=True,
    metavar="RECIPIENT",
    help="Add a recipient who can open everything. Repeatable.",
)
@click.option(
    "--add-metadata",
    multiple=True,
    metavar="RECIPIENT",
    help="Add a recipient who can read metadata only. Repeatable.",
)
@click.option(
    "--remove",
    multiple=True,
    metavar="FINGERPRINT|FILE",
    help='Remove a recipient: a recipient file, "passphrase", or 8 or more digits of a fingerprint. '
    "Repeatable.",
)
@click.option("--repair", is_flag=True, help="Finish or undo a rekey that was interrupted.")
@options.json_option
def command(
    *,
    file: str,
    reading: Reading,
    signer: str | None,
    sign_certificate: str | None,
    sign_passphrase_file: str | None,
    add: tuple[str, ...],
    add_metadata: tuple[str, ...],
    remove: tuple[str, ...],
    repair: bool,
    as_json: bool,
) -> None:
    """Change who can open a sealed file. Only the header is rewritten; pages are untouched, whatever the size.

    Without --trust, and without `trust` in the configuration, the file must be signed by the key that signs now.
    A removed recipient may have kept the keys or a copy. To shut them out for good, seal anew.

    \b
    Example:
      sealpoint rekey app.sealed -i keys/identity.key --sign keys/signer.key --add colleague.pub
    """
    reading.harden()
    from sealpoint.checkpoint import RekeyRequest, describe_stanza, rekey, signing_by

    config = keyring.configured()
    load = partial(
        keyring.load_recipients,
        passphrases=keyring.Passphrases(reading.passphrase_file),
        config=config,
        allow_expired=False,
    )
    changes = bool(add or add_metadata or remove)
    unsigned = not changes and not signer
    signing = signing_by(
        keyring.load_signer(
            signer, sign_certificate, sign_passphrase_file, config, unsigned=unsigned
        )
    )
    request = RekeyRequest(
        identities=reading.keys(),
        signing=signing,
        policy=_policy(reading, signing, changes=changes or bool(signer)),
        add=load(add),
        add_metadata=load(add_metadata),
        remove=[_fingerprint(r) for r in remove],
        repair=repair,
    )
    if not request.identities:
        raise UsageError("no identity given", hint="name one with -i, or in config.toml")
    result = rekey(file, request)
    if result.other_signer:
        notice.warn(
            "the header is now signed by a different key than the contents: "
            "anyone who opens the file must trust both signers"
        )
    if as_json:
        recipients = [
            {"name": describe_stanza(s), "fingerprint": s.fingerprint.hex()} for s in result.stanzas
        ]
        echo_json({"sequence": result.sequence, "recipients": recipients})
        return
    click.echo(
        f"{printable(file)}: header {result.sequence}{', repaired' if result.repaired else ''}, sealed to"
    )
    for stanza in result.stanzas:
        click.echo(f"  {printable(describe_stanza(stanza))}")


def _policy(reading: Reading, signing: Signing, *, changes: bool) -> TrustPolicy:
    """Without a policy it is about the own file, which the key that signs has signed.

    A header that somebody else wrote must not get its signature.  A repair alone signs nothing.
    """
    named = reading.trust if reading.names_trust else tuple(signing.signers)
    anyone = reading.allow_unsigned or not (changes or reading.names_trust)
    return replace(reading, trust=named, allow_unsigned=anyone).policy()


def _fingerprint(text: str) -> str:
    from sealpoint import keys

    if text == keyring.PASSPHRASE:
        return bytes(32).hex()
    if not os.path.exists(text):
        if re.fullmatch(r"[0-9a-fA-F]{8,64}", text):
            return text.lower()
        if not text.startswith("sealpoint-"):
            raise UsageError(
                f"--remove {text}: no such file, and not 8 or more digits of a fingerprint",
                hint="sealpoint info FILE --json shows the fingerprints",
            )
    policy = keys.CertificatePolicy(allow_expired=True)  # an expired recipient must be removable
    return keys.load_recipient(text, policy=policy).fingerprint.hex()

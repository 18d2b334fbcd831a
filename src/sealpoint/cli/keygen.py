"""`sealpoint keygen DIR`."""

from __future__ import annotations

import click

from sealpoint.cli import keyring, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import UsageError


@click.command()
@click.argument("directory", metavar="DIR")
@click.option(
    "--kind",
    type=click.Choice(["hybrid", "x25519", "p256", "x509-rsa", "x509-ec"]),
    default="hybrid",
    show_default=True,
    help="hybrid is post-quantum (ML-KEM-768 with X25519).",
)
@click.option("--signer", is_flag=True, help="Make a signer (Ed25519) instead of an identity.")
@click.option("--passphrase", "ask", is_flag=True, help="Protect the private key by a passphrase.")
@options.passphrase_file
@options.json_option
def command(
    directory: str,
    kind: str,
    *,
    signer: bool,
    ask: bool,
    passphrase_file: str | None,
    as_json: bool,
) -> None:
    """Make keys in DIR, which is created if needed; nothing is ever overwritten.

    A signer can have an X.509 certificate as well: for authorities to vouch for it, its extended key usage must hold
    2.25.223898105948795403434191639562428190798.

    \b
    Example:
      sealpoint keygen keys            identity.key, recipient.pub
      sealpoint keygen keys --signer   signer.key, signer.pub
    """
    from sealpoint.keys import generate

    if signer and kind != "hybrid":
        raise UsageError("--kind is for identities: a signer is always an Ed25519 key")
    secret = None
    if ask or passphrase_file:
        secret = keyring.Passphrases(passphrase_file).get("New passphrase", confirm=True)
    if signer:
        made = generate.generate_signer(directory, passphrase=secret)
    else:
        made = generate.generate(kind, directory, passphrase=secret)
    if as_json:
        values = {"private": made.private, "public": made.public, "fingerprint": made.fingerprint}
        echo_json(values, indent=None)
    else:
        click.echo(
            f"{printable(made.private)}  (keep secret)\n{printable(made.public)}  (give away)"
        )
        click.echo(f"fingerprint {made.fingerprint}")

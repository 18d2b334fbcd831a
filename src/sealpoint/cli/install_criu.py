"""`sealpoint install-criu`."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sealpoint.cli import notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.config import Config

if TYPE_CHECKING:
    from sealpoint.machine.install import Installed


@click.command()
@click.option(
    "--prefix",
    default="/usr/local/sbin",
    show_default=True,
    metavar="DIR",
    help="Where to put the executable `criu`; must come before the real one in PATH.",
)
@click.option(
    "-r",
    "--recipient",
    "recipients",
    multiple=True,
    metavar="RECIPIENT",
    help='A recipient who can open checkpoints: a file, or a literal "sealpoint-...:". Repeatable.',
)
@click.option(
    "--metadata-recipient",
    "metadata_recipients",
    multiple=True,
    metavar="RECIPIENT",
    help="A recipient who can read the process tree and files, but no memory. Repeatable.",
)
@click.option("--sign", "signer", metavar="KEY", help="Private key that signs, without passphrase.")
@click.option("--sign-certificate", metavar="PEM", help="X.509 chain of the signing key.")
@click.option(
    "--trust", multiple=True, metavar="SIGNER", help="A signer to trust on restore. Repeatable."
)
@click.option(
    "-i",
    "--identity",
    "identities",
    multiple=True,
    metavar="IDENTITY",
    help="Private key that opens checkpoints; without one this machine can only dump. Repeatable.",
)
@click.option("--criu", metavar="PATH", help="The real CRIU (default: the next one in PATH).")
@click.option(
    "--compress",
    type=click.Choice(["auto", "none", "lz4", "zstd"]),
    help="Compression before encryption.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace an existing configuration (uninstall-criu puts it back), and install even if CRIU does not work.",
)
@click.option("--from-checkout", is_flag=True, hidden=True)
@options.json_option
def command(
    prefix: str,
    *,
    recipients: tuple[str, ...],
    metadata_recipients: tuple[str, ...],
    signer: str | None,
    sign_certificate: str | None,
    trust: tuple[str, ...],
    identities: tuple[str, ...],
    criu: str | None,
    compress: str | None,
    force: bool,
    from_checkout: bool,
    as_json: bool,
) -> None:
    """Put sealpoint's `criu` in front of the real one, so that every container engine seals its checkpoints.

    Writes the executable into the prefix and the settings into /etc/sealpoint/config.toml; asks for what is missing.
    Keys stay where they are. An existing configuration is used as it is if no settings are given.

    \b
    Example:
      sealpoint install-criu -r recipient.pub --sign /etc/sealpoint/signer.key
      sealpoint install-criu -r recipient.pub --sign signer.key -i identity.key --trust signer.pub
    """
    notice.protect()
    from sealpoint.machine import configure
    from sealpoint.machine.install import Request, existing_config, install

    def names(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(configure.absolute(v) for v in values)

    settings = Config(
        recipients=names(recipients),
        metadata_recipients=names(metadata_recipients),
        signer=configure.absolute(signer) if signer else "",
        signer_certificate=configure.absolute(sign_certificate) if sign_certificate else "",
        trust=names(trust),
        identities=names(identities),
        criu=configure.absolute(criu) if criu else "",
        compress=compress or "",
    )
    whole = configure.merged(existing_config(), settings)
    if not configure.can_seal(whole) and not configure.can_open(whole) and os.isatty(0):
        settings = configure.merged(settings, _ask(whole))
    done = install(Request(prefix, settings, force, from_checkout))
    for warning in done.warnings:
        notice.warn(warning)
    if as_json:
        echo_json(asdict(done))
    else:
        _print(done)


def _ask(known: Config) -> Config:
    """What is missing, from whoever sits there."""
    from sealpoint.machine import configure

    def ask(what: str) -> str:
        answer: str = click.prompt(what, default="", show_default=False, err=True)
        return configure.absolute(answer) if answer else ""

    click.echo(
        "Recipients who can open this machine's checkpoints (files, or sealpoint-...: literals):",
        err=True,
    )
    recipients = list(known.recipients)
    while not recipients or (name := ask("Another recipient (empty: no more)")):
        recipients.append(ask("Recipient") if not recipients else name)
        recipients = [r for r in recipients if r]
    signer = known.signer
    while not signer:
        signer = ask("Private key that signs them (see: sealpoint keygen DIR --signer)")
    identities, trust = list(known.identities), list(known.trust)
    if not identities and (
        name := ask("Identity for restoring here (empty: this machine only dumps)")
    ):
        identities = [name]
    while identities and not trust:
        trust = [name for name in [ask("Signer to trust (signer.pub)")] if name]
    return Config(
        recipients=tuple(recipients),
        signer=signer,
        identities=tuple(identities),
        trust=tuple(trust),
    )


def _print(done: Installed) -> None:
    what = {
        (True, True): "dumps are sealed, sealed checkpoints are restored",
        (True, False): "dumps are sealed; without an identity nothing can be restored here",
        (False, True): "sealed checkpoints are restored; without recipients nothing can be dumped",
    }[done.can_seal, done.can_open]
    config = "written" if done.config_written else "used as it is"
    click.echo(
        printable(f"{done.executable} is now found before {done.criu} (CRIU {done.version})")
    )
    click.echo(f"/etc/sealpoint/config.toml {config}: {what}")
    click.echo("check it with: sealpoint doctor")

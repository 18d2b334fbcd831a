"""`sealpoint policy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.errors import FileError

if TYPE_CHECKING:
    from sealpoint.checkpoint import Opinion
    from sealpoint.format.reader import AuthenticFile


@click.group()
def command() -> None:
    """Show whom this machine trusts: what its configuration, or --trust, says about a file.

    \b
    Example:
      sealpoint policy check app.sealed
    """


@command.command()
@click.argument("file", metavar="FILE|-")
@reads_checkpoint(keys=False)
@options.json_option
def check(*, file: str, reading: Reading, as_json: bool) -> None:
    """Show whether a sealed file would be trusted, and why: each statement, each signature, each signer trusted.

    Every statement needs one reason. No decryption key is needed, and frames are not checked: use verify for that.
    Exit code 0 if the file is trusted, 5 if it is not.

    \b
    Example:
      sealpoint policy check app.sealed
    """
    from sealpoint.checkpoint import Opening, explain
    from sealpoint.keys.load import in_file
    from sealpoint.store.source import open_input

    policy = reading.policy()
    Opening(policy).require_trust()
    label = "standard input" if file == "-" else file
    source = open_input(file)
    try:
        authentic, opinions, refusal = explain(source, policy)
    except FileError as error:
        raise in_file(error, label) from None
    finally:
        source.close()
    if as_json:
        values = _values(authentic, opinions)
        echo_json({"file": file, "believed": refusal is None, **values})
    else:
        _print(authentic, opinions)
    if refusal is not None:
        raise in_file(refusal, label)
    if not as_json:
        click.echo("trusted" if all(o.believed for o in opinions) else "accepted unsigned")


def _values(authentic: AuthenticFile, opinions: tuple[Opinion, ...]) -> dict[str, Any]:
    origin = authentic.origin
    return {
        "checkpoint": origin.checkpoint_id.hex(),
        "workload": origin.workload,
        "kind": origin.kind,
        "captured": origin.captured,
        "statements": [
            {
                "statement": opinion.statement,
                "believed": opinion.believed,
                "reasons": [
                    {
                        "believed": r.believed,
                        "signer": r.signer,
                        "key": r.key_id,
                        "trusted_as": r.grant,
                        "text": r.text,
                    }
                    for r in opinion.reasons
                ],
            }
            for opinion in opinions
        ],
    }


def _print(authentic: AuthenticFile, opinions: tuple[Opinion, ...]) -> None:
    from sealpoint.keys.certificate import show_time

    origin = authentic.origin
    workload = f"workload {origin.workload}" if origin.workload else "no workload"
    captured = show_time(min(origin.captured, 1 << 37))
    click.echo(printable(f"checkpoint {origin.checkpoint_id.hex()}"))
    click.echo(printable(f"{workload}, kind {origin.kind}, captured {captured}"))
    for opinion in opinions:
        if not opinion.reasons:
            click.echo(f"{opinion.statement}: no: not signed")
        for reason in opinion.reasons:
            answer = "yes" if reason.believed else "no"
            trusted = f", trusted as {reason.grant}" if reason.grant else ""
            text = f": {reason.text}" if reason.text else ""
            click.echo(
                printable(
                    f"{opinion.statement}: {answer}: {reason.signer} (key id {reason.key_id}){trusted}{text}"
                )
            )

"""`sealpoint chain`."""

from __future__ import annotations

from typing import Any

import click

from sealpoint import config as configuration
from sealpoint.cli import options
from sealpoint.cli.printable import echo_json, printable


@click.command()
@click.argument("file", metavar="FILE")
@options.trust_options
@options.parents_option
@options.json_option
def command(
    *,
    file: str,
    trust: tuple[str, ...],
    allow_unsigned: bool,
    allow_expired: bool,
    parents: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show a file and all its parents, newest first, if the chain is complete and each is the file that the next names.

    No decryption key is needed. Signatures are checked, frames are not: use verify for that.

    \b
    Example:
      sealpoint chain 720.sealed --trust keys/signer.pub
    """
    config = configuration.load()
    from sealpoint.checkpoint.opening import Opening
    from sealpoint.checkpoint.retention import show_time

    policy = options.trust_policy(
        trust,
        config,
        allow_unsigned=allow_unsigned or not options.names_trust(trust, config),
        allow_expired=allow_expired or not options.names_trust(trust, config),
    )
    with Opening(policy, parents=parents, unproven=True).open(file) as chain:
        rows: list[dict[str, Any]] = []
        for link in chain.links:
            authentic = link.checkpoint.authentic
            rows.append(
                {
                    "file": link.path,
                    "checkpoint": authentic.origin.checkpoint_id.hex(),
                    "kind": authentic.origin.kind,
                    "sequence": authentic.origin.chain_sequence,
                    "captured": authentic.origin.captured,
                    "workload": authentic.origin.workload,
                    "file_size": authentic.file.size,
                    "freed": 0 if authentic.prune is None else authentic.prune.freed,
                }
            )
    if as_json:
        echo_json(rows)
        return
    click.echo(f"{'NUMBER':>6}  {'CAPTURED (UTC)':<19}  {'KIND':<9}  {'SIZE':>12}  FILE")
    for row in rows:
        size = options.show_size(row["file_size"] - row["freed"])
        click.echo(
            f"{row['sequence']:>6}  {show_time(row['captured'])}  {row['kind']:<9}  {size:>12}  "
            f"{printable(row['file'])}"
        )

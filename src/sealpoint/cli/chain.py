"""`sealpoint chain`."""

from __future__ import annotations

from typing import Any

import click

from sealpoint.cli import notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint


@click.command()
@click.argument("file", metavar="FILE")
@reads_checkpoint("parents", keys=False)
@options.json_option
def command(*, file: str, reading: Reading, as_json: bool) -> None:
    """Show a file and all its parents, newest first, and check that each is the file that the next one names.

    No decryption key is needed. Signatures are checked, frames are not: use verify for that.

    \b
    Example:
      sealpoint chain 720.sealed --trust keys/signer.pub
    """
    from sealpoint.checkpoint import show_time

    policy = reading.policy(anyone=not reading.names_trust)
    with reading.opening(policy, unproven=True).open(file) as chain:
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
        size = notice.show_size(row["file_size"] - row["freed"])
        click.echo(
            f"{row['sequence']:>6}  {show_time(row['captured'])}  {row['kind']:<9}  {size:>12}  "
            f"{printable(row['file'])}"
        )

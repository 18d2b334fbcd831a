"""`sealpoint flatten`."""

from __future__ import annotations

import click

from sealpoint.cli import notice, options
from sealpoint.cli.printable import echo_json
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.cli.sealing import A_FILE_OR_URL, SealOptions, seals_checkpoint
from sealpoint.errors import UsageError


@click.command()
@click.argument("file", metavar="FILE")
@reads_checkpoint("parents", "stores")
@seals_checkpoint(A_FILE_OR_URL, metavar="FILE|URL|-", stores=True)
@options.json_option
def command(*, file: str, reading: Reading, seal: SealOptions, as_json: bool) -> None:
    """Combine an increment and all its parents into one sealed file, which restores by itself.

    A file that refers to a chunk store becomes one that does not.

    The result is sealed to the recipients that you name and signed with your key. FILE and its parents do not change.

    \b
    Example:
      sealpoint flatten 3.sealed -o whole.sealed -i identity.key --trust signer.pub \\
        -r recipient.pub --sign signer.key
    """
    from sealpoint.checkpoint import merge
    from sealpoint.cli.bar import Bar

    if file == "-":
        raise UsageError("an increment must be a file, with its parents beside it")
    opening = reading.opening()
    prepared = seal.sealing()
    with opening.open(file) as checkpoint:
        files = checkpoint.whole()
        with seal.open_output() as out, Bar(f"flattening {file}") as bar:
            result = merge(files, out, prepared, report=bar)
    if as_json:
        values = {
            "checkpoint": result.checkpoint_id.hex(),
            "origin": result.origin_digest.hex(),
            "files": len(files),
            "file_size": result.file_size,
        }
        echo_json(values, err=seal.piped)
    else:
        click.echo(
            f"{notice.show_count(len(files), 'file')} in {seal.where}: "
            f"{notice.show_size(result.file_size)}\ncheckpoint {result.checkpoint_id.hex()}",
            err=seal.piped,
        )

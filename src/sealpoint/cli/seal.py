"""`sealpoint seal`."""

from __future__ import annotations

import os

import click

from sealpoint.cli import encrypted, keyring, notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.sealing import A_FILE, SealOptions, seals_checkpoint
from sealpoint.errors import UsageError


@click.command()
@click.argument("path", metavar="PATH|-")
@seals_checkpoint(A_FILE)
@options.json_option
def command(path: str, *, seal: SealOptions, as_json: bool) -> None:
    """Seal an existing image directory or engine archive (tar, tar.gz or tar.zst, recognised by content).

    With - an archive is read from standard input. PATH itself stays as it is: in the clear, until you remove it.

    \b
    Example:
      sealpoint seal app.tar.zst -o app.sealed -r keys/recipient.pub --sign keys/signer.key
    """
    keyring.check_standard_input(path, seal.passphrase_file)
    keyring.check_standard_input(path, seal.sign_passphrase_file)
    notice.protect()
    from sealpoint.checkpoint.seal import seal as run
    from sealpoint.cli.bar import Bar

    if os.path.isdir(path) and _inside(seal.output, path):
        raise UsageError(f"{seal.output} would lie in the directory that is to be sealed")
    if encrypted.is_dump(path):
        notice.warn(
            f"{path} is encrypted in the CRIUsec format, and is sealed as it is: only a CRIU that knows the format can "
            "restore what it opens to. sealpoint convert decrypts it first"
        )
    prepared = seal.sealing()
    with seal.open_output() as out, Bar(f"sealing {path}") as bar:
        result = run(path, out, prepared, report=bar)
    for key in result.ignored:
        notice.warn(f"the archive's {key} headers were not kept")
    if as_json:
        values = {
            "checkpoint": result.checkpoint_id.hex(),
            "origin": result.origin_digest.hex(),
            "objects": result.objects,
            "plain_size": result.plain_size,
            "file_size": result.file_size,
        }
        echo_json(values, err=seal.piped)
    else:
        click.echo(
            f"{printable(path)} sealed into {seal.where}: {result.objects} objects, "
            f"{notice.show_size(result.plain_size)} in {notice.show_size(result.file_size)}\n"
            f"checkpoint {result.checkpoint_id.hex()}",
            err=seal.piped,
        )


def _inside(output: str, directory: str) -> bool:
    if output == "-":
        return False
    top = os.path.realpath(directory)
    return os.path.commonpath([top, os.path.realpath(os.path.dirname(output) or ".")]) == top

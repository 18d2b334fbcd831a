"""`sealpoint seal`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import click

from sealpoint.cli import encrypted, keyring, notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.sealing import A_FILE_OR_URL, SealOptions, seals_checkpoint
from sealpoint.errors import UsageError


@click.command()
@click.argument("path", metavar="PATH|-")
@seals_checkpoint(A_FILE_OR_URL, metavar="FILE|URL|-", stores=True)
@click.option(
    "--as-files",
    is_flag=True,
    help="Seal the files as they are, even if they are not a complete checkpoint.",
)
@options.json_option
def command(path: str, *, seal: SealOptions, as_files: bool, as_json: bool) -> None:
    """Seal an existing image directory or engine archive (tar, tar.gz or tar.zst, recognised by content).

    With - an archive is read from standard input. PATH itself stays as it is: in the clear, until you remove it.

    The images must be complete: a dump, an increment whose parent is there, a pre-dump, pages alone; an archive
    may hold several. Links to files inside the directory are followed, other links are refused.

    \b
    Example:
      sealpoint seal app.tar.zst -o app.sealed -r keys/recipient.pub --sign keys/signer.key
    """
    keyring.check_standard_input(path, seal.passphrase_file)
    keyring.check_standard_input(path, seal.sign_passphrase_file)
    notice.protect()
    from sealpoint.checkpoint import seal as run
    from sealpoint.cli.bar import Bar

    if not (seal.piped or seal.remote) and os.path.isdir(path) and _inside(seal.output, path):
        raise UsageError(f"{seal.output} would lie in the directory that you seal")
    if encrypted.is_dump(path):
        notice.warn(
            f"{path} is encrypted in the CRIUsec format, and is sealed as it is: only a CRIU that knows the format can "
            "restore what it opens to. sealpoint convert decrypts it first"
        )
    prepared = seal.sealing()
    with seal.open_output() as out, Bar(f"sealing {path}") as bar:
        result = run(path, out, prepared, as_files=as_files, report=bar)
    for key in result.ignored:
        notice.warn(f"the archive's {key} headers were not kept")
    for prefix in result.parentless:
        notice.warn(
            f"the parent of the images in {printable(prefix) or 'the archive'} is not in the archive: "
            "whether it has their other pages was not checked"
        )
    if as_json:
        values = {
            "checkpoint": result.checkpoint_id.hex(),
            "origin": result.origin_digest.hex(),
            "objects": result.objects,
            "plain_size": result.plain_size,
            "file_size": result.file_size,
            "kinds": dict(result.kinds),
        }
        echo_json(values, err=seal.piped)
    else:
        click.echo(
            f"{printable(path)} sealed into {seal.where}: {result.objects} objects, "
            f"{notice.show_size(result.plain_size)} in {notice.show_size(result.file_size)}\n"
            f"{in_words(result.kinds)}\ncheckpoint {result.checkpoint_id.hex()}",
            err=seal.piped,
        )


_MEANING: Final = {
    "full": "a complete dump",
    "old layout": "a complete dump in the layout before files.img",
    "increment": "an increment: it restores only with its parent",
    "lazy": "a lazy dump: its other pages are still on the machine that made the dump",
    "deduplicated": "a dump of which pages were freed: they are in a later one",
    "pre-dump": "a pre-dump: memory only",
    "pages": "pages alone, of a dump whose other images are elsewhere",
    "sealed": "sealed already: its recipients and signer stay as they are",
    "CRIUsec": "an encrypted dump, which was not checked",
    "files": "files as they are, which were not checked",
}


def in_words(kinds: Mapping[str, str]) -> str:
    """What was sealed, a line for each set of images."""
    return "\n".join(
        f"{printable(prefix)}{': ' if prefix else ''}{_MEANING[kind]}"
        for prefix, kind in kinds.items()
    )


def _inside(output: str, directory: str) -> bool:
    top = os.path.realpath(directory)
    return os.path.commonpath([top, os.path.realpath(os.path.dirname(output) or ".")]) == top

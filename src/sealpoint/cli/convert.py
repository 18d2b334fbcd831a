"""`sealpoint convert`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from sealpoint.cli import encrypted, keyring, notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.cli.seal import in_words
from sealpoint.cli.sealing import SealOptions, seals_checkpoint
from sealpoint.errors import PolicyError, UsageError

if TYPE_CHECKING:
    from sealpoint.keys.rsa import RsaRecipient


@click.command()
@click.argument("source", metavar="FILE|DIR")
@click.option(
    "--format",
    "wanted",
    type=click.Choice(["sealed", "plain", "criusec"]),
    default="sealed",
    show_default=True,
    help="What to write.",
)
@reads_checkpoint()
@seals_checkpoint("A sealed file (- for standard output), or a new directory.", metavar="FILE|DIR")
@click.option(
    "--as-files",
    is_flag=True,
    help="Seal the files as they are, even if they are not a complete checkpoint.",
)
@options.json_option
def command(
    source: str,
    *,
    wanted: str,
    reading: Reading,
    seal: SealOptions,
    as_files: bool,
    as_json: bool,
) -> None:
    """Convert a dump in the CRIUsec format to a sealed file or to plain images, or a checkpoint to the CRIUsec format.

    A CRIUsec dump is a directory with cipher.img in it, as a CRIU with the patches of pull request 2297 makes it with
    --encrypt. Nobody signed it: to sign the result you need --allow-unsigned. With --format criusec
    FILE is a sealed file, an archive or a directory of plain images, and the recipient one RSA certificate. That format
    protects much less than a sealed file does; use it only for a CRIU that reads nothing else.

    \b
    Example:
      sealpoint convert dump -o app.sealed --tls-key key.pem --allow-unsigned
      sealpoint convert app.sealed -o dump --format criusec --tls-cert cert.pem

    Keys that are not named here are those of config.toml.
    """
    keyring.check_standard_input(source, seal.passphrase_file)
    if as_files and wanted != "sealed":
        raise UsageError(
            "--as-files is for sealed files: other formats are not checked for completeness"
        )
    if wanted == "criusec":
        _to_criusec(source, reading, seal, as_json=as_json)
        return
    if not encrypted.is_dump(source):
        hint = "sealpoint open" if wanted == "plain" else "sealpoint seal, or sealpoint rekey"
        raise UsageError(
            f"{source} is not a dump in the CRIUsec format", hint=f"for other files use {hint}"
        )
    if wanted == "plain":
        force = seal.force
        encrypted.open_plain(source, seal.output, (), reading, force=force, as_json=as_json)
    else:
        _to_sealed(source, reading, seal, as_files=as_files, as_json=as_json)


def _to_sealed(
    source: str, reading: Reading, seal: SealOptions, *, as_files: bool, as_json: bool
) -> None:
    from sealpoint.cli.bar import Bar
    from sealpoint.convert import formats

    if not reading.allow_unsigned and not seal.unsigned:
        raise PolicyError(
            f"{source} is not signed, but your signature would say that it is what was dumped",
            hint="if you know where it comes from, use --allow-unsigned; or --unsigned, to leave the result unsigned",
        )
    prepared = seal.sealing()
    with encrypted.open_dump(source, reading) as dump:
        encrypted.check(source, dump)
        with seal.open_output() as out, Bar(f"sealing {source}") as bar:
            checkpoint, kinds = formats.seal_source(
                dump, out, prepared, as_files=as_files, report=bar
            )
    encrypted.warn_unsigned(source)
    if as_json:
        values = {"output": seal.output, "checkpoint": checkpoint.hex(), "kinds": kinds}
        echo_json(values, err=seal.piped)
    else:
        click.echo(
            f"{printable(source)} sealed into {seal.where}\n{in_words(kinds)}\n"
            f"checkpoint {checkpoint.hex()}",
            err=seal.piped,
        )


def _to_criusec(source: str, reading: Reading, seal: SealOptions, *, as_json: bool) -> None:
    from sealpoint.checkpoint import extract
    from sealpoint.cli.bar import Bar
    from sealpoint.convert import formats
    from sealpoint.criusec import limits
    from sealpoint.inspect.source import images, split_place

    output = seal.output
    if extract.is_archive_name(output):
        raise UsageError(f"{output}: a dump in the CRIUsec format is a directory")
    recipient = _recipient(seal)
    path, directory = split_place(source)
    if encrypted.is_dump(path):
        raise UsageError(f"{path} is in the CRIUsec format already")
    notice.warn(
        "the CRIUsec format protects less than a sealed file: it has no signature, it does not detect exchanged "
        "records and pages, and it shows " + "; ".join(limits.VISIBLE)
    )
    with reading.source(path) as opened:
        items, writer = formats.encrypted_items(images(opened, directory), recipient)
        if writer.clear:
            notice.warn(f"in the clear, wholly or in part: {', '.join(writer.clear)}")
        with Bar(f"writing {output}") as bar:
            extract.write_directory(items, output, bar, force=seal.force, source=path)
    if writer.left_out:
        notice.warn(
            f"left out, because it is not an image of CRIU: {', '.join(writer.left_out[:5])}"
            + (f" and {len(writer.left_out) - 5} more" if len(writer.left_out) > 5 else "")
        )
    if as_json:
        values = {
            "output": output,
            "files": len(items),
            "in_the_clear": writer.clear,
            "left_out": writer.left_out,
        }
        echo_json(values)
    else:
        click.echo(
            f"{printable(source)} encrypted in the CRIUsec format: "
            f"{notice.show_count(len(items), 'file')} in {output}\n"
            f"restore: criu restore -D {os.path.abspath(output)} --tls-key KEY, with a CRIU that has the patches"
        )


def _recipient(seal: SealOptions) -> RsaRecipient:
    from sealpoint.criusec.envelope import rsa_recipient

    config = keyring.configured()
    if seal.metadata_recipients:
        raise UsageError("the CRIUsec format has no metadata recipients")
    loaded = keyring.load_recipients(
        list(seal.recipients) or list(config.recipients),
        keyring.Passphrases(seal.passphrase_file),
        config,
        allow_expired=seal.allow_expired_recipient,
    )
    return rsa_recipient(loaded)

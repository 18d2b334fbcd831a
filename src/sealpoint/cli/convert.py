"""`sealpoint convert`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from sealpoint import config as configuration
from sealpoint.cli import encrypted, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import PolicyError, UsageError

if TYPE_CHECKING:
    from sealpoint.keys.rsa import RsaRecipient

_ACCESS: Final = ("identities", "trust", "allow_unsigned", "allow_expired")


@click.command()
@click.argument("source", metavar="FILE|DIR")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE|DIR",
    help="A sealed file (- for standard output), or a directory to be made.",
)
@click.option(
    "--format",
    "wanted",
    type=click.Choice(["sealed", "plain", "criusec"]),
    default="sealed",
    show_default=True,
    help="What to write.",
)
@options.identity_option
@options.trust_options
@options.seal_options
@options.json_option
def command(source: str, *, output: str, wanted: str, as_json: bool, **given: Any) -> None:
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
    options.check_standard_input(source, given["passphrase_file"])
    access = {key: given.pop(key) for key in _ACCESS}
    access["passphrase_file"] = given["passphrase_file"]
    if wanted == "criusec":
        _to_criusec(source, output, access, given, as_json=as_json)
        return
    if not encrypted.is_dump(source):
        hint = "sealpoint open" if wanted == "plain" else "sealpoint seal, or sealpoint rekey"
        raise UsageError(
            f"{source} is not a dump in the CRIUsec format", hint=f"for other files use {hint}"
        )
    if wanted == "plain":
        encrypted.open_plain(source, output, (), force=given["force"], as_json=as_json, **access)
    else:
        _to_sealed(source, output, access, given, as_json=as_json)


def _to_sealed(
    source: str, output: str, access: dict[str, Any], given: dict[str, Any], *, as_json: bool
) -> None:
    from sealpoint.cli.bar import Bar
    from sealpoint.inspect import convert
    from sealpoint.store.output import open_output

    if not access["allow_unsigned"] and not given["unsigned"]:
        raise PolicyError(
            f"nobody signed {source}, and your signature would say that it is what was dumped",
            hint="if you know where it comes from, use --allow-unsigned; or --unsigned, to leave the result unsigned",
        )
    prepared = options.sealing(configuration.load(), given)
    with encrypted.open_dump(source, **access) as dump:
        encrypted.check(source, dump)
        with (
            open_output(output, force=given["force"]) as out,
            Bar(f"sealing {source}") as bar,
        ):
            checkpoint = convert.seal_source(dump, out, prepared, report=bar)
    encrypted.warn_unsigned(source)
    err = output == "-"
    if as_json:
        values = {"output": output, "checkpoint": checkpoint.hex()}
        echo_json(values, err=err)
    else:
        where = "standard output" if err else output
        click.echo(
            f"{printable(source)} sealed into {printable(where)}\ncheckpoint {checkpoint.hex()}",
            err=err,
        )


def _to_criusec(
    source: str, output: str, access: dict[str, Any], given: dict[str, Any], *, as_json: bool
) -> None:
    from sealpoint.checkpoint import extract
    from sealpoint.cli.bar import Bar
    from sealpoint.criusec import limits
    from sealpoint.inspect import convert
    from sealpoint.inspect.source import images, split_place

    if extract.is_archive_name(output):
        raise UsageError(f"{output}: a dump in the CRIUsec format is a directory")
    recipient = _recipient(given)
    path, directory = split_place(source)
    if encrypted.is_dump(path):
        raise UsageError(f"{path} is in the CRIUsec format already")
    options.warn(
        "the CRIUsec format protects less than a sealed file: it has no signature, it does not detect exchanged "
        "records and pages, and it shows " + "; ".join(limits.VISIBLE)
    )
    with options.open_source(path, **access) as opened:
        items, writer = convert.encrypted_items(images(opened, directory), recipient)
        if writer.clear:
            options.warn(f"in the clear, wholly or in part: {', '.join(writer.clear)}")
        with Bar(f"writing {output}") as bar:
            extract.write_directory(items, output, bar, force=given["force"], source=path)
    if writer.left_out:
        options.warn(
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
            f"{options.show_count(len(items), 'file')} in {output}\n"
            f"restore: criu restore -D {os.path.abspath(output)} --tls-key KEY, with a CRIU that has the patches"
        )


def _recipient(given: dict[str, Any]) -> RsaRecipient:
    from sealpoint.criusec.envelope import rsa_recipient

    config = configuration.load()
    names = list(given["recipients"]) or list(config.recipients)
    if given["metadata_recipients"]:
        raise UsageError("the CRIUsec format has no metadata recipients")
    loaded = options.load_recipients(
        names,
        options.Passphrases(given["passphrase_file"]),
        config,
        allow_expired=given["allow_expired_recipient"],
    )
    return rsa_recipient(loaded)

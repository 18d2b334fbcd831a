"""What `open`, `info`, `verify` and `convert` do with a directory in the CRIUsec format."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import notice
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading
from sealpoint.errors import NoTrustedSignerGivenError, PolicyError, UsageError

if TYPE_CHECKING:
    from sealpoint.criusec.dump import EncryptedDump, PageCheck
    from sealpoint.inspect.encrypted import EncryptedSource


def is_dump(path: str) -> bool:
    """Whether a directory holds an encrypted dump, by the keys in it."""
    return path != "-" and any(
        os.path.lexists(f"{path}/{name}cipher.img") for name in ("", "checkpoint/")
    )


@contextlib.contextmanager
def open_dump(path: str, reading: Reading) -> Iterator[EncryptedSource]:
    """The dump in a directory."""
    from sealpoint.inspect.encrypted import EncryptedSource

    with reading.source(path) as source:
        if not isinstance(source, EncryptedSource):
            raise UsageError(f"{path} is not a dump in the CRIUsec format")
        yield source


def check(path: str, source: EncryptedSource) -> dict[str, PageCheck]:
    """Authenticate what can be, with a bar."""
    from sealpoint.cli.bar import Bar
    from sealpoint.convert import formats

    for prefix in source.dumps:
        if os.path.lexists(f"{path}/{prefix}parent"):
            notice.warn(f"{path}/{prefix}parent is left out: the format has no increments")
    with Bar(f"checking {path}") as bar:
        return formats.check(source, bar)


def require_leave(path: str, reading: Reading) -> None:
    """Where signers to believe are named, what nobody signed must not pass for what they signed.

    Who may have put it in place of a sealed file needs no more than the certificate.  Raises PolicyError.
    """
    if reading.names_trust and not reading.allow_unsigned:
        raise PolicyError(
            f"{path} is in the CRIUsec format, which has no signatures, but you name signers to trust",
            hint="if you know where it comes from, use --allow-unsigned",
        )


def warn_unsigned(path: str) -> None:
    """Say what the checks are worth."""
    notice.warn(
        f"{path} is not signed: anyone who has the recipient's certificate could have made it, and the CRIUsec "
        "format does not detect all changes (sealpoint verify lists them)"
    )


def open_plain(
    path: str,
    output: str,
    only: tuple[str, ...],
    reading: Reading,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """`sealpoint open`."""
    import fnmatch

    from sealpoint.checkpoint import extract
    from sealpoint.cli.bar import Bar
    from sealpoint.convert import formats
    from sealpoint.store.output import destination

    require_leave(path, reading)
    with open_dump(path, reading) as source:
        names = [
            name
            for name in source.names()
            if not only
            or any(
                fnmatch.fnmatchcase(name if "/" in p else os.path.basename(name), p) for p in only
            )
        ]
        if not names:
            raise UsageError("no file of the dump matches --only")
        check(path, source)
        items = formats.plain_items(source, names)
        with Bar(f"opening {path}") as bar:
            if extract.is_archive_name(output):
                extract.write_tar(items, output, bar, force=force)
            else:
                extract.write_directory(items, output, bar, force=force, source=path)
    warn_unsigned(path)
    size = sum(item.member.size for item in items)
    err = destination(output).streams
    if as_json:
        values = {"output": output, "objects": len(items), "size": size}
        echo_json(values, err=err)
    else:
        click.echo(
            f"{len(items)} files, {notice.show_size(size)}, in the clear in {output}", err=err
        )


def info(path: str, *, as_json: bool) -> None:
    """`sealpoint info`: what can be said without a key."""
    with open_dump(path, Reading(allow_unsigned=True, allow_expired=True)) as source:
        values = [_public(prefix, dump) for prefix, dump in source.dumps.items()]
    if as_json:
        echo_json({"format": "criusec", "dumps": values, **_limits()})
        return
    for dump in values:
        place = os.path.join(path, dump["prefix"])
        click.echo(f"directory   {printable(place)}, encrypted in the CRIUsec format")
        click.echo(
            f"sealed to   one RSA key of {dump['key_bits']} bits, which the dump does not name"
        )
        click.echo("signed by   nobody: the format has no signatures")
        click.echo(f"\n{'SIZE':>12}  {'ENCRYPTED':<9} FILE")
        for file in dump["files"]:
            size = notice.show_size(file["size"])
            mark = "yes" if file["encrypted"] else "NO"
            click.echo(f"{size:>12}  {mark:<9} {printable(file['name'])}")
    _print_limits()


def _public(prefix: str, dump: EncryptedDump) -> dict[str, Any]:
    clear = set(dump.clear_names())
    return {
        "prefix": prefix,
        "key_bits": 8 * len(dump.envelope.wrapped_token),
        "files": [
            {"name": n, "size": dump.file_size(n), "encrypted": n not in clear}
            for n in dump.names()
        ],
    }


def _limits() -> dict[str, list[str]]:
    from sealpoint.criusec import limits

    return {"not_detected": list(limits.UNDETECTED), "visible_to_all": list(limits.VISIBLE)}


def _print_limits() -> None:
    limits = _limits()
    click.echo("\nThe CRIUsec format does not detect")
    for text in limits["not_detected"]:
        click.echo(f"  - {text}")
    click.echo("It shows to everybody")
    for text in limits["visible_to_all"]:
        click.echo(f"  - {text}")


def verify(path: str, reading: Reading, *, as_json: bool) -> None:
    """`sealpoint verify`.  Raises NoTrustedSignerGivenError unless that is allowed."""
    with open_dump(path, reading) as source:
        found = check(path, source)
        files = sum(len(dump.names()) for dump in source.dumps.values())
        clear = [
            prefix + name
            for prefix, dump in source.dumps.items()
            for name in dump.names()
            if dump.file_size(name) and dump.open(name).clear
        ]
    if as_json:
        values = {
            "file": path,
            "format": "criusec",
            "files": files,
            "page_digest": {prefix: result.value for prefix, result in found.items()},
            "in_the_clear": clear,
            "signers": [],
            **_limits(),
        }
        echo_json(values)
    else:
        click.echo(f"{path}: {files} files: every encrypted record is authentic")
        for prefix, result in found.items():
            name = printable(f"{prefix}cipher.img")
            click.echo(f"the digest over the pages in {name} {result.value}")
        if clear:
            click.echo(f"in the clear, wholly or in part: {printable(', '.join(clear))}")
        click.echo("not signed")
        _print_limits()
    if not reading.allow_unsigned:
        raise NoTrustedSignerGivenError(
            "no fault was found, but the dump is not signed, "
            "and its format does not detect all changes"
        )

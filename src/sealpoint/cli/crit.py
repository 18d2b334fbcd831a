"""`sealpoint crit`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from sealpoint.cli import keyring, notice, options
from sealpoint.cli.printable import echo_json, printable, standard_output
from sealpoint.cli.reading import ANY_KIND, Reading, reads_checkpoint
from sealpoint.cli.sealing import SealOptions, seals_checkpoint
from sealpoint.errors import FileError, SealpointError, UsageError

if TYPE_CHECKING:
    from sealpoint.inspect.image import Image
    from sealpoint.inspect.source import Source

_PLACE: Final = "FILE:IMAGE"
_MAX_JSON: Final = 1 << 30  # bytes of JSON that are read in one piece


@click.group()
def command() -> None:
    """CRIU's images as JSON, and back: what CRIU's own crit does, on sealed and on plain checkpoints.

    FILE:IMAGE is an image of a sealed file, of an engine's archive or of a directory (app.sealed:core-1.img), or simply
    a plain image's path; - is an image from standard input, and -- -:IMAGE one of a sealed file that comes there.

    \b
    Example:
      sealpoint crit show app.sealed:pstree.img -i keys/identity.key --trust keys/signer.pub
    """


@command.command()
@click.argument("place", metavar=_PLACE)
@click.option("--nopl", is_flag=True, help="Leave out the data behind an entry.")
@reads_checkpoint(*ANY_KIND)
def show(place: str, *, nopl: bool, reading: Reading) -> None:
    """Show an image as JSON for people: names of bits and numbers, addresses in hexadecimal.

    \b
    Example:
      sealpoint crit show app.sealed:files.img -i keys/identity.key --trust keys/signer.pub
    """
    with _open_image(place, reading) as image:
        _print_out(image, pretty=True, nopl=nopl)


@command.command()
@click.argument("place", metavar=_PLACE)
@click.option("--pretty", is_flag=True, help="Print it as show does.")
@click.option(
    "-o", "--output", metavar="FILE", help="Where to write it (default: standard output)."
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@reads_checkpoint(*ANY_KIND)
def decode(place: str, *, pretty: bool, output: str | None, force: bool, reading: Reading) -> None:
    """Convert an image to JSON, from which encode makes the same image again.

    \b
    Example:
      sealpoint crit decode app.sealed:core-1.img -o core.json -i keys/identity.key --trust keys/signer.pub
    """
    from sealpoint.store.output import open_output

    with _open_image(place, reading) as image:
        if output in (None, "-"):
            _print_out(image, pretty=pretty)
            return
        with open_output(str(output), force=force) as out:
            _print(image, lambda text: out.write(text.encode()), pretty=pretty, end="")
            out.commit()


@command.command()
@click.argument("place", metavar=_PLACE)
@reads_checkpoint(*ANY_KIND)
def info(place: str, reading: Reading) -> None:
    """Show the type of an image and how many entries it has.

    \b
    Example:
      sealpoint crit info app.sealed:files.img -i keys/identity.key --trust keys/signer.pub
    """
    with _open_image(place, reading) as image:
        click.echo(json.dumps({"magic": image.name, "count": image.count()}, indent=4))


@command.command()
@click.argument("file", metavar="FILE|DIR")
@click.argument("what", type=click.Choice(["ps", "fds", "mems", "rss"]))
@reads_checkpoint(*ANY_KIND)
def x(file: str, what: str, reading: Reading) -> None:
    """Explore a dump: its processes, open files, mappings, or which of their pages are there.

    \b
    Example:
      sealpoint crit x app.sealed ps -i keys/identity.key --trust keys/signer.pub
    """
    from sealpoint.inspect.explore import Explorer
    from sealpoint.inspect.source import images, split_place

    path, directory = split_place(file)
    with reading.source(path) as source:
        explorer = Explorer(images(source, directory))
        for line in explorer.lines(what):
            click.echo("\t".join(printable(part) for part in line.split("\t")))
        if explorer.withheld:
            names = notice.some(explorer.withheld)
            notice.warn(f"this identity opens metadata only, so without {names}")


@command.command()
@click.argument("source", metavar="JSON|-", default="-")
@click.option(
    "--into", "place", metavar=_PLACE, help="The image of a sealed file that it replaces."
)
@reads_checkpoint("parents", "stores")
@seals_checkpoint("The image, or with --into the sealed file.")
@options.json_option
def encode(
    source: str, *, place: str | None, reading: Reading, seal: SealOptions, as_json: bool
) -> None:
    """Make an image from JSON: a plain one, or with --into a new sealed file in which it replaces one.

    The new file is derived from the old one, has new keys, and is signed by you. Keys that are not named here
    are those of config.toml.

    \b
    Example:
      sealpoint crit encode core.json -o core-1.img
      sealpoint crit encode core.json --into app.sealed:core-1.img -o new.sealed
    """
    from sealpoint.inspect.image import write_json

    if place is not None:
        from sealpoint.inspect.source import split_place

        file, name = split_place(place)
        if not name:
            raise UsageError(f"--into {place} names no image", hint=f"--into {place}:core-1.img")
        keyring.check_standard_input(source, seal.passphrase_file)
        value = _read_json(source)

        def replace(opened: Source) -> dict[str, bytes]:
            data = bytearray()
            write_json(value, data.extend, source)
            return {_find(opened, name): bytes(data)}

        _rewrite(file, replace, reading, seal, as_json=as_json)
        return
    value = _read_json(source)
    with seal.open_output() as out:
        write_json(value, out.write, "standard input" if source == "-" else source)
        out.commit()


@command.command()
@click.argument("file", metavar="FILE|DIR|" + _PLACE)
@click.option("-o", "--output", metavar="FILE|-", help="Write what came out to a new sealed file.")
@reads_checkpoint("parents", "stores")
@seals_checkpoint()
@options.json_option
def recode(
    file: str, *, output: str | None, reading: Reading, seal: SealOptions, as_json: bool
) -> None:
    """Decode and encode again every image, and say which did not come out as it was.

    \b
    Example:
      sealpoint crit recode app.sealed -i keys/identity.key --trust keys/signer.pub
    """
    from sealpoint.inspect.recode import Recoder
    from sealpoint.inspect.source import split_place

    path, name = split_place(file)
    recoder = Recoder()

    def recode_all(opened: Source) -> dict[str, bytes]:
        return recoder.run(opened, _find(opened, name) if name else "")

    if output is not None:
        _rewrite(
            path, recode_all, reading, dataclasses.replace(seal, output=output), as_json=as_json
        )
    else:
        with reading.source(path) as opened:
            recode_all(opened)
    err = output is not None
    if as_json and not err:
        echo_json(recoder.results)
    elif not as_json:
        for image, result in recoder.results.items():
            click.echo(f"{result:<9} {printable(image)}", err=err)
    if recoder.different:
        raise FileError(f"{path}: {recoder.different} images changed when they were encoded again")


def _rewrite(
    file: str,
    replace: Callable[[Source], dict[str, bytes]],
    reading: Reading,
    seal: SealOptions,
    *,
    as_json: bool,
) -> None:
    """A new sealed file from `file`, with what `replace` gives in place of what is there."""
    from sealpoint.cli.bar import Bar
    from sealpoint.convert.rewrite import rewrite
    from sealpoint.inspect.sealed import SealedSource

    prepared = seal.sealing()
    with reading.source(file) as opened:
        if not isinstance(opened, SealedSource):
            raise UsageError(f"{file} is not sealed", hint="seal it with: sealpoint seal")
        replaced = replace(opened)
        with seal.open_output() as out, Bar(f"writing {seal.output}") as bar:
            checkpoint = rewrite(opened, out, replaced, prepared, report=bar)
    if as_json:
        values = {"checkpoint": checkpoint.hex(), "replaced": sorted(replaced)}
        echo_json(values, err=seal.piped)
    else:
        click.echo(
            f"{seal.where}: {len(replaced)} images replaced, derived from {printable(file)}\n"
            f"checkpoint {checkpoint.hex()}",
            err=seal.piped,
        )


def _find(source: Source, name: str) -> str:
    """The object that a name stands for: itself, or the image of the one dump in the source."""
    from sealpoint.inspect.source import images

    if source.exists(name) or "/" in name:
        return name
    try:
        prefix = images(source).prefix
    except SealpointError:
        return name  # whatever is wrong, the object is not there
    return prefix + name


@contextlib.contextmanager
def _open_image(place: str, reading: Reading) -> Iterator[Image]:
    from sealpoint.inspect.image import Image
    from sealpoint.inspect.source import split_place
    from sealpoint.store.location import is_url

    path, name = split_place(place)
    if not name and (path == "-" or os.path.isfile(path) or is_url(path)):
        with _plain_image(path, reading) as image:
            if image is not None:
                yield image
                return
    if not name:
        raise UsageError(
            f"{place} is not an image", hint=f"name one of its images: {place}:core-1.img"
        )
    with reading.source(path) as source:
        found = _find(source, name)
        where = f"{source.label}:{found}"
        yield Image(lambda at, size: source.pread(found, at, size), source.size(found), where)


@contextlib.contextmanager
def _plain_image(path: str, reading: Reading) -> Iterator[Image | None]:
    """A file that is an image; None if it is a sealed file or an archive."""
    from sealpoint.format.raw import Descriptor, read_exactly
    from sealpoint.inspect import finding
    from sealpoint.inspect.directory import DirectorySource, pread
    from sealpoint.inspect.encrypted import decrypted
    from sealpoint.inspect.image import Image
    from sealpoint.store.location import is_url
    from sealpoint.store.source import open_input

    source = open_input(path, limit=reading.max_size)
    try:
        if finding.is_container(read_exactly(source, min(source.size, finding.HEAD), 0)):
            yield None
            return
        if isinstance(source, Descriptor) and path == "-":
            fd, size = source.fd, source.size
            yield Image(lambda at, length: pread(fd, at, length, path), size, "standard input")
            return
        if is_url(path):
            raise UsageError(
                f"{path} is not a sealed file", hint="fetch an image of CRIU's, and read the file"
            )
    finally:
        source.close()
    directory, name = os.path.split(os.path.realpath(path))
    beside = reading.access()
    opened = decrypted(
        DirectorySource(directory, beside, finding.find_source), beside
    )  # by the keys beside it
    try:
        yield Image(lambda at, length: opened.pread(name, at, length), opened.size(name), path)
    finally:
        opened.close()


def _print_out(image: Image, *, pretty: bool, nopl: bool = False) -> None:
    def write(text: str) -> None:
        with standard_output() as out:
            out.write(text)

    _print(image, write, pretty=pretty, nopl=nopl)
    with standard_output() as out:
        out.flush()


def _print(
    image: Image,
    write: Callable[[str], object],
    *,
    pretty: bool,
    nopl: bool = False,
    end: str = "\n",
) -> None:
    from sealpoint.inspect.json_text import write_image
    from sealpoint.inspect.recode import without_payload

    entries = (record.to_json(pretty=pretty) for record in image.records())
    if nopl:
        entries = (without_payload(r.to_json(pretty=pretty), r.name) for r in image.records())
    try:
        write_image(image.name, entries, write, indent=4 if pretty else None)
    finally:
        write(end)


def _read_json(path: str) -> Any:
    try:
        if path == "-":
            if sys.stdin is None:
                raise UsageError("there is no standard input to read")
            data = sys.stdin.buffer.read(_MAX_JSON + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(_MAX_JSON + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    where = "standard input" if path == "-" else path
    if len(data) > _MAX_JSON:
        raise FileError(f"{where} is larger than {_MAX_JSON} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        text = f" ({error})" if isinstance(error, json.JSONDecodeError) else ""
        raise FileError(f"{where} is not JSON{text}") from None

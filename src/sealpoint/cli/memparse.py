"""`sealpoint memparse`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import numbers, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import ANY_KIND, Reading, reads_checkpoint
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.inspect.memory import AddressSpace
    from sealpoint.inspect.search import Match, Pattern
    from sealpoint.inspect.source import Images


@click.command()
@click.argument("file", metavar="FILE|DIR")
@click.option(
    "--pid", type=numbers.PID, default=0, help="Show the memory of this process, or search in it."
)
@click.option(
    "-o",
    "--output",
    metavar="FILE|-",
    help="Write the memory of --pid to this file (default: standard output).",
)
@click.option("--search", "text", metavar="TEXT", help="Find a string in memory.")
@click.option(
    "--search-regex",
    "expression",
    metavar="RE",
    help="Find what matches a Python regular expression.",
)
@click.option(
    "--context",
    type=numbers.count(0, 4096),
    default=0,
    help="Also show this many bytes around a match.",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@options.json_option
@reads_checkpoint(*ANY_KIND)
def command(
    file: str,
    *,
    pid: int,
    output: str | None,
    text: str | None,
    expression: str | None,
    context: int,
    force: bool,
    as_json: bool,
    reading: Reading,
) -> None:
    """Show how much memory each process has. With --pid, show its contents; with --search, find something in it.

    Memory is decrypted piece by piece in RAM. What is written to a file is in the clear.

    \b
    Example:
      sealpoint memparse app.sealed -i keys/identity.key --trust keys/signer.pub
      sealpoint memparse app.sealed --pid 42 --search password= --context 32
    """
    from sealpoint.inspect import search
    from sealpoint.inspect.source import images, split_place

    if text is not None and expression is not None:
        raise UsageError("--search and --search-regex cannot be used together")
    if output is not None and (not pid or text is not None or expression is not None):
        raise UsageError("--output writes the memory of one process: give --pid, and no search")
    pattern: Pattern | None = None
    if text is not None:
        pattern = search.literal(text.encode(errors="surrogateescape"))
    elif expression is not None:
        pattern = search.expression(expression)
    path, directory = split_place(file)
    with reading.source(path) as source:
        dump = images(source, directory)
        if pattern is not None:
            _search(dump, pattern, pid, context, as_json=as_json)
        elif pid:
            _dump(dump, pid, output, force=force)
        else:
            _sizes(dump, as_json=as_json)


def _sizes(dump: Images, *, as_json: bool) -> None:
    from sealpoint.cli.show import print_table
    from sealpoint.inspect.inspection import memory_of
    from sealpoint.inspect.tree_text import size

    found = list(memory_of(dump))
    if as_json:
        names = ("pid", "command", "mapped", "private", "shared")
        echo_json([{n: getattr(t, n) for n in names} for t in found])
        return
    print_table(
        [
            {
                "PID": str(task.pid),
                "PROCESS": task.command,
                "MAPPED": size(task.mapped),
                "STORED": size(task.private),
                "SHARED": size(task.shared),
            }
            for task in found
        ]
    )


def _dump(dump: Images, pid: int, output: str | None, *, force: bool) -> None:
    from sealpoint.inspect import hexdump
    from sealpoint.inspect.memory import AddressSpace
    from sealpoint.store.output import open_output

    space = AddressSpace.load(dump, pid)
    if output in (None, "-"):
        for line in hexdump.lines(space):
            click.echo(line)
        return
    with open_output(str(output), force=force) as out:
        for line in hexdump.lines(space):
            out.write(line.encode() + b"\n")
        out.commit()


def _search(dump: Images, pattern: Pattern, pid: int, context: int, *, as_json: bool) -> None:
    from sealpoint.inspect import search
    from sealpoint.inspect.memory import AddressSpace, pids
    from sealpoint.inspect.tasks import read_tree

    found: list[dict[str, Any]] = []
    processes = [pid] if pid else pids(dump)
    if not processes:  # none, or withheld, which the first task's image then says
        processes = [task.pid for task in read_tree(dump, commands=False)[:1]]
    for process in processes:
        space = AddressSpace.load(dump, process)
        for match in search.search(space, pattern, context=context):
            if as_json:
                found.append(_json(space, match))
            else:
                _print(space, match)
    if as_json:
        echo_json(found)


def _json(space: AddressSpace, match: Match) -> dict[str, Any]:
    from sealpoint.inspect import hexdump

    return {
        "pid": space.pid,
        "address": f"{match.address:#x}",
        "mapping": match.mapping.name,
        "size": len(match.data),
        "text": hexdump.context(match.before, match.data, match.after),
    }


def _print(space: AddressSpace, match: Match) -> None:
    from sealpoint.inspect import hexdump

    text = hexdump.context(match.before, match.data, match.after)
    name = printable(match.mapping.name) or "[anonymous]"
    click.echo(f"{space.pid:>8}  {match.address:016x}  {name}  {text}")

"""`sealpoint inspect`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import click

from sealpoint.cli import notice, numbers, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import ANY_KIND, Reading, reads_checkpoint
from sealpoint.errors import FileError


@click.command()
@click.argument("checkpoints", metavar="FILE|DIR...", nargs=-1, required=True)
@click.option("--stats", is_flag=True, help="CRIU's counters of the dump.")
@click.option("--mounts", is_flag=True, help="Mounts.")
@click.option("--metadata", is_flag=True, help="Pod, namespace and annotations.")
@click.option("--ps-tree", is_flag=True, help="The process tree.")
@click.option(
    "--ps-tree-cmd",
    is_flag=True,
    help="The process tree with command lines. Needs a memory identity.",
)
@click.option(
    "--ps-tree-env",
    is_flag=True,
    help="The process tree with environments. Needs a memory identity.",
)
@click.option("--files", is_flag=True, help="Open files of each process.")
@click.option("--sockets", is_flag=True, help="Open sockets of each process.")
@click.option("--pid", type=numbers.PID, default=0, help="Only this process and its children.")
@click.option(
    "--all", "everything", is_flag=True, help="All of it, as far as the identity reaches."
)
@click.option(
    "--format", "form", type=click.Choice(["tree", "json"]), default="tree", help="Default: tree."
)
@options.json_option
@reads_checkpoint(*ANY_KIND)
def command(
    checkpoints: tuple[str, ...],
    *,
    stats: bool,
    mounts: bool,
    metadata: bool,
    ps_tree: bool,
    ps_tree_cmd: bool,
    ps_tree_env: bool,
    everything: bool,
    pid: int,
    form: str,
    as_json: bool,
    files: bool,
    sockets: bool,
    reading: Reading,
) -> None:
    """Show what is in checkpoints: sealed files, archives of engines, directories of images.

    With a metadata identity, everything is shown but command lines and environments; process names then come from the
    summary in the sealed file.

    \b
    Example:
      sealpoint inspect app.sealed --ps-tree --files -i keys/identity.key --trust keys/signer.pub
    """
    from sealpoint.inspect import tree_text
    from sealpoint.inspect.inspection import Inspection, Parts
    from sealpoint.inspect.source import images, split_place

    results: list[dict[str, Any]] = []
    problems: list[FileError] = []
    for file in checkpoints:
        path, directory = split_place(file)
        with reading.source(path) as source:
            dump = images(source, directory)
            memory = not dump.withheld("mm-1.img")
            inspection = Inspection(dump)
            parts = Parts(
                stats=stats or everything,
                mounts=mounts or everything,
                ps_tree=ps_tree or everything,
                ps_tree_cmd=ps_tree_cmd or (everything and memory),
                ps_tree_env=ps_tree_env or (everything and memory),
                files=files or everything,
                sockets=sockets or everything,
                metadata=metadata or everything,
                pid=pid,
            )
            results.append(inspection.collect(parts))
            problems += inspection.problems
            if stats and not results[-1]["statistics"]:
                notice.warn(f"{file} has no statistics: CRIU writes them after the images")
            if inspection.withheld:
                names = notice.some(inspection.withheld)
                notice.warn(f"{file}: this identity opens metadata only, so without {names}")
    if as_json or form == "json":
        echo_json(results)
    else:
        for n, values in enumerate(results):
            click.echo(f"{os.linesep if n else ''}{printable(checkpoints[n])}:")
            _print_lines(tree_text.draw(tree_text.inspection(values)))
    if problems:  # after what could be shown
        for problem in problems[1:]:
            notice.warn(problem.message)
        raise problems[0]


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(printable(line))

"""`sealpoint diff`."""

from __future__ import annotations

import click

from sealpoint.cli import options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import ANY_KIND, Reading, reads_checkpoint


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option("--files", is_flag=True, help="Also compare open files.")
@click.option("--sockets", is_flag=True, help="Also compare sockets.")
@click.option(
    "--ps-tree-cmd", is_flag=True, help="Also compare command lines. Needs a memory identity."
)
@click.option(
    "--ps-tree-env", is_flag=True, help="Also compare environments. Needs a memory identity."
)
@click.option("--show-unchanged", is_flag=True, help="Also list processes that did not change.")
@click.option(
    "--format", "form", type=click.Choice(["tree", "json"]), default="tree", help="Default: tree."
)
@options.json_option
@reads_checkpoint(*ANY_KIND)
def command(
    before: str,
    after: str,
    *,
    files: bool,
    sockets: bool,
    ps_tree_cmd: bool,
    ps_tree_env: bool,
    show_unchanged: bool,
    form: str,
    as_json: bool,
    reading: Reading,
) -> None:
    """Show what changed between two checkpoints: processes that started or ended, and what changed in the others.

    \b
    Example:
      sealpoint diff monday.sealed tuesday.sealed --files -i keys/identity.key --trust keys/signer.pub
    """
    from sealpoint.inspect import diff, tree_text
    from sealpoint.inspect.inspection import Inspection
    from sealpoint.inspect.source import images, split_place

    parts = diff.parts(
        files=files, sockets=sockets, command_lines=ps_tree_cmd, environment=ps_tree_env
    )
    collected = []
    for file in (before, after):
        path, directory = split_place(file)
        with reading.source(path) as source:
            collected.append(Inspection(images(source, directory)).collect(parts))
    result = diff.compare(*collected, show_unchanged=show_unchanged)
    if as_json or form == "json":
        echo_json(result)
        return
    for line in tree_text.draw(diff.tree(result, before, after)):
        click.echo(printable(line))

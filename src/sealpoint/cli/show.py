"""`sealpoint show`."""

from __future__ import annotations

import click

from sealpoint.cli import options
from sealpoint.cli.printable import echo_json
from sealpoint.cli.reading import ANY_KIND, Reading, reads_checkpoint
from sealpoint.names import cell

_COLUMNS = (
    ("container_name", "CONTAINER"),
    ("image", "IMAGE"),
    ("id", "ID"),
    ("runtime", "RUNTIME"),
    ("created", "CREATED"),
    ("engine", "ENGINE"),
    ("ip", "IP"),
)


@click.command()
@click.argument("checkpoints", metavar="FILE|DIR...", nargs=-1, required=True)
@options.json_option
@reads_checkpoint(*ANY_KIND)
def command(checkpoints: tuple[str, ...], *, as_json: bool, reading: Reading) -> None:
    """Show a checkpoint's container and size in one line.

    \b
    Example:
      sealpoint show checkpoint.sealed -i keys/identity.key --trust keys/signer.pub
    """
    from sealpoint.inspect.inspection import Inspection, Parts
    from sealpoint.inspect.source import images, split_place
    from sealpoint.inspect.tree_text import size

    results = []
    for file in checkpoints:
        path, directory = split_place(file)
        with reading.source(path) as source:
            results.append({"file": file, **Inspection(images(source, directory)).collect(Parts())})
    if as_json:
        echo_json(results)
        return
    rows = []
    for values in results:
        row = {title: str(values.get(key, "")) for key, title in _COLUMNS}
        row["ID"] = row["ID"][:12]
        sizes = values["checkpoint_size"]
        row["SIZE"] = size(sizes["total_size"])
        row["MEMORY"] = size(sizes["memory_pages_size"])
        row["ROOTFS DIFF"] = (
            size(sizes["root_fs_diff_size"]) if "root_fs_diff_size" in sizes else ""
        )
        rows.append({"FILE": values["file"], **row})
    print_table(rows)


def print_table(rows: list[dict[str, str]]) -> None:
    """Columns as wide as they need to be; those that are empty in every row are left out."""
    titles = [title for title in rows[0] if any(row[title] for row in rows)] if rows else []
    cells = [titles, *([cell(row[title]) for title in titles] for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(titles))]
    for line in cells:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(text.rstrip())

"""`sealpoint coredump`."""

from __future__ import annotations

import click

from sealpoint.cli import notice, numbers, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import ANY_KIND, Reading, reads_checkpoint


@click.command()
@click.argument("file", metavar="FILE|DIR|-")
@click.option("--pid", type=numbers.PID, required=True, help="The process, by the PID that it had.")
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="The core file. It is in the clear."
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@reads_checkpoint(*ANY_KIND)
@options.json_option
def command(
    *, file: str, pid: int, output: str, force: bool, as_json: bool, reading: Reading
) -> None:
    """Write an ELF core of one process, for gdb: threads, registers and the memory that the checkpoint holds.

    The core holds every secret of the process in the clear, readable by its owner only. Pages of programs and libraries
    that the process did not change are not in a checkpoint: gdb reads them from the files, which must be the same.

    \b
    Example:
      sealpoint coredump app.sealed --pid 4711 -o core -i keys/identity.key --trust keys/signer.pub
      gdb /usr/bin/app core
    """
    from sealpoint.cli.bar import Bar
    from sealpoint.errors import UsageError
    from sealpoint.inspect.coredump import write_core
    from sealpoint.inspect.source import images, split_place
    from sealpoint.store.output import destination

    where = destination(output)
    if where.streams and not where.discards:
        raise UsageError("a core has holes, so it goes into a file", hint="name one with -o")
    path, directory = split_place(file)
    with (
        reading.source(path) as opened,
        where.open(force=force) as out,
        Bar(f"writing {output}") as bar,
    ):
        core = write_core(images(opened, directory), pid, out, bar.counter())
        out.commit()
    values = {
        "output": output,
        "pid": pid,
        "threads": core.threads,
        "segments": core.segments,
        "size": core.size,
        "stored": core.stored,
    }
    if as_json:
        echo_json(values)
    else:
        click.echo(
            f"process {pid} in {printable(output)}, in the clear: {core.threads} threads, "
            f"{notice.show_size(core.stored)} of memory"
        )

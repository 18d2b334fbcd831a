"""`sealpoint migrate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import notice, numbers, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.running import Running, runs_criu
from sealpoint.cli.sealing import SealOptions, seals_checkpoint

if TYPE_CHECKING:
    from sealpoint.checkpoint import MigrateResult


@click.command()
@options.tree_option
@click.option(
    "--to",
    required=True,
    metavar="ADDRESS",
    help="tcp://HOST:PORT where `sealpoint receive` listens, or ssh://[USER@]HOST[:PORT].",
)
@seals_checkpoint()
@click.option(
    "--rounds",
    type=numbers.count(0, 32),
    default=4,
    show_default=True,
    metavar="N",
    help="Copy the memory at most N times while the tree runs; each time only what has changed (0: do not).",
)
@click.option(
    "--workload",
    callback=options.named_workload,
    default="",
    metavar="NAME",
    help="A name for the tree. It is signed, and the other side can insist on it (receive --workload).",
)
@options.link_timeout_option
@click.option(
    "--restore-timeout",
    type=numbers.SECONDS,
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the other side may take to restore and verify; the tree is frozen here meanwhile.",
)
@click.option("--ssh", default="ssh", metavar="COMMAND", help="With ssh://: what to run as ssh.")
@click.option(
    "--remote",
    default="sealpoint receive --stdio",
    show_default=True,
    metavar="COMMAND",
    help="With ssh://: what to run there.",
)
@runs_criu(state=False)
def command(
    *,
    pid: int,
    to: str,
    rounds: int,
    workload: str,
    timeout: float,
    restore_timeout: float,
    ssh: str,
    remote: str,
    seal: SealOptions,
    running: Running,
    as_json: bool,
) -> None:
    """Move a process tree to another machine, sealed to its recipient.

    The memory is copied while the tree runs, in rounds that send what has changed since the last one. When little is
    left, the tree is frozen and the rest is sent. It ends here when the other side has restored and verified it, and
    runs there only after it has ended here. If anything fails before that, it runs on here.

    Start the second command of the example first, on the other machine.

    \b
    Example:
      sealpoint migrate -t 4711 --to tcp://there:7777 -r there.pub --sign signer.key
      sealpoint receive --listen tcp://0.0.0.0:7777 -i identity.key --trust signer.pub
    """
    notice.protect()
    search = running.search()
    from sealpoint.checkpoint import DumpRequest, MigrateRequest, Sender
    from sealpoint.cli import endpoint
    from sealpoint.cli.bar import Bar

    address = endpoint.parse(to, schemes=("tcp", "ssh"))
    prepared = seal.sealing()
    request = MigrateRequest(
        DumpRequest(
            pid=pid,
            criu=search.result(),
            options=running.criu_arguments,
            workload=workload,
            criu_log=running.criu_log,
            sealing=prepared,
        ),
        rounds=rounds,
        decision=restore_timeout,
        say=notice.warn,
    )
    connection = endpoint.Connection(address, patience=timeout, ssh=ssh, remote=remote)
    with connection as link, Bar(f"migrating {pid}") as bar:
        result = Sender(link, request).run(bar)
    if as_json:
        echo_json(_values(result))
        return
    frozen = result.last.criu.get("frozen_time", 0) / 1e6
    for number, done in enumerate(result.rounds, 1):
        click.echo(f"round {number}: {done.pages} of {done.of} pages, frozen {done.frozen:.2f} s")
    click.echo(
        f"process {pid} runs on {printable(address.host)}: {notice.show_size(result.sent)} sent "
        f"in {result.seconds:.2f} s, frozen {frozen:.2f} s"
    )


def _values(result: MigrateResult) -> dict[str, Any]:
    return {
        "checkpoint": result.last.checkpoint_id.hex(),
        "sent": result.sent,
        "rounds": [
            {"pages_sent": r.pages, "pages": r.of, "frozen_seconds": round(r.frozen, 3)}
            for r in result.rounds
        ],
        "seconds": round(result.seconds, 3),
        "frozen_seconds": round(result.last.criu.get("frozen_time", 0) / 1e6, 3),
    }

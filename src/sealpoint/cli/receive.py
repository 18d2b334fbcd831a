"""`sealpoint receive`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from sealpoint.cli import keyring, notice, numbers, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.cli.running import Running, runs_criu
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.checkpoint import Admission, OpenedCheckpoint, Opening, Receiver, ReceiveRequest
    from sealpoint.cli.endpoint import Endpoint
    from sealpoint.store.link import Link

_ENDING = (
    3  # times --timeout that the sender has to end the tree: freeing much memory takes a while
)


@click.command()
@click.option(
    "--listen",
    metavar="tcp://HOST:PORT",
    help="Wait for one migration at this address; at the loopback address if HOST is empty.",
)
@click.option(
    "--stdio", is_flag=True, help="Use standard input and output, for instance under ssh."
)
@reads_checkpoint("expect", "max_size")
@options.allow_older_option
@click.option(
    "--keep",
    metavar="DIR",
    default="/var/lib/sealpoint/received",
    show_default=True,
    help="Keep the sealed files in DIR until the tree runs here. Nobody but root may be able to write to it.",
)
@click.option(
    "--list",
    "list_left",
    is_flag=True,
    help="Show what earlier migrations have left behind, and exit.",
)
@click.option(
    "--remove",
    metavar="NAME",
    help="Remove what one migration has left behind (see --list), and exit.",
)
@click.option(
    "--wait",
    type=numbers.SECONDS,
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="With --listen: how long to wait for a migration to begin.",
)
@options.link_timeout_option
@runs_criu()
def command(
    *,
    listen: str | None,
    stdio: bool,
    reading: Reading,
    running: Running,
    allow_older: bool,
    keep: str,
    list_left: bool,
    remove: str | None,
    wait: float,
    timeout: float,
    as_json: bool,
) -> None:
    """Receive one process tree from `sealpoint migrate`, and run it here.

    The tree runs here when all of it has been verified and the sender has confirmed that it ended there. Otherwise
    nothing of it runs. Until then, its sealed files are in --keep. The command first lists what an earlier migration
    has left there.

    \b
    Example:
      sealpoint receive --listen tcp://0.0.0.0:7777 -i identity.key --trust signer.pub
      sealpoint receive --list
    """
    if list_left or remove:
        if listen or stdio or (list_left and remove):
            raise UsageError(
                "--list and --remove cannot be used together, nor with --listen or --stdio"
            )
        _care(keep, running.states, remove, as_json=as_json)
        return
    if bool(listen) == stdio:
        raise UsageError("give either --listen or --stdio")
    if stdio:
        keyring.check_standard_input("-", reading.passphrase_file)
    reading.harden()
    search = running.search()
    from sealpoint.checkpoint import Receiver, ReceiveRequest, RestoreRequest
    from sealpoint.cli import endpoint
    from sealpoint.cli.bar import Bar
    from sealpoint.cli.received import described
    from sealpoint.store.link import Link
    from sealpoint.store.received import make_directory

    request = ReceiveRequest(
        opening=_opening(reading),
        admit=_admit(reading, running.states, allow_older=allow_older),
        restore=RestoreRequest(
            criu=search.result(), options=running.criu_arguments, criu_log=running.criu_log
        ),
        keep=keep,
        state=running.states,
        max_size=reading.max_size,
        decision=_ENDING * timeout,
        say=notice.warn,
    )
    make_directory(keep)
    for line in described(keep, request.state):
        notice.warn(line)
    if listen:
        address = endpoint.parse(listen, schemes=("tcp",), listens=True)
        link, receiver = _first_trusted(address, request, patience=timeout, wait=wait)
    else:
        link = Link(*endpoint.standard_streams(), peer="the sender", patience=timeout)
        receiver = Receiver(link, request)
    try:
        with Bar("receiving") as bar:
            result = receiver.run(bar)
    finally:
        link.close()
    # Standard output is the link's where --stdio was given.
    if as_json:
        echo_json({"pid": result.pid, "criu": result.criu}, err=stdio)
    else:
        click.echo(f"process {result.pid} runs here", err=stdio)


def _opening(reading: Reading) -> Opening:
    """How each round's file is opened; the keys are loaded now: the tree must not wait, frozen, for a passphrase."""
    from sealpoint.checkpoint import Expectation

    expected = Expectation.of(reading.workloads, ())
    opening = reading.opening(expected=expected, limit=None, alone=True)
    opening.identities()
    return opening


def _admit(
    reading: Reading, states: str, *, allow_older: bool
) -> Callable[[OpenedCheckpoint], Admission]:
    """What is asked before the last file is restored; those of rounds before are other checkpoints."""
    from sealpoint.checkpoint import Admission, Expectation

    wanted = Expectation.of((), reading.expect)

    def admit(checkpoint: OpenedCheckpoint) -> Admission:
        wanted.check(checkpoint.authentic)
        notice.announce(checkpoint)
        return Admission(checkpoint, states, notice.warn, allow_older=allow_older)

    return admit


def _first_trusted(
    address: Endpoint, request: ReceiveRequest, *, patience: float, wait: float
) -> tuple[Link, Receiver]:
    """The first who proves that he is trusted; others are turned away, and said.  Raises SystemEnvironmentError."""
    from sealpoint.checkpoint import Receiver
    from sealpoint.store.guests import Guest, Guests, listen
    from sealpoint.store.link import Link

    found: list[tuple[Link, Receiver]] = []

    def serve(guest: Guest, admit: Callable[[], bool]) -> None:
        link = Link.of_socket(guest.connection.dup(), peer=guest.name, patience=patience)
        try:
            receiver = Receiver(link, request)
            receiver.greet()
            if admit():
                found.append((link, receiver))
                return
            link.stop(b"another migration came first")
        except BaseException:
            link.close()
            raise
        link.close()

    with listen(address.host, address.port or 0) as listener:
        Guests(listener, serve, patience=patience, say=notice.warn, single=True).run(wait)
    return found[0]


def _care(keep: str, states: str, remove: str | None, *, as_json: bool) -> None:
    """List what was left, or remove one of it.  Raises UsageError, SystemEnvironmentError."""
    from sealpoint.cli import received

    if remove:
        received.remove(keep, states, remove)
    elif as_json:
        echo_json(received.values(keep, states))
    else:
        for line in received.described(keep, states):
            click.echo(printable(line))

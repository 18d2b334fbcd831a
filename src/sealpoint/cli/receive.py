"""`sealpoint receive`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from sealpoint import config as configuration
from sealpoint.cli import numbers, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.checkpoint.opening import Checkpoint
    from sealpoint.checkpoint.receive import Receiver, ReceiveRequest
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
@click.option("--stdio", is_flag=True, help="Speak on standard input and output, as under ssh.")
@options.identity_options
@options.trust_options
@options.expect_options
@options.allow_older_option
@click.option(
    "--keep",
    metavar="DIR",
    default="/var/lib/sealpoint/received",
    show_default=True,
    help="Where the sealed files are until the tree runs here. Only root may be able to write to it.",
)
@click.option(
    "--list", "list_left", is_flag=True, help="Show what earlier migrations have left, and end."
)
@click.option(
    "--remove", metavar="NAME", help="Remove what one migration has left (see --list), and end."
)
@options.max_size_option
@options.state_option
@click.option(
    "--wait",
    type=numbers.SECONDS,
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="With --listen: how long to wait for a migration to begin.",
)
@options.link_timeout_option
@options.criu_options
@options.json_option
@click.argument("criu_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- CRIU-OPTIONS]")
def command(
    *,
    listen: str | None,
    stdio: bool,
    identities: tuple[str, ...],
    passphrase_file: str | None,
    trust: tuple[str, ...],
    allow_unsigned: bool,
    allow_expired: bool,
    workloads: tuple[str, ...],
    expect: tuple[str, ...],
    allow_older: bool,
    keep: str,
    list_left: bool,
    remove: str | None,
    max_size: int | None,
    state: str | None,
    wait: float,
    timeout: float,
    criu: str | None,
    criu_log: str | None,
    as_json: bool,
    criu_arguments: tuple[str, ...],
) -> None:
    """Receive one process tree from `sealpoint migrate`, and run it here.

    It runs when everything has verified and the sender has said that it has ended there. If not, nothing of it runs.
    Its sealed files are in --keep until it runs. What an earlier migration has left there is shown first.

    \b
    Example:
      sealpoint receive --listen tcp://0.0.0.0:7777 -i identity.key --trust signer.pub
      sealpoint receive --list
    """
    if list_left or remove:
        if listen or stdio or (list_left and remove):
            raise UsageError("--list and --remove do nothing else")
        _care(keep, state, remove, as_json=as_json)
        return
    if bool(listen) == stdio:
        raise UsageError("give either --listen or --stdio")
    if stdio:
        options.check_standard_input("-", passphrase_file)
    config = configuration.load()
    options.protect()
    from sealpoint.criu.binary import Search

    search = Search(criu or config.criu or None, fault=config.criu_fault)
    from sealpoint.checkpoint.admission import Admission
    from sealpoint.checkpoint.expectation import Expectation
    from sealpoint.checkpoint.receive import Receiver, ReceiveRequest
    from sealpoint.checkpoint.restore import RestoreRequest
    from sealpoint.checkpoint.state import DEFAULT_DIRECTORY
    from sealpoint.cli import endpoint
    from sealpoint.cli.bar import Bar
    from sealpoint.cli.received import described
    from sealpoint.store.link import Link
    from sealpoint.store.received import make_directory

    opening = options.opening(
        config,
        identities=identities,
        passphrase_file=passphrase_file,
        trust=trust,
        allow_unsigned=allow_unsigned,
        allow_expired=allow_expired,
        workloads=workloads,
        alone=True,
    )
    opening.identities()  # now: the tree must not wait, frozen, for a passphrase
    states = state or config.state or DEFAULT_DIRECTORY
    wanted = Expectation.of((), expect)  # of the last file: those of rounds before are others

    def admit(checkpoint: Checkpoint) -> Admission:
        wanted.check(checkpoint.authentic)
        options.announce(checkpoint)
        return Admission(checkpoint, states, options.warn, allow_older=allow_older)

    request = ReceiveRequest(
        opening=opening,
        admit=admit,
        restore=RestoreRequest(criu=search.result(), options=criu_arguments, criu_log=criu_log),
        keep=keep,
        state=states,
        max_size=max_size,
        decision=_ENDING * timeout,
        say=options.warn,
    )
    make_directory(keep)
    for line in described(keep, request.state):
        options.warn(line)
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


def _first_trusted(
    address: Endpoint, request: ReceiveRequest, *, patience: float, wait: float
) -> tuple[Link, Receiver]:
    """The first who proves that he is trusted; others are turned away, and said.  Raises SystemEnvironmentError."""
    from sealpoint.checkpoint.receive import Receiver
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
        Guests(listener, serve, patience=patience, say=options.warn, single=True).run(wait)
    return found[0]


def _care(keep: str, state: str | None, remove: str | None, *, as_json: bool) -> None:
    """List what was left, or remove one of it.  Raises UsageError, SystemEnvironmentError."""
    from sealpoint.checkpoint.state import DEFAULT_DIRECTORY
    from sealpoint.cli import received

    store = state or configuration.load().state or DEFAULT_DIRECTORY
    if remove:
        received.remove(keep, store, remove)
    elif as_json:
        echo_json(received.values(keep, store))
    else:
        for line in received.described(keep, store):
            click.echo(printable(line))

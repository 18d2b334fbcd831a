"""`criu page-server` as typed, or asked for by RPC: stores what a dump elsewhere sends, sealed as it comes.

It needs no key but to know whom to believe, and the real CRIU has no part in it.  Several dumps may send at once, and
whoever has not proved who sends disturbs none.  As with CRIU, the process ends when a dump was served, and no other is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final, NoReturn

from sealpoint import config as configuration, names
from sealpoint.checkpoint import Front, peer, separate_pages
from sealpoint.config import Config
from sealpoint.criu import schema
from sealpoint.dropin import background
from sealpoint.dropin.arguments import CommandLine
from sealpoint.dropin.descriptors import Journal, RequestDescriptors, copy_descriptor
from sealpoint.dropin.inherited import release_descriptors
from sealpoint.errors import PolicyError, SealpointError, UsageError
from sealpoint.format.raw import Descriptor
from sealpoint.keys import TrustPolicy
from sealpoint.process import Held
from sealpoint.store import guests, page_server
from sealpoint.store.guests import Guest, Guests
from sealpoint.store.page_server import ReceivedPages

_PATIENCE: Final = 20.0  # seconds in which whoever connects proves who sends
_TAKEN: Final = (
    *("images-dir", "work-dir", "log-file", "address", "port", "ps-socket", "status-fd", "pidfile"),
    *("daemon", "restore-detached", "verbosity", "no-default-config"),
)


def run(line: CommandLine) -> NoReturn:
    """Ends the process, with 0 if a file was stored and 1 if not."""
    try:
        images = os.path.abspath(line.images or ".")
        work = os.path.abspath(line.work or images)
        if line.has("log-file"):
            background.log_to(os.path.join(work, line.values["log-file"]))
        _serve(line, images, work)
    except SealpointError as error:
        background.say_error(error)
        os._exit(1)
    os._exit(0)


def _serve(line: CommandLine, images: str, work: str) -> None:
    unknown = [n for n in line.values if n not in _TAKEN and n not in line.from_files]
    if unknown:
        raise UsageError(f"criu page-server does not support --{unknown[0]} when it seals")
    if not os.path.isdir(images):
        raise UsageError(f"there is no directory {images}")
    policy = _policy(configuration.load_system())

    def note(stored: ReceivedPages) -> None:
        background.say(f"Stored {stored.path}, {stored.size} bytes")

    if line.has("ps-socket"):
        number = line.number("ps-socket")
        try:
            connection = socket.socket(fileno=number)
        except OSError as error:
            raise UsageError(f"descriptor {number} is not a socket: {error.strerror}") from None
        with background.Launch(line, work) as launch:
            launch.ready()
        with connection:
            note(page_server.receive(connection, _receiving(images, policy)))
        return
    with guests.listen(line.values.get("address", ""), line.number("port")) as listener:
        background.say(f"Listening on port {listener.getsockname()[1]}")
        with background.Launch(line, work) as launch:
            launch.ready()
        _serve_guests(listener, images, policy, note, background.say)


def _serve_guests(
    listener: socket.socket,
    images: str,
    policy: TrustPolicy,
    note: Callable[[ReceivedPages], None],
    warn: Callable[[str], None],
) -> None:
    """Until a dump was served and no other is.  Raises SealpointError if one failed."""
    how = _receiving(images, policy)

    def serve(guest: Guest, admit: Callable[[], bool]) -> None:
        note(page_server.receive(guest.connection, how, admit))

    crowd = Guests(listener, serve, patience=_PATIENCE, say=warn, single=False)
    for guest in crowd.run():
        if guest.error is not None:
            raise guest.error


def answer(data: bytes, parent: Held) -> tuple[int, bytes]:
    """A page server in a process of its own, for a request by RPC; its pid, and the answer for the engine.

    Forks: no other thread may run.  parent: in whose descriptors numbers count.  Raises Exception; what is wrong is in
    CRIU's log, too.
    """
    journal = Journal()
    try:
        request = schema.message("criu_req").FromString(data)
        options = request.opts
        descriptors = RequestDescriptors(parent)
        images = descriptors.directory(options)
        journal.open(descriptors.work_directory(options, images), names.text(options.log_file))
        response = schema.message("criu_resp")(type=request.type, success=True)
        policy = _policy(configuration.load_system())
        if options.ps.HasField("fd"):
            number = copy_descriptor(parent, options.ps.fd)
            with socket.socket(fileno=number) as given:
                response.ps.pid = _forked(given, images, journal, policy, listens=False)
        else:
            with guests.listen(names.text(options.ps.address), options.ps.port) as listener:
                response.ps.port = listener.getsockname()[1]
                response.ps.pid = _forked(listener, images, journal, policy, listens=True)
    except Exception as error:
        journal.say(error.message if isinstance(error, SealpointError) else type(error).__name__)
        raise
    return response.ps.pid, response.SerializeToString()


def _forked(
    source: socket.socket,
    images: int,
    journal: Journal,
    policy: TrustPolicy,
    *,
    listens: bool,
) -> int:
    pid = os.fork()
    if pid:
        return pid

    def note(stored: ReceivedPages) -> None:
        name = os.path.basename(stored.path)
        journal.say(f"stored {name}, {stored.size} bytes", "Info ")

    code = 1
    try:
        os.setsid()
        release_descriptors(sorted({source.fileno(), images, journal.directory}))
        where = f"/proc/self/fd/{images}"
        if listens:
            _serve_guests(source, where, policy, note, journal.say)
        else:
            note(page_server.receive(source, _receiving(where, policy)))
        code = 0
    except SealpointError as error:
        journal.say(error.message)
    except BaseException as error:  # noqa: BLE001 - there is nobody to raise to
        journal.say(f"the page server failed ({type(error).__name__})")
    finally:
        os._exit(code)


def _receiving(images: str, policy: TrustPolicy) -> page_server.Receiving:
    return page_server.Receiving(
        directory=images,
        name=separate_pages.file_name,
        check_proof=lambda proof, nonce: peer.check(proof, policy, peer.PAGE_SERVER, nonce),
        front=lambda: Front(policy).feed,
        check=lambda fd, checkpoint_id: separate_pages.check_stored(
            Descriptor(fd), checkpoint_id, policy
        ),
    )


def _policy(config: Config) -> TrustPolicy:
    """Whom a sender must be.  Raises PolicyError where the configuration does not say."""
    if not config.names_trust:
        raise PolicyError(
            "the page server does not know whom to trust: anyone could fill its disk",
            hint=f"set trust in {configuration.SYSTEM_PATH} to the signers of the dumps",
        )
    return config.policy()

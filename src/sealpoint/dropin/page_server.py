"""`criu page-server` as typed: stores what a dump on another machine sends, sealed as it comes.  Needs no key.

The real CRIU has no part in this.  As with it, one connection is served, then the process ends.
"""

from __future__ import annotations

import os
import socket
from typing import Final, NoReturn

from sealpoint import config as configuration
from sealpoint.checkpoint import pages_file
from sealpoint.dropin import background
from sealpoint.dropin.arguments import CommandLine
from sealpoint.errors import SealpointError, UsageError
from sealpoint.keys import TrustPolicy
from sealpoint.store import page_server

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
    unknown = [name for name in line.values if name not in _TAKEN]
    if unknown:
        raise UsageError(f"criu page-server cannot be told --{unknown[0]} with sealing")
    if not os.path.isdir(images):
        raise UsageError(f"there is no directory {images}")
    policy = _policy()
    if line.has("ps-socket"):
        number = line.number("ps-socket")
        try:
            connection = socket.socket(fileno=number)
        except OSError as error:
            raise UsageError(f"descriptor {number} is no socket: {error.strerror}") from None
        with background.Launch(line, work) as launch:
            launch.ready()
    else:
        with page_server.listen(line.values.get("address", ""), line.number("port")) as listener:
            background.say(f"Listening on port {listener.getsockname()[1]}")
            with background.Launch(line, work) as launch:
                launch.ready()
            connection, peer = listener.accept()
        background.say(f"Accepted connection from {peer[0]}:{peer[1]}")
    with connection:
        stored = page_server.receive(
            connection,
            images,
            pages_file.file_name,
            lambda fd, checkpoint_id: pages_file.check_stored(fd, checkpoint_id, policy),
        )
    background.say(f"Stored {stored.path}, {stored.size} bytes")


def _policy() -> TrustPolicy | None:
    """Whom a sender's file must be signed by, if the configuration says so."""
    from sealpoint import keys

    config = configuration.load()
    if not config.trust and not config.signer_authorities:
        return None
    return keys.load_trust(config.trust, ca_bundles=config.signer_authorities)

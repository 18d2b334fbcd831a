"""`criu dedup` as typed: free what the parents of the sealed file in an images directory have lost by it."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from sealpoint import config as configuration
from sealpoint.checkpoint import SEALED_IMAGE, prune_parents, signing_by
from sealpoint.dropin.arguments import CommandLine
from sealpoint.dropin.increments import policy_of, reference_of, store_of, told
from sealpoint.dropin.work import load_signer
from sealpoint.errors import FileError, SealpointError
from sealpoint.names import printable


def run(line: CommandLine) -> NoReturn:
    """Ends with status 0 if every parent has lost what it could, else with 1.  Raises SealpointError."""
    images = os.path.abspath(line.images or ".")
    config = configuration.load_system()
    signing = signing_by(load_signer(config))
    try:
        directory = os.open(images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        child = reference_of(directory)
    except OSError as error:
        raise SealpointError(f"cannot open {images}: {error.strerror}") from None
    except FileError as error:
        raise SealpointError(f"{images}/{SEALED_IMAGE}: {error.message}") from None
    results = prune_parents(
        f"{images}/{SEALED_IMAGE}", child, store_of(config), signing, policy_of(config, signing)
    )
    for result in results:
        sys.stdout.write(printable(told(result)) + "\n")
    sys.stdout.flush()
    os._exit(1 if any(r.reason for r in results) else 0)

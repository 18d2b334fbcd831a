"""sealpoint: end-to-end encryption for CRIU checkpoints.

The packages are layers; each imports only what is below it (see [tool.importlinter] in pyproject.toml).  What is public
is in `__all__` (docs/reference/api.md).  It is loaded when it is asked for, so that the import costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sealpoint.version import __version__ as __version__

if TYPE_CHECKING:
    from sealpoint.api import (
        Checkpoint,
        CriuError,
        DumpResult,
        FileError,
        Identity,
        IdentityError,
        Image,
        NoTrustedSignerGivenError,
        PolicyError,
        Recipient,
        RestoreResult,
        Sealing,
        SealpointError,
        SealResult,
        Signer,
        SystemEnvironmentError,
        Task,
        TrustPolicy,
        UsageError,
        dump,
        load_identity,
        load_recipient,
        load_signer,
        load_trust,
        passphrase_identity,
        passphrase_recipient,
        protect,
        restore,
        seal,
    )

__all__ = [
    "Checkpoint",
    "CriuError",
    "DumpResult",
    "FileError",
    "Identity",
    "IdentityError",
    "Image",
    "NoTrustedSignerGivenError",
    "PolicyError",
    "Recipient",
    "RestoreResult",
    "SealResult",
    "Sealing",
    "SealpointError",
    "Signer",
    "SystemEnvironmentError",
    "Task",
    "TrustPolicy",
    "UsageError",
    "dump",
    "load_identity",
    "load_recipient",
    "load_signer",
    "load_trust",
    "passphrase_identity",
    "passphrase_recipient",
    "protect",
    "restore",
    "seal",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sealpoint import api

    value = globals()[name] = getattr(api, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The system's configuration for the drop-in: what it must have, whether its keys load, and how it is written."""

from __future__ import annotations

import json
import os
import re
from typing import Any, Final

from sealpoint import config as configuration, keys
from sealpoint.config import AgentTable, Config
from sealpoint.errors import IdentityError, UsageError
from sealpoint.keys.namespace import NamespaceTable
from sealpoint.keys.scope import TrustTable

_HEADER: Final = (
    "# Written by `sealpoint install-criu` for the drop-in criu. `sealpoint doctor` checks it.\n"
)
_KEY_ID: Final = re.compile(r"[0-9a-fA-F]{64}")
_LITERAL: Final = re.compile(r"sealpoint-[a-z0-9]+:")


def no_passphrase() -> bytes:
    """For loading keys where nobody can be asked."""
    raise IdentityError(
        "protected by a passphrase, for which the drop-in cannot ask",
        hint="use a key without one, readable by root only",
    )


def is_path(name: str) -> bool:
    """Whether a recipient or signer is named by a file, not literally."""
    return not _LITERAL.match(name) and not _KEY_ID.fullmatch(name)


def absolute(name: str) -> str:
    """A name as it can stand in the configuration: literals as they are, paths absolute.  Raises UsageError."""
    if name == "passphrase":
        raise UsageError("the drop-in cannot ask for a passphrase", hint="use a key")
    return os.path.abspath(os.path.expanduser(name)) if is_path(name) else name


def given(config: Config) -> dict[str, Any]:
    """The settings that are not as they are without a configuration."""
    values = config._asdict()
    return {n: value for n, value in values.items() if value != Config._field_defaults[n]}


def merged(base: Config, over: Config) -> Config:
    """`over` wins, setting by setting; a signer brings its certificate along, or has none."""
    changes = given(over)
    if "signer" in changes and over.signer != base.signer:
        changes.setdefault("signer_certificate", "")
    return base._replace(**changes)


def can_seal(config: Config) -> bool:
    """Whether dumps are possible at all."""
    return bool(config.recipients and config.signer)


def can_open(config: Config) -> bool:
    """Whether restores are possible at all."""
    return bool(config.identities and config.names_trust)


def validate(config: Config) -> list[str]:
    """Load everything that is named, as the drop-in will.  Returns warnings.

    Raises SealpointError: nothing can be done with it, or a key does not load.
    """
    _whole_pairs(config)  # first: it knows better what is missing
    if not can_seal(config) and not can_open(config):
        raise UsageError(
            "with this configuration you can neither dump nor restore",
            hint="dumps need -r RECIPIENT and --sign KEY, restores need -i IDENTITY and --trust SIGNER",
        )
    policy = keys.CertificatePolicy(keys.load_authorities(config.recipient_authorities))
    everyone = [
        keys.load_recipient(name, policy=policy)
        for name in (*config.recipients, *config.metadata_recipients)
    ]
    if len({r.fingerprint for r in everyone}) != len(everyone):
        raise UsageError("a recipient is given twice")
    for name in config.namespace_recipients:
        keys.load_recipient(name, policy=policy)
    if config.signer:
        keys.load_signer(
            config.signer,
            passphrase=no_passphrase,
            certificate=config.signer_certificate or None,
        )
    for name in config.identities:
        keys.load_identity(name, passphrase=no_passphrase)
    config.policy()
    warnings = [keys.permissions_warning(p) for p in (*config.identities, config.signer) if p]
    return [w for w in warnings if w]


def _whole_pairs(config: Config) -> None:
    """Half of what dumps or restores need is a mistake, not a choice."""
    if bool(config.recipients) != bool(config.signer):
        missing = "-r RECIPIENT" if config.signer else "--sign KEY"
        raise UsageError(f"dumps need recipients and a signer: {missing} is missing")
    if config.metadata_recipients and not config.recipients:
        raise UsageError(
            "all recipients are metadata recipients: nobody would be able to open the memory"
        )
    if config.identities and not can_open(config):
        raise UsageError("restores need an identity and trusted signers: --trust SIGNER is missing")


def render(config: Config) -> bytes:
    """config.toml.  Raises UsageError for a path that TOML cannot hold."""
    lines = [_HEADER]
    for name, value in given(config).items():
        lines.append(f"{name} = {_value(value)}\n")
    try:
        data = "".join(lines).encode()
    except UnicodeEncodeError:
        raise UsageError("a path is not UTF-8, which the configuration has to be") from None
    assert Config(**configuration.parse(data, configuration.SYSTEM_PATH)) == config
    return data


def _value(value: Any) -> str:
    """As TOML has it: a table within a list is written in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, AgentTable):
        defaults = AgentTable._field_defaults
        told = {k: v for k, v in value._asdict().items() if v != defaults[k]}
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in told.items()) + " }"
    if isinstance(value, TrustTable | NamespaceTable):
        pairs = ", ".join(f"{k} = {_value(v)}" for k, v in value.to_settings().items())
        return f"{{ {pairs} }}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return _string(value)


def _string(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

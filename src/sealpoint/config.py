"""Defaults from /etc/sealpoint/config.toml and then ~/.config/sealpoint/config.toml, which wins key by key.

Relative paths are relative to the file that names them.  A mistake names the file, the key and the line.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final, NamedTuple

from sealpoint.errors import UsageError

SYSTEM_PATH: Final = "/etc/sealpoint/config.toml"
_MAX_SIZE: Final = 1024 * 1024


class Config(NamedTuple):
    """Lists are tuples; empty means: not configured.

    recipients, metadata_recipients: files or literals; signer: private key file; signer_certificate: its X.509 chain;
    identities: private key files; trust: signers to believe; recipient_authorities, signer_authorities: CA bundles that
    X.509 certificates must lead to; compress, suite: defaults of the options; criu: path of the CRIU to run; state:
    directory of the state store; allow_lazy_restore: the drop-in may run a tree before all of its memory was verified;
    allow_plain_images: it may restore what is not sealed; allow_criu_fields: numbers of fields of CRIU's requests that
    it lets through although it does not know them ("72", "11.5", "req.7"); criu_fault: CRIU_FAULT reaches CRIU;
    container_workloads: containers are sealed under an opaque workload of theirs; expect_workloads, expect (checkpoint
    ids, origin digests): the drop-in restores nothing else.
    """

    recipients: tuple[str, ...] = ()
    metadata_recipients: tuple[str, ...] = ()
    signer: str = ""
    signer_certificate: str = ""
    identities: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()
    recipient_authorities: tuple[str, ...] = ()
    signer_authorities: tuple[str, ...] = ()
    compress: str = ""
    suite: str = ""
    criu: str = ""
    state: str = ""
    allow_lazy_restore: bool = False
    allow_plain_images: bool = False
    allow_criu_fields: tuple[str, ...] = ()
    criu_fault: bool = False
    container_workloads: bool = True
    expect_workloads: tuple[str, ...] = ()
    expect: tuple[str, ...] = ()


_PATHS: Final = {
    "recipients",
    "metadata_recipients",
    "signer",
    "signer_certificate",
    "identities",
    "trust",
    "recipient_authorities",
    "signer_authorities",
    "criu",
    "state",
}
_SYSTEM_ONLY: Final = ("allow_criu_fields", "criu_fault")
_FIELD: Final = re.compile(r"(req\.)?[1-9][0-9]*(\.[1-9][0-9]*)*")
_LITERAL: Final = re.compile(r"sealpoint-[a-z0-9]+:|passphrase$|[0-9a-fA-F]{64}$")
_CHOICES: Final = {
    "compress": ("auto", "none", "lz4", "zstd"),
    "suite": ("aes-256-gcm", "chacha20-poly1305"),
}


def paths() -> list[str]:
    """The configuration files in the order in which they are read."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [SYSTEM_PATH, os.path.join(home, "sealpoint", "config.toml")]


def load() -> Config:
    """Both files, as far as they exist.  Raises UsageError."""
    return _load(paths())


def _load(files: list[str]) -> Config:
    config = Config()
    for path in files:
        try:
            with open(path, "rb") as file:
                data = file.read(_MAX_SIZE + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
        if len(data) > _MAX_SIZE:
            raise UsageError(f"{path}: larger than {_MAX_SIZE} bytes")
        settings = parse(data, path)
        if path != SYSTEM_PATH and (wrong := [key for key in _SYSTEM_ONLY if key in settings]):
            raise UsageError(f"{path}: {wrong[0]} can be set in {SYSTEM_PATH} only")
        config = config._replace(**settings)
    return config


def load_system() -> Config:
    """The system's file alone, as a service uses it.  Raises UsageError."""
    return _load([SYSTEM_PATH])


def parse(data: bytes, path: str) -> dict[str, Any]:
    """The checked settings of one file.  Raises UsageError."""
    import tomllib

    try:
        text = data.decode()
        values = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    known = Config._field_defaults
    settings: dict[str, Any] = {}
    for key, given in values.items():
        value = given
        where = f"{path}, line {_line_of(text, key)}: {key}"
        if key not in known:
            raise UsageError(f"{where}: no such setting", hint="known: " + ", ".join(sorted(known)))
        if isinstance(known[key], bool):
            if not isinstance(value, bool):
                raise UsageError(f"{where}: wants true or false")
            settings[key] = value
            continue
        wants_list = isinstance(known[key], tuple)
        if wants_list and isinstance(value, str):
            value = [value]
        items = value if wants_list and isinstance(value, list) else [value]
        if key == "allow_criu_fields":
            items = value = [str(v) if type(v) is int else v for v in items]
            if not all(isinstance(v, str) and _FIELD.fullmatch(v) for v in items):
                raise UsageError(f'{where}: wants numbers of fields, as [72, "11.5"]')
        if wants_list != isinstance(value, list) or not all(isinstance(v, str) for v in items):
            raise UsageError(f"{where}: wants {'a list of strings' if wants_list else 'a string'}")
        if key in _CHOICES and items[0] and items[0] not in _CHOICES[key]:
            raise UsageError(f"{where}: wants one of {', '.join(_CHOICES[key])}")
        if key in _PATHS:
            items = [_resolve(v, path) for v in items]
        settings[key] = tuple(items) if wants_list else items[0]
    return settings


def _resolve(value: str, path: str) -> str:
    if not value or _LITERAL.match(value):
        return value
    return os.path.join(os.path.dirname(path), os.path.expanduser(value))


def _line_of(text: str, key: str) -> int:
    start = re.compile(rf"\s*\[{{0,2}}\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
    return next((n for n, line in enumerate(text.splitlines(), 1) if start.match(line)), 1)

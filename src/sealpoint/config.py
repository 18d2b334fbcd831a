"""Defaults from /etc/sealpoint/config.toml and then ~/.config/sealpoint/config.toml, which wins key by key.

Relative paths are relative to the file that names them.  A mistake names the file, the key and the line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sealpoint.errors import PolicyError, UsageError
from sealpoint.ownership import Configured, open_owned

if TYPE_CHECKING:
    from sealpoint.keys import TrustPolicy
    from sealpoint.keys.namespace import NamespaceTable
    from sealpoint.keys.scope import TrustTable

SYSTEM_PATH: Final = "/etc/sealpoint/config.toml"
_MAX_SIZE: Final = 1024 * 1024


class AgentTable(NamedTuple):
    """The table [agent]; "" and 0: not configured.  Sizes in bytes, times in seconds; see `agent.settings`."""

    watch: tuple[str, ...] = ()
    store: str = ""
    state: str = ""
    listen: str = ""
    spool: str = ""
    unconditional: bool = False
    max_size: int = 0
    min_free: int | None = None
    commit_timeout: float = 0
    keep_last: int = 0
    keep_age: float = 0
    keep_bytes: int = 0


class Config(NamedTuple):
    """Lists are tuples; empty means: not configured.

    recipients, metadata_recipients: files or literals; signer: private key file; signer_certificate: its X.509 chain;
    identities: private key files; trust: signers to believe, or tables that limit them; signer_usages: dotted OIDs that
    certificates have which an authority of signers issued, instead of sealpoint's; recipient_authorities,
    signer_authorities: CA bundles that X.509 certificates must lead to; compress, suite: defaults of the options; criu:
    path of the CRIU to run; state: directory of the state store; allow_lazy_restore: the drop-in may run a tree before
    all of its memory was verified; allow_plain_images: it may restore what is not sealed; allow_criu_fields: numbers of
    fields of CRIU's requests that it lets through although it does not know them ("72", "11.5", "req.7"); criu_fault:
    CRIU_FAULT reaches CRIU; container_workloads: containers are sealed under an opaque workload of theirs;
    expect_workloads, expect (checkpoint ids, origin digests): the drop-in restores nothing else; cluster: name of the
    Kubernetes cluster that this node is in; namespaces: who else can open the checkpoints of a namespace; restore_from:
    workloads that may be restored into pods although they are another cluster's or namespace's.  agent: `sealpoint
    agent`.
    """

    recipients: tuple[str, ...] = ()
    metadata_recipients: tuple[str, ...] = ()
    signer: str = ""
    signer_certificate: str = ""
    identities: tuple[str, ...] = ()
    trust: tuple[str | TrustTable, ...] = ()
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
    signer_usages: tuple[str, ...] = ()
    agent: AgentTable = AgentTable()
    cluster: str = ""
    namespaces: tuple[NamespaceTable, ...] = ()
    restore_from: tuple[str, ...] = ()

    @property
    def namespace_recipients(self) -> tuple[str, ...]:
        """Files and literals that the tables of `namespaces` name."""
        tables = self.namespaces
        return tuple(n for t in tables for n in (*t.recipients, *t.metadata_recipients))

    @property
    def names_trust(self) -> bool:
        """Whether it says whom to believe."""
        return bool(self.trust or self.signer_authorities)

    @property
    def trusted(self) -> tuple[str, ...]:
        """Files and literals that `trust` names, those of its tables too."""
        names: list[str] = []
        for named in self.trust:
            names += [named] if isinstance(named, str) else [*named.keys, *named.authorities]
        return tuple(names)

    def policy(
        self,
        named: Sequence[str] = (),
        *,
        more: Sequence[str] = (),
        allow_unsigned: bool = False,
        allow_expired: bool = False,
        names_only: bool = False,
    ) -> TrustPolicy:
        """Whom to believe: the signers that a user named, else those of the configuration.

        more: besides; names_only: where neither names anybody, find out who signed instead of refusing.  Raises as
        `keys.load_trust` does.
        """
        from sealpoint import keys

        names_only = names_only and not (named or self.names_trust)
        return keys.load_trust(
            [*(named or self.trust), *more],
            ca_bundles=() if named else self.signer_authorities,
            usages=self.signer_usages,
            allow_unsigned=allow_unsigned,
            allow_expired=allow_expired,
            names_only=names_only,
        )


_PATHS: Final = {
    "recipients",
    "metadata_recipients",
    "signer",
    "signer_certificate",
    "identities",
    "recipient_authorities",
    "signer_authorities",
    "criu",
    "state",
}
_SYSTEM_ONLY: Final = ("allow_criu_fields", "criu_fault", "cluster", "namespaces", "restore_from")
_FIELD: Final = re.compile(r"(req\.)?[1-9][0-9]*(\.[1-9][0-9]*)*")
_QUANTITY: Final = re.compile(r"([0-9]{1,15})([A-Za-z]?)")
_SIZES: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TIMES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LITERAL: Final = re.compile(r"sealpoint-[a-z0-9]+:|passphrase$|[0-9a-fA-F]{64}$")
_OID: Final = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,38}))+")
_ANY_USAGE: Final = "2.5.29.37.0"  # as in keys.certificate, which is slow to load
_CHOICES: Final = {
    "compress": ("auto", "none", "lz4", "zstd"),
    "suite": ("aes-256-gcm", "chacha20-poly1305"),
}


def paths() -> list[str]:
    """The configuration files in the order in which they are read."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [SYSTEM_PATH, os.path.join(home, "sealpoint", "config.toml")]


def load() -> Config:
    """Both files, as far as they exist.  Raises UsageError, PolicyError (others could have written one, for root)."""
    return _load(paths())


def _load(files: list[str]) -> Config:
    config = Config()
    for path in files:
        try:
            with open(open_owned(path, "the configuration file"), "rb") as file:
                data = file.read(_MAX_SIZE + 1)
        except PolicyError as error:
            way = "" if path == SYSTEM_PATH else "; or let XDG_CONFIG_HOME and HOME be root's"
            raise PolicyError(error.message, hint=f"{error.hint}{way}") from None
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
    """The system's file alone, as a service uses it.  Raises UsageError, PolicyError."""
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
        if key == "agent":
            settings[key] = _agent(value, path, where)
            continue
        if isinstance(known[key], bool):
            if not isinstance(value, bool):
                raise UsageError(f"{where}: must be true or false")
            settings[key] = value
            continue
        wants_list = isinstance(known[key], tuple)
        if wants_list and isinstance(value, str):
            value = [value]
        items = value if wants_list and isinstance(value, list) else [value]
        if key == "allow_criu_fields":
            items = value = [str(v) if type(v) is int else v for v in items]
            if not all(isinstance(v, str) and _FIELD.fullmatch(v) for v in items):
                raise UsageError(f'{where}: must be a list of field numbers, such as [72, "11.5"]')
        if key == "trust" and isinstance(value, list):
            settings[key] = tuple(_signer(v, path, where) for v in value)
            continue
        if key == "namespaces":
            settings[key] = _namespaces(value, path, where)
            continue
        if wants_list != isinstance(value, list) or not all(isinstance(v, str) for v in items):
            raise UsageError(
                f"{where}: must be {'a list of strings' if wants_list else 'a string'}"
            )
        if key in _CHOICES and items[0] and items[0] not in _CHOICES[key]:
            raise UsageError(f"{where}: must be one of {', '.join(_CHOICES[key])}")
        if key == "signer_usages":
            _check_usages(items, where)
        if key == "cluster":
            _check_cluster(value, where)
        if key in _PATHS:
            items = [_resolve(v, path) for v in items]
        settings[key] = tuple(items) if wants_list else items[0]
    return settings


def _agent(table: Any, path: str, where: str) -> AgentTable:
    """The table of that name: sizes and times as the options have them, or as numbers of bytes and seconds."""
    if not isinstance(table, dict):
        raise UsageError(f"{where}: must be a table")
    settings: dict[str, Any] = {}
    for key, value in table.items():
        if key not in AgentTable._fields:
            raise UsageError(
                f"{where}: there is no {key!r} in it",
                hint="known: " + ", ".join(AgentTable._fields),
            )
        settings[key] = _agent_value(key, value, path, f"{where}.{key}")
    return AgentTable(**settings)


def _agent_value(key: str, value: Any, path: str, where: str) -> Any:
    if key == "watch":
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(v, str) and v for v in items):
            raise UsageError(f"{where}: must be a list of directories")
        return tuple(_resolve(v, path) for v in items)
    if key == "unconditional":
        if not isinstance(value, bool):
            raise UsageError(f"{where}: must be true or false")
        return value
    if key in ("store", "state", "spool", "listen"):
        if not isinstance(value, str):
            raise UsageError(f"{where}: must be a string")
        local = key != "listen" and "://" not in value
        return _resolve(value, path) if local else value
    units = {"keep_age": _TIMES, "commit_timeout": _TIMES, "keep_last": {}}.get(key, _SIZES)
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    number = value if type(value) is int else int(found[1]) if found else -1
    unit = found[2].lower() if found else ""
    number *= units.get(unit, 1)
    if not 0 <= number < 1 << 53 or (unit and unit not in units):
        example = {id(_TIMES): '"30d"', id(_SIZES): '"50G"'}.get(id(units), "3")
        raise UsageError(f"{where}: must be a number, as in {example}")
    return number


def _signer(value: Any, path: str, where: str) -> str | TrustTable:
    """One element of `trust`."""
    if isinstance(value, str):
        return _resolve(value, path)
    if not isinstance(value, dict):
        raise UsageError(f"{where}: must be a list of strings or tables")
    from sealpoint.keys.scope import parse_table

    try:
        return parse_table(value, lambda v: _resolve(v, path))
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _namespaces(value: Any, path: str, where: str) -> tuple[NamespaceTable, ...]:
    from sealpoint.keys.namespace import parse_namespace

    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise UsageError(f"{where}: must be a list of tables: [[namespaces]]")
    try:
        tables = tuple(parse_namespace(v, lambda name: _resolve(name, path)) for v in value)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    names = [table.name for table in tables]
    if len(set(names)) != len(names):
        raise UsageError(f"{where}: a namespace is given twice")
    return tables


def _check_cluster(value: str, where: str) -> None:
    from sealpoint.keys.namespace import CLUSTER

    if value and not CLUSTER.fullmatch(value):
        raise UsageError(f"{where}: must be lower-case letters, digits, - and . (63 at most)")


def _check_usages(usages: list[str], where: str) -> None:
    for usage in usages:
        if not _OID.fullmatch(usage):
            raise UsageError(f"{where}: {usage!r} is not a dotted object identifier")
        if usage == _ANY_USAGE:
            raise UsageError(
                f"{where}: anyExtendedKeyUsage is not a usage made for signing checkpoints",
                hint="name the usage that the signers' certificates have",
            )


def _resolve(value: str, path: str) -> str:
    if not value or _LITERAL.match(value):
        return value
    return Configured(os.path.join(os.path.dirname(path), os.path.expanduser(value)))


def _line_of(text: str, key: str) -> int:
    start = re.compile(rf"\s*\[{{0,2}}\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
    return next((n for n, line in enumerate(text.splitlines(), 1) if start.match(line)), 1)

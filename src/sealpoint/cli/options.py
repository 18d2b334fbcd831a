"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sealpoint.cli import numbers
from sealpoint.cli.printable import printable
from sealpoint.config import Config
from sealpoint.errors import UsageError
from sealpoint.format.constants import Suite

if TYPE_CHECKING:
    from sealpoint.checkpoint.opening import Checkpoint, Opening
    from sealpoint.checkpoint.sealing import Sealing
    from sealpoint.inspect.source import Access, Source
    from sealpoint.keys import Identity, Recipient, Signer, TrustPolicy

Command = TypeVar("Command", bound=Callable[..., Any])
PASSPHRASE: Final = "passphrase"  # noqa: S105 - the literal that asks for a passphrase in place of a key
_MAX_PASSPHRASE: Final = 4096


def stack(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several decorators as one, in reading order."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


passphrase_file = click.option(
    "--passphrase-file",
    metavar="F|-",
    help="Read the passphrase from the first line of a file instead of asking for it.",
)
link_timeout_option = click.option(
    "--timeout",
    type=numbers.SECONDS,
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a link may be silent before it counts as broken.",
)


def _size(_: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes, or a number with K, M, G or T behind it, in steps of 1024.  Raises BadParameter."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE | re.ASCII)
    if found is None or not int(found[1]):
        raise click.BadParameter("must be bytes, or a number with K, M, G or T", param=param)
    return int(found[1]) << (10 * " KMGT".index(found[2].upper() or " "))


max_size_option = click.option(
    "--max-size",
    callback=_size,
    metavar="SIZE",
    help="Accept at most this many bytes (K, M, G) from a pipe or link. Default: half of the available memory where "
    "they are held in memory, and nine tenths of the free space where they are held in files.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _criu_of(_context: click.Context, _option: click.Parameter, path: str | None) -> str | None:
    if path:
        warn_ownership([path])
    return path


criu_options = stack(
    click.option(
        "--criu", metavar="PATH", callback=_criu_of, help="The CRIU to run (default: from PATH)."
    ),
    click.option(
        "--criu-log", metavar="FILE", help="Keep CRIU's log: names and addresses, no memory."
    ),
)
state_option = click.option(
    "--state",
    metavar="DIR",
    help="The state store, which remembers what was dumped here (default /var/lib/sealpoint/state).",
)
parents_option = click.option(
    "--parents",
    multiple=True,
    metavar="DIR",
    help="Another directory to search for the parents of an increment. Repeatable.",
)
store_option = click.option(
    "--store",
    "stores",
    multiple=True,
    metavar="DIR",
    help="The chunk store that the file refers to, if it is not beside the file. Repeatable.",
)
tenant_key_option = click.option(
    "--tenant-key", required=True, metavar="FILE", help="The key of the store's tenant."
)
identity_option = click.option(
    "-i",
    "--identity",
    "--tls-key",
    "identities",
    multiple=True,
    metavar="IDENTITY",
    help='Private key file that opens the checkpoint, or "passphrase". Repeatable.',
)
identity_options = stack(identity_option, passphrase_file)
trust_options = stack(
    click.option(
        "--trust",
        multiple=True,
        metavar="SIGNER",
        help="A signer to trust: signer.pub, X.509 certificate (of a signer or an authority), or key id. Repeatable.",
    ),
    click.option(
        "--allow-unsigned",
        is_flag=True,
        help="Accept a checkpoint that no trusted signer signed. RISK: it runs with its own rights, as root for "
        "containers, and anyone who could write the file decides what it does.",
    ),
    click.option(
        "--allow-expired",
        is_flag=True,
        help="Accept certificates outside their period of validity.",
    ),
)
# What every command takes that reads a checkpoint, sealed or plain; `open_source` makes use of it.
expect_options = stack(
    click.option(
        "--workload",
        "workloads",
        multiple=True,
        metavar="NAME",
        help="Accept only a checkpoint of this workload. Repeatable.",
    ),
    click.option(
        "--expect",
        multiple=True,
        metavar="ID|ORIGIN-DIGEST",
        help="Accept only this checkpoint, named as dump --json and info print it. Repeatable.",
    ),
)
allow_older_option = click.option(
    "--allow-older",
    is_flag=True,
    help="Restore a checkpoint although a newer one of its workload was sealed or restored here.",
)
source_options = stack(
    identity_options, trust_options, parents_option, store_option, max_size_option
)
recipient_options = stack(
    click.option(
        "-r",
        "--recipient",
        "--tls-cert",
        "recipients",
        multiple=True,
        metavar="RECIPIENT",
        help='A recipient who can open it: recipient.pub, X.509 PEM, a literal "sealpoint-...:", or "passphrase". '
        "Repeatable.",
    ),
    click.option(
        "--metadata-recipient",
        "metadata_recipients",
        multiple=True,
        metavar="RECIPIENT",
        help="A recipient who can read the process tree and files, but no memory. Repeatable.",
    ),
    click.option(
        "--allow-expired-recipient",
        is_flag=True,
        help="Accept recipient certificates outside their period of validity.",
    ),
)
sign_options = stack(
    click.option(
        "--sign", "signer", metavar="KEY", help="Private key that signs (signer.key, or PEM)."
    ),
    click.option("--sign-certificate", metavar="PEM", help="X.509 chain of the signing key."),
    click.option(
        "--sign-passphrase-file", metavar="F", help="Passphrase of the signing key, if it has one."
    ),
)
seal_options = stack(
    recipient_options,
    sign_options,
    click.option(
        "--unsigned", is_flag=True, help="Do not sign. A restore then needs --allow-unsigned."
    ),
    passphrase_file,
    click.option(
        "--compress",
        type=click.Choice(["auto", "none", "lz4", "zstd"]),
        help="Compression before encryption (default auto: whatever is fastest at the moment).",
    ),
    click.option(
        "--suite",
        type=click.Choice([s.label for s in Suite]),
        help="Cipher (default aes-256-gcm; chacha20-poly1305 for CPUs without AES).",
    ),
    click.option("--force", is_flag=True, help="Replace an existing output."),
)


class Passphrases:
    """Passphrases from a file or a prompt: each prompt is shown once, a file has one passphrase."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._known: dict[str, bytes] = {}

    def get(self, prompt: str = "Passphrase", *, confirm: bool = False) -> bytes:
        """Raises UsageError where there is neither a file nor a terminal."""
        key = "" if self._path else prompt
        if key not in self._known:
            value = self._read(self._path) if self._path else _ask(prompt, confirm=confirm)
            if not value:
                raise UsageError("the passphrase is empty")
            self._known[key] = value
        return self._known[key]

    @staticmethod
    def _read(path: str) -> bytes:
        try:
            if path == "-":
                if sys.stdin is None:
                    raise UsageError("there is no standard input to read the passphrase from")
                data = sys.stdin.buffer.readline(_MAX_PASSPHRASE + 1)
            else:
                with open(path, "rb") as file:
                    data = file.readline(_MAX_PASSPHRASE + 1)
        except OSError as error:
            raise UsageError(f"passphrase file {path}: {error.strerror}") from None
        if len(data) > _MAX_PASSPHRASE:
            raise UsageError(f"the passphrase is longer than {_MAX_PASSPHRASE} bytes")
        return data.rstrip(b"\r\n")


def _ask(prompt: str, *, confirm: bool) -> bytes:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        raise UsageError(
            "a passphrase is needed, and there is no terminal to ask for it",
            hint="give --passphrase-file (or --sign-passphrase-file for a signing key)",
        ) from None
    value: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return value.encode(errors="surrogateescape")


def check_standard_input(file: str, passphrase_file: str | None) -> None:
    """Raises UsageError if both the checkpoint and the passphrase are to come from standard input."""
    if file == passphrase_file == "-":
        raise UsageError(
            "standard input cannot carry both the checkpoint and the passphrase",
            hint="put the passphrase into a file: --passphrase-file F",
        )


def load_recipients(
    names: Sequence[str], passphrases: Passphrases, config: Config, *, allow_expired: bool
) -> list[Recipient]:
    """Files and literals to recipients."""
    from sealpoint import keys

    policy = keys.CertificatePolicy(
        authorities=keys.load_authorities(config.recipient_authorities), allow_expired=allow_expired
    )
    warn_ownership(names)
    return [
        keys.passphrase_recipient(passphrases.get("New passphrase", confirm=True))
        if name == PASSPHRASE
        else keys.load_recipient(name, policy=policy)
        for name in names
    ]


def sealing(config: Config, given: Mapping[str, Any]) -> Sealing:
    """How a command seals, from its `seal_options`: options first, else the configuration.

    Raises UsageError, IdentityError.
    """
    from sealpoint.checkpoint.access import require_recipient
    from sealpoint.checkpoint.sealing import Sealing

    passphrases, chosen = Passphrases(given["passphrase_file"]), given["recipients"]
    full = list(chosen) or list(config.recipients)
    require_recipient(full)  # before anybody is asked for a passphrase
    metadata = list(given["metadata_recipients"])
    if not metadata and not chosen:
        metadata = list(config.metadata_recipients)
    expired = given["allow_expired_recipient"]
    return Sealing(
        recipients=load_recipients(full, passphrases, config, allow_expired=expired),
        metadata_recipients=load_recipients(metadata, passphrases, config, allow_expired=expired),
        signer=load_signer(
            given["signer"],
            given["sign_certificate"],
            given["sign_passphrase_file"],
            config,
            unsigned=given["unsigned"],
        ),
        unsigned=given["unsigned"],
        suite=given["suite"] or config.suite or Suite.AES_256_GCM,
        compression=given["compress"] or config.compress or "auto",
    )


def load_signer(
    signer: str | None,
    certificate: str | None,
    passphrase_path: str | None,
    config: Config,
    *,
    unsigned: bool = False,
) -> Signer | None:
    """Who signs: the option, else the configuration; None if `unsigned`.  Raises UsageError where nothing says."""
    from sealpoint import keys

    path = signer or config.signer
    if unsigned:
        if signer:
            raise UsageError("--sign and --unsigned contradict each other")
        return None
    if not path:
        raise UsageError(
            "no signing key given",
            hint="name one with --sign, or in config.toml; make one with: sealpoint keygen DIR --signer",
        )
    passphrases = Passphrases(passphrase_path)
    chain = certificate or (config.signer_certificate if not signer else "")
    loaded = keys.load_signer(
        path,
        passphrase=partial(passphrases.get, f"Passphrase of {path}"),
        certificate=chain or None,
    )
    warn_permissions([path])
    warn_ownership([path, chain] if chain else [path])
    return loaded


def load_identities(
    names: Sequence[str], passphrases: Passphrases, config: Config
) -> list[Identity]:
    """Private keys: the options, else the configuration.  Empty if neither names any."""
    from sealpoint import keys

    chosen = list(names) or list(config.identities)
    loaded = [
        keys.passphrase_identity(passphrases.get())
        if name == PASSPHRASE
        else keys.load_identity(name, passphrase=partial(passphrases.get, f"Passphrase of {name}"))
        for name in chosen
    ]
    files = [n for n in chosen if n != PASSPHRASE]
    warn_permissions(files)
    warn_ownership(files)
    return loaded


def trust_policy(
    trust: Sequence[str],
    config: Config,
    *,
    allow_unsigned: bool,
    allow_expired: bool,
    names_only: bool = False,
) -> TrustPolicy:
    """Whom to believe: the options, else the configuration.

    names_only: where neither names anybody, find out who signed instead of refusing.
    """
    policy = config.policy(
        trust,
        allow_unsigned=allow_unsigned,
        allow_expired=allow_expired,
        names_only=names_only,
    )
    warn_ownership(trust)
    return policy


def opening(
    config: Config,
    *,
    identities: Sequence[str] = (),
    passphrase_file: str | None = None,
    trust: Sequence[str],
    allow_unsigned: bool,
    allow_expired: bool,
    workloads: Sequence[str] = (),
    expect: Sequence[str] = (),
    **how: Any,
) -> Opening:
    """How a command opens checkpoints; `how`: see Opening.  Raises PolicyError where nobody is trusted, UsageError."""
    import functools

    from sealpoint.checkpoint.expectation import Expectation
    from sealpoint.checkpoint.opening import Opening

    @functools.cache
    def keys() -> list[Identity]:
        return load_identities(identities, Passphrases(passphrase_file), config)

    policy = trust_policy(trust, config, allow_unsigned=allow_unsigned, allow_expired=allow_expired)
    found = Opening(policy, keys, expected=Expectation.of(workloads, expect), **how)
    found.require_trust()
    return found


def source_access(
    config: Config,
    *,
    identities: Sequence[str],
    passphrase_file: str | None,
    trust: Sequence[str],
    allow_unsigned: bool,
    allow_expired: bool,
    stores: Sequence[str] = (),
    parents: Sequence[str] = (),
    max_size: int | None = None,
) -> Access:
    """Keys and policy for reading commands, loaded when the first sealed file is met, and hardened before."""
    import functools

    from sealpoint.inspect.source import Access

    @functools.cache
    def keys() -> list[Identity]:
        return load_identities(identities, Passphrases(passphrase_file), config)

    @functools.cache
    def policy() -> TrustPolicy:
        return trust_policy(
            trust, config, allow_unsigned=allow_unsigned, allow_expired=allow_expired
        )

    return Access(keys, policy, tuple(stores), tuple(parents), max_size)


def open_source(file: str, **options: Any) -> AbstractContextManager[Source]:
    """The checkpoint that a reading command was given, as a context manager; `options` are those of source_options."""
    from sealpoint import config as configuration
    from sealpoint.inspect import finding

    check_standard_input(file, options["passphrase_file"])
    protect()
    return finding.open_source(file, source_access(configuration.load(), **options))


def refuse_expectation(file: str, workloads: Sequence[str], expect: Sequence[str]) -> None:
    """Raises UsageError: a CRIUsec dump has nothing signed by which it could be told from another one."""
    if workloads or expect:
        raise UsageError(
            f"{file} is a dump in the CRIUsec format: nothing in it says which checkpoint it is",
            hint="--workload and --expect are for sealed files",
        )


def announce(checkpoint: Checkpoint) -> None:
    """Say on standard error what is about to be restored, before it is."""
    from sealpoint.checkpoint.admission import describe

    for line in describe(checkpoint):
        click.echo(f"sealpoint: restoring {line}", err=True)


def names_trust(trust: Sequence[str], config: Config) -> bool:
    """Whether the options or the configuration say whom to believe."""
    return bool(trust or config.names_trust)


def warn_permissions(paths: Sequence[str]) -> None:
    """Say so if a private key can be read by others."""
    from sealpoint import keys

    for path in paths:
        if warning := keys.permissions_warning(path):
            warn(warning)


def warn_ownership(names: Sequence[str]) -> None:
    """Say so, to root, if what the command line names is another user's; literals and key ids are nobody's."""
    from sealpoint import ownership

    for name in names:
        if not isinstance(name, ownership.Configured) and (found := ownership.concern(name)):
            warn(f"{found}: anyone who can change it decides what root does with it")


def warn(message: str) -> None:
    """A warning on standard error."""
    click.echo(f"sealpoint: warning: {printable(message)}", err=True)


def protect() -> None:
    """Harden this process before it holds plaintext."""
    from sealpoint import process

    for warning in process.protect():
        warn(warning)
    if process.swap_in_use():
        from sealpoint.criu.private_dir import swap_warning

        if said := swap_warning():
            warn(said)


def some(names: Sequence[str], most: int = 4) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def show_count(number: int, noun: str) -> str:
    """As in 1 file, 2 files."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def show_size(size: int) -> str:
    """For people: 1.03 GiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"

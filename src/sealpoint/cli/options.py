"""Options that several commands share; `reading`, `sealing` and `running` hand them over as one value each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sealpoint.cli import numbers
from sealpoint.format.constants import Suite

Command = TypeVar("Command", bound=Callable[..., Any])


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


def size(_: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes, or a number with K, M, G or T behind it, in steps of 1024.  Raises BadParameter."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE | re.ASCII)
    if found is None or not int(found[1]):
        raise click.BadParameter("must be bytes, or a number with K, M, G or T", param=param)
    return int(found[1]) << (10 * " KMGT".index(found[2].upper() or " "))


max_size_option = click.option(
    "--max-size",
    callback=size,
    metavar="SIZE",
    help="Accept at most this many bytes (K, M, G) from a pipe or link. Default: half of the available memory where "
    "they are held in memory, and nine tenths of the free space where they are held in files.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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
    help="The chunk store that the file refers to, unless it is beside the file. Repeatable.",
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
unsigned_option = click.option(
    "--unsigned", is_flag=True, help="Do not sign. A restore then needs --allow-unsigned."
)
form_options = stack(
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
)
force_option = click.option("--force", is_flag=True, help="Replace an existing output.")
upload_options = stack(
    click.option(
        "--spool",
        metavar="DIR",
        help="With a URL: hold the ciphertext in this directory until the store has it, not in memory.",
    ),
    click.option(
        "--unconditional",
        is_flag=True,
        help="With a URL: write even if the store cannot refuse to overwrite. If two write at once, one file is lost.",
    ),
)


def _plain_http(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from sealpoint.store import location

        context.with_resource(location.plain_http())


plain_http_option = click.option(
    "--plain-http",
    is_flag=True,
    expose_value=False,
    callback=_plain_http,
    help="With a URL: also HTTP without TLS, to a server that is not this machine. RISK: whoever is on the way reads "
    "passwords and can change what is stored; only what is verified afterwards can be believed.",
)


def has(command: Callable[..., Any], name: str) -> bool:
    """Whether a command in the making has a parameter of that name already."""
    return any(param.name == name for param in getattr(command, "__click_params__", ()))


def named_workload(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """For `callback`.  Raises UsageError before anything is stopped for a name that no file can hold."""
    if value:
        from sealpoint.format.statement import check_workload

        check_workload(value)
    return value


workload_option = click.option(
    "--workload",
    default="",
    metavar="ID",
    callback=named_workload,
    help="A name for what you dump. It is public.",
)
tree_option = click.option(
    "-t",
    "--tree",
    "pid",
    type=numbers.PID,
    required=True,
    metavar="PID",
    help="Root of the process tree.",
)

"""`sealpoint agent`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import signal
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from sealpoint.cli import keyring, notice, numbers, options
from sealpoint.cli.printable import printable
from sealpoint.cli.sealing import SealOptions, seals_checkpoint
from sealpoint.errors import SystemEnvironmentError, UsageError

if TYPE_CHECKING:
    from sealpoint.agent import NodeSealing, Settings
    from sealpoint.config import AgentTable
    from sealpoint.keys import Recipient

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGE: Final = re.compile(r"([0-9]{1,9})([smhd])")
_ADDRESS: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):([0-9]{1,5})")


def _age(_: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    found = _AGE.fullmatch(value)
    if found is None or not int(found[1]):
        raise click.BadParameter("must be a time: 90m, 12h, 30d", param=param)
    return float(int(found[1]) * _UNITS[found[2]])


def _address(_: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value not in (None, "none") and _parse_address(value or "") is None:
        raise click.BadParameter('must be ADDRESS:PORT, or "none"', param=param)
    return value


def _parse_address(text: str) -> tuple[str, int] | None:
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[3]) > 65535:
        return None
    return found[1] or found[2] or "127.0.0.1", int(found[3])


@click.command()
@click.option(
    "--watch",
    multiple=True,
    metavar="DIR",
    help="Directory in which engines write archives; those of the kubelet unless you name others. Repeatable.",
)
@click.option(
    "--store",
    metavar="DIR|URL",
    help="Where the sealed files go: a directory, s3://bucket/prefix or oci://registry/name.",
)
@click.option(
    "--queue",
    metavar="DIR",
    help="Directory in which the agent remembers what it does (default /var/lib/sealpoint/agent).",
)
@click.option(
    "--commit-timeout",
    type=numbers.SECONDS,
    metavar="SECONDS",
    help="How long a store may need for its acknowledgement (default 600).",
)
@click.option(
    "--max-size",
    callback=options.size,
    metavar="SIZE",
    help="Leave larger archives alone (K, M, G, T; default 1T).",
)
@click.option(
    "--min-free",
    callback=options.size,
    metavar="SIZE",
    help="Begin nothing that would leave less space than this where the agent writes (default 1G).",
)
@click.option(
    "--keep-last",
    type=numbers.count(),
    metavar="N",
    help="Keep the newest N of each container in the store, and remove older ones.",
)
@click.option(
    "--keep-age",
    callback=_age,
    metavar="TIME",
    help="Remove from the store what is older: 90m, 12h, 30d. The newest of a container always stays.",
)
@click.option(
    "--keep-bytes",
    callback=options.size,
    metavar="SIZE",
    help="Keep so many bytes of each container in the store.",
)
@click.option(
    "--listen",
    metavar="ADDR:PORT",
    callback=_address,
    help='Where /metrics, /healthz and /readyz are answered (default 127.0.0.1:9467; "none": nowhere).',
)
@click.option("--once", is_flag=True, help="Seal what is complete now, and end.")
@click.option("--unit", is_flag=True, help="Print a unit file for systemd, and end.")
@seals_checkpoint(new=False, stores=True)
def command(
    *,
    watch: tuple[str, ...],
    store: str | None,
    queue: str | None,
    commit_timeout: float | None,
    max_size: int | None,
    min_free: int | None,
    keep_last: int | None,
    keep_age: float | None,
    keep_bytes: int | None,
    listen: str | None,
    once: bool,
    unit: bool,
    seal: SealOptions,
) -> None:
    """Seal the archives that engines write into directories, put them into a store, and remove the plain ones.

    An archive is taken when it is complete and nobody writes it any more. It is removed when the store has acknowledged
    the sealed file, and only if nobody has changed it. What fails is tried again. The agent loads no key that opens
    anything. Options win over the table [agent] of the configuration.

    \b
    Example:
      sealpoint agent --store s3://backup/checkpoints -r keys/recipient.pub --sign keys/signer.key
    """
    table = keyring.configured().agent
    given: dict[str, Any] = {
        "watch": watch,
        "store": store,
        "state": queue,
        "spool": seal.spool,
        "unconditional": seal.unconditional or None,
        "commit_timeout": commit_timeout,
        "max_size": max_size,
        "min_free": min_free,
        "keep_last": keep_last,
        "keep_age": keep_age,
        "keep_bytes": keep_bytes,
        "listen": listen,
    }
    settings = _settings(table._replace(**{k: v for k, v in given.items() if v not in (None, ())}))
    from sealpoint.agent import Agent, StopAgent, unit_file

    if unit:
        click.echo(unit_file(settings), nl=False)
        return
    if not settings.store:
        raise UsageError(
            "no store is named",
            hint="name one with --store, or in the table [agent] of config.toml",
        )
    notice.protect()
    _stop_at_sigterm(StopAgent)
    try:
        with Agent(settings, _sealing(seal), _say) as agent:
            if once:
                _judge(*agent.once())
                return
            with contextlib.ExitStack() as stack:
                if settings.listen is not None:
                    from sealpoint.agent import StatusServer

                    server = stack.enter_context(StatusServer(settings.listen, agent.figures))
                    _say(f"listening at {settings.listen[0]} port {server.port}")
                _say(f"watching {', '.join(settings.watch)} for {settings.store}")
                agent.run()
    except StopAgent:
        _say("stopped")


def _settings(table: AgentTable) -> Settings:
    """Raises UsageError."""
    from sealpoint.agent import LISTEN, WATCHED, Retention, Settings

    defaults = Settings._field_defaults
    listen = None
    if table.listen != "none":
        listen = _parse_address(table.listen or LISTEN)
        if listen is None:
            raise UsageError(f'listen is "ADDRESS:PORT" or "none", not {table.listen!r}')
    return Settings(
        watch=table.watch or WATCHED,
        store=table.store,
        state=table.state or defaults["state"],
        listen=listen,
        spool=table.spool or None,
        unconditional=table.unconditional,
        max_size=table.max_size or defaults["max_size"],
        min_free=defaults["min_free"] if table.min_free is None else table.min_free,
        commit_timeout=table.commit_timeout or defaults["commit_timeout"],
        retention=Retention(table.keep_last, table.keep_age, table.keep_bytes),
    )


def _sealing(seal: SealOptions) -> NodeSealing:
    """For everybody, and for each namespace of which there is a table.  Raises UsageError, IdentityError."""
    from sealpoint.agent import NodeSealing

    config, everybody = keyring.configured(), seal.sealing()
    load = functools.partial(
        keyring.load_recipients,
        passphrases=keyring.Passphrases(seal.passphrase_file),
        config=config,
        allow_expired=seal.allow_expired_recipient,
    )
    namespaces = {}
    for table in config.namespaces:
        # A namespace may name again who is a recipient of everything.
        full = _once([*everybody.recipients, *load(table.recipients)])
        known = [r.fingerprint for r in full]
        metadata = _once([*everybody.metadata_recipients, *load(table.metadata_recipients)])
        namespaces[table.name] = dataclasses.replace(
            everybody,
            recipients=full,
            metadata_recipients=[r for r in metadata if r.fingerprint not in known],
        )
    return NodeSealing(everybody, namespaces, config.cluster)


def _once(recipients: Sequence[Any]) -> list[Recipient]:
    return list({r.fingerprint: r for r in recipients}.values())


def _stop_at_sigterm(stop: type[BaseException]) -> None:
    def handle(_: int, __: FrameType | None) -> None:
        # Once: what follows must not disturb the cleaning up.
        signal.signal(signal.SIGTERM, lambda *_: None)
        raise stop

    signal.signal(signal.SIGTERM, handle)


def _judge(sealed: int, left: int) -> None:
    """The exit code of one pass.  Raises SystemEnvironmentError."""
    click.echo(f"{notice.show_count(sealed, 'archive')} sealed, {left} left in the clear")
    if left:
        raise SystemEnvironmentError(
            f"{notice.show_count(left, 'archive')} could not be sealed",
            hint="the messages above say why",
        )


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the log is no reason to stop
        click.echo(f"sealpoint: {printable(text)}", err=True)

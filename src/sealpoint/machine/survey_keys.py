"""Whether the configured keys are there, load, belong to root alone, and fit each other: by sealing and opening."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

from sealpoint import keys
from sealpoint.checkpoint import Opening, Sealing
from sealpoint.config import Config
from sealpoint.errors import IdentityError, PolicyError
from sealpoint.format.chunks import Buffer
from sealpoint.format.raw import Descriptor
from sealpoint.keys import Identity, Recipient, Signer, TrustPolicy, files
from sealpoint.machine import configure
from sealpoint.machine.finding import Finding, fail, guarded, ok, warn
from sealpoint.machine.paths import unsafe
from sealpoint.store.output import write_all

_TOPIC: Final = "keys"
_SOON: Final = 30 * 86400  # seconds before the end of a certificate at which it is worth a line
_PROBE: Final = b"sealpoint doctor"


def check(config: Config, *, installed: bool) -> Iterator[Finding]:
    """Findings on every key.  installed: a drop-in depends on them."""
    say = fail if installed else warn
    if not configure.can_seal(config):
        text = "no recipients or no signer: nothing can be dumped here"
        yield (warn if configure.can_open(config) else say)(
            _TOPIC, text, "set recipients and signer in /etc/sealpoint/config.toml"
        )
    if not config.identities:
        yield ok(_TOPIC, "no identity is configured: this machine dumps only")
    recipients, signer, identities, policy = _Loaded(config), None, _Loaded(config), None
    yield from recipients.recipients()
    yield from identities.identities()
    if config.signer:
        signer, found = _signer(config)
        yield from found
    if config.names_trust:
        policy, found = _trust(config)
        yield from found
    for path in (config.signer, *config.identities):
        if path:
            yield from _private(path)
    for path in (config.signer, *_public(config)):
        if path:
            yield from _expiry(path, trusted=path in config.trusted)
    for path in _public(config):
        if os.path.exists(path) and (reason := unsafe(path)):
            yield fail(
                _TOPIC, f"{path} names signers to trust or recipients, but {reason}", "chmod go-w"
            )
    if recipients.full and signer is not None:
        sealer = signer
        yield from guarded(
            _TOPIC,
            lambda: _round_trip(
                recipients.full, recipients.metadata, sealer, identities.opened, policy
            ),
        )


class _Loaded:
    """Keys as far as they load."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.full: list[Recipient] = []
        self.metadata: list[Recipient] = []
        self.opened: list[Identity] = []

    def recipients(self) -> Iterator[Finding]:
        """Load them, both kinds."""
        config = self._config
        found = guarded(_TOPIC, lambda: self._recipients(config.recipients, self.full))
        found += guarded(
            _TOPIC, lambda: self._recipients(config.metadata_recipients, self.metadata)
        )
        unused: list[Recipient] = []
        found += guarded(_TOPIC, lambda: self._recipients(config.namespace_recipients, unused))
        yield from found
        if len(self.full) == len(config.recipients) and self.full:
            names = ", ".join(r.name for r in self.full)
            yield ok(_TOPIC, f"checkpoints are sealed to {names}")

    def _recipients(self, names: tuple[str, ...], into: list[Recipient]) -> list[Finding]:
        authorities = keys.load_authorities(self._config.recipient_authorities)
        policy = keys.CertificatePolicy(authorities)
        for name in names:
            into += [keys.load_recipient(name, policy=policy)]  # those before a bad one stay
        return []

    def identities(self) -> Iterator[Finding]:
        """Load them."""
        for path in self._config.identities:
            yield from guarded(_TOPIC, lambda path=path: self._identity(path))  # type: ignore[misc]

    def _identity(self, path: str) -> list[Finding]:
        identity = keys.load_identity(path, passphrase=configure.no_passphrase)
        self.opened.append(identity)
        return [ok(_TOPIC, f"identity {identity.name} loads")]


def _signer(config: Config) -> tuple[Signer | None, list[Finding]]:
    loaded: list[Signer] = []

    def load() -> list[Finding]:
        signer = keys.load_signer(
            config.signer,
            passphrase=configure.no_passphrase,
            certificate=config.signer_certificate or None,
        )
        loaded.append(signer)
        return [ok(_TOPIC, f"checkpoints are signed by key {signer.key_id[:16]}…")]

    found = guarded(_TOPIC, load)
    return (loaded[0] if loaded else None), found


def _trust(config: Config) -> tuple[TrustPolicy | None, list[Finding]]:
    loaded: list[TrustPolicy] = []

    def load() -> list[Finding]:
        policy = config.policy()
        loaded.append(policy)
        names = []
        for grant in policy.grants:
            found = [p.name for p in grant.pinned]
            if grant.authorities:
                found.append(f"whom {len(grant.authorities)} authorities certify")
            limits = f" ({grant.scope.text})" if grant.scope.text else ""
            names += [name + limits for name in found]
        return [ok(_TOPIC, f"checkpoints are trusted if signed by {', '.join(names)}")]

    found = guarded(_TOPIC, load)
    return (loaded[0] if loaded else None), found


def _private(path: str) -> Iterator[Finding]:
    if not os.path.exists(path):
        return
    info = os.stat(path)
    if info.st_mode & 0o077:
        mode = f"{info.st_mode & 0o777:04o}"
        yield fail(
            _TOPIC, f"private key {path} can be read by others (mode {mode})", f"chmod 600 {path}"
        )
    elif reason := unsafe(path):
        yield fail(_TOPIC, f"private key {path}: {reason}", "keep it where only root can write")


def _public(config: Config) -> list[str]:
    more = config.namespace_recipients
    named = (*config.recipients, *config.metadata_recipients, *more, *config.trusted)
    bundles = (*config.recipient_authorities, *config.signer_authorities)
    paths = [n for n in (*named, config.signer_certificate, *bundles) if n and configure.is_path(n)]
    return list(dict.fromkeys(paths))


def _expiry(path: str, *, trusted: bool) -> Iterator[Finding]:
    """Expired certificates of recipients and signers are found when they are loaded; those of trusted signers load."""
    try:
        data = files.read_key_file(path, limit=files.MAX_BUNDLE)
    except Exception:  # noqa: BLE001 - said where it was loaded
        return
    blocks = [b for b in files.pem_blocks(data) if b.label == "CERTIFICATE"]
    if not blocks:
        return
    from sealpoint.keys import certificate

    now = int(time.time())
    for block in blocks:
        try:
            parsed = certificate.parse_pem(block.text, IdentityError)
        except IdentityError:
            continue
        if parsed.is_authority and len(blocks) > 1:
            continue  # of a bundle, any one will do
        until = certificate.show_time(parsed.not_after)
        if now > parsed.not_after:
            if trusted:
                text = f"{path}: certificate {parsed.subject} expired on {until}"
                hint = "what it signed before is still trusted; trust its successor as well"
                yield warn(_TOPIC, text, hint)
        elif parsed.not_after - now < _SOON:
            yield warn(
                _TOPIC, f"{path}: certificate {parsed.subject} expires on {until}", "renew it"
            )


class _Memory:
    """An output in memory."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("sealpoint-doctor", os.MFD_CLOEXEC)
        self.committed = False

    def write(self, *buffers: Buffer) -> None:
        write_all(self.fd, list(buffers), "memory")

    def sync(self) -> None:
        """There is no disk."""

    def commit(self) -> None:
        self.committed = True

    def cancel(self) -> None:
        """Nothing waits."""

    def mark_failed(self) -> str | None:
        """It has no name."""
        return None


def _round_trip(
    recipients: list[Recipient],
    metadata: list[Recipient],
    signer: Signer,
    identities: list[Identity],
    policy: TrustPolicy | None,
) -> list[Finding]:
    """Seal in memory as a dump does, then read it as a restore does."""
    out = _Memory()
    try:
        sealing = Sealing(recipients, signer, metadata, compression="none")
        with sealing.into(out, workers=1) as sealer:
            sealer.builder.add("inventory.img", _PROBE)
            sealer.finish()
            sealer.commit()
        found = [ok(_TOPIC, "sealing and signing work")]
        if policy is None or not identities:
            return found
        return found + _read_back(out.fd, identities, policy)
    finally:
        os.close(out.fd)


def _read_back(fd: int, identities: list[Identity], policy: TrustPolicy) -> list[Finding]:
    try:
        checkpoint = Opening(policy, lambda: identities, alone=True).take(Descriptor(os.dup(fd)))
    except PolicyError:
        text = (
            "this machine's own signer is not trusted here: it will not restore its own checkpoints"
        )
        return [warn(_TOPIC, text, "add the signer's public key to trust, if it should")]
    with checkpoint:
        try:
            opened = checkpoint.file()
        except IdentityError:
            text = "this machine's identity is not among the recipients: it cannot restore its own checkpoints"
            return [warn(_TOPIC, text, "add its recipient to recipients, if it should")]
        if not opened.has_memory or opened.read_bytes(opened.entry("inventory.img")) != _PROBE:
            return [warn(_TOPIC, "this machine's identity opens metadata only")]
    return [ok(_TOPIC, "this machine opens what it seals")]

"""The ways to checkpoint that are compared: for each, the command that dumps and the one that restores."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.tools import Tools
from sealpoint.criu import schema

_SYNC_HOOK = """#!/bin/sh
# The images are complete in the post-dump hook, and the tree is still frozen: as durable as a sealed file then is.
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
exec sync "$CRTOOLS_IMAGE_DIR"/* "$CRTOOLS_IMAGE_DIR"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one variant keeps its checkpoint, and a directory in memory for what must be staged in the clear."""

    directory: Path
    stage: Path
    on_disk: bool

    @property
    def sealed(self) -> Path:
        return self.directory / "checkpoint"

    def clear(self) -> None:
        """Empty, as before a dump."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.clear_stage()

    def clear_stage(self) -> None:
        shutil.rmtree(self.stage, ignore_errors=True)
        self.stage.mkdir(parents=True)

    def files(self) -> list[Path]:
        """What belongs to the checkpoint: not CRIU's logs and not its statistics of a restore."""
        found = [path for path in self.directory.rglob("*") if path.is_file()]
        return [p for p in found if p.suffix != ".log" and p.name != "stats-restore"]

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files())


class Variant:
    """`dumps`, `restores`: what of it is measured. `input_of`: the variant whose checkpoint it restores. `copies`: how
    many times as much memory as the workload has one command takes, the page cache included."""

    name: str
    label: str
    dumps = True
    restores = True
    input_of: str
    copies = 1
    helper = ""  # in the command line of the process that does the work beside CRIU

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self.input_of = self.name

    def why_not(self) -> str:
        """Why it cannot be measured on this machine; empty if it can."""
        return ""

    def dump(self, place: Place, pid: int) -> list[str]:
        raise NotImplementedError

    def restore(self, place: Place) -> list[str]:
        raise NotImplementedError

    def feed(self, place: Place) -> Path | None:
        """What is piped into `restore`."""
        return None

    def frozen(self, place: Place, output: str) -> float:
        """Seconds that the tree stood still in the last dump, by CRIU's statistics."""
        raise NotImplementedError


def _stats_of(directory: Path) -> float:
    data = (directory / "stats-dump").read_bytes()
    entry = next(schema.records(data, "stats_entry", "stats-dump"))
    return float(entry.dump.frozen_time) / 1e6


class Stock(Variant):
    """criu dump into a directory. On disk this row syncs in the post-dump hook, as sealpoint does."""

    name = "stock"
    label = "criu"
    sync = True

    def dump(self, place: Place, pid: int) -> list[str]:
        command = [*self._criu("dump", place.directory, "dump.log"), "-t", str(pid), "-R"]
        if place.on_disk and self.sync:
            hook = self.tools.keys / "sync-hook"
            if not hook.exists():
                hook.write_text(_SYNC_HOOK)
                hook.chmod(0o755)
            command += ["--action-script", str(hook)]
        return command

    def restore(self, place: Place) -> list[str]:
        return [*self._criu("restore", place.directory, "restore.log"), "-d"]

    def frozen(self, place: Place, output: str) -> float:
        return _stats_of(place.directory)

    def _criu(self, command: str, directory: Path, log: str) -> list[str]:
        binary = str(self._binary())
        return [binary, command, "--no-default-config", "-D", str(directory), "-o", log]

    def _binary(self) -> Path:
        return self.tools.criu


class StockUnsynced(Stock):
    """What people do who do not sync: on disk only, for its images lie in the page cache at the end."""

    name = "stock-unsynced"
    label = "criu, not synced"
    sync = False
    restores = False


class Criusec(Stock):
    """A CRIU with built-in encryption (CRIU pull request 2297), named by the environment variable CRIUSEC."""

    name = "criusec"
    label = "criu --encrypt"

    def why_not(self) -> str:
        return "" if self.tools.criusec else "CRIUSEC does not name a CRIU with encryption"

    def dump(self, place: Place, pid: int) -> list[str]:
        certificate = str(self.tools.keys / "criusec.pem")
        return [*super().dump(place, pid), "--encrypt", "--tls-cert", certificate]

    def restore(self, place: Place) -> list[str]:
        return [*super().restore(place), "--tls-key", str(self.tools.keys / "criusec.key")]

    def _binary(self) -> Path:
        assert self.tools.criusec is not None
        return self.tools.criusec


class Sealpoint(Variant):
    """sealpoint with the default settings: hybrid recipient, signed, --compress auto."""

    name = "sealpoint"
    label = "sealpoint"
    compress = "auto"

    def dump(self, place: Place, pid: int) -> list[str]:
        tools = self.tools
        command = [str(tools.sealpoint), "dump", "-t", str(pid), "-o", str(place.sealed), "-R"]
        command += ["-r", tools.recipient, "--sign", tools.signer, "--compress", self.compress]
        return [*command, "--criu", str(tools.criu), "--json"]

    def restore(self, place: Place) -> list[str]:
        return self._restore(str(place.sealed))

    def _restore(self, source: str) -> list[str]:
        tools = self.tools
        command = [str(tools.sealpoint), "restore", source, "--detach", "--json"]
        command += ["-i", tools.identity, "--trust", tools.trusted]
        return [*command, "--criu", str(tools.criu)]

    def frozen(self, place: Place, output: str) -> float:
        return float(json.loads(output)["criu"]["frozen_time"]) / 1e6


class SealpointRaw(Sealpoint):
    name = "sealpoint-none"
    label = "sealpoint --compress none"
    compress = "none"


class SealpointScan(Sealpoint):
    """As before, and looked through for secrets while it is sealed."""

    name = "sealpoint-scan"
    label = "sealpoint --scan"
    restores = False

    def dump(self, place: Place, pid: int) -> list[str]:
        return [*super().dump(place, pid), "--scan"]


class SealpointPiped(Sealpoint):
    """The same file through a pipe: its ciphertext is held in memory until the signature at its end was seen."""

    name = "sealpoint-piped"
    label = "cat | sealpoint restore -"
    dumps = False
    copies = 2

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self.input_of = Sealpoint.name

    def restore(self, place: Place) -> list[str]:
        return self._restore("-")

    def feed(self, place: Place) -> Path | None:
        return place.sealed


class DropIn(Stock):
    """The same commands, of the drop-in `criu`: CRIU's images go through FUSE into one sealed file, and back."""

    name = "dropin"
    label = "criu (sealpoint's drop-in)"
    sync = False  # it does that itself

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self.helper = str(tools.dropin)

    def _binary(self) -> Path:
        return self.tools.dropin


class Archive(Stock):
    """criu dump into memory, tar, a tool for encryption; and back. The images lie there in the clear meanwhile."""

    copies = 2
    tool: str
    encrypt: str
    decrypt: str

    def why_not(self) -> str:
        return "" if shutil.which(self.tool) else f"{self.tool} is not installed"

    def dump(self, place: Place, pid: int) -> list[str]:
        criu = shlex.join([*self._criu("dump", place.stage, "dump.log"), "-t", str(pid), "-R"])
        stage, target = shlex.quote(str(place.stage)), shlex.quote(str(place.sealed))
        seal = f"tar -C {stage} --exclude '*.log' -cf - . | {self._fill(self.encrypt)} > {target}"
        sync = f" && sync {target}" if place.on_disk else ""
        return ["bash", "-o", "pipefail", "-c", f"{criu} && {seal}{sync}"]

    def restore(self, place: Place) -> list[str]:
        criu = shlex.join([*self._criu("restore", place.stage, "restore.log"), "-d"])
        stage, target = shlex.quote(str(place.stage)), shlex.quote(str(place.sealed))
        unseal = f"{self._fill(self.decrypt)} < {target} | tar -C {stage} -xf -"
        return ["bash", "-o", "pipefail", "-c", f"{unseal} && {criu}"]

    def frozen(self, place: Place, output: str) -> float:
        return _stats_of(place.stage)

    def _fill(self, template: str) -> str:
        return template.replace("KEYS", shlex.quote(str(self.tools.keys)))


class Age(Archive):
    name = "age"
    label = "criu, tar | age"
    tool = "age"
    encrypt = "age -R KEYS/age.pub"
    decrypt = "age -d -i KEYS/age.key"


class OpenSsl(Archive):
    name = "openssl"
    label = "criu, tar | openssl enc (unauthenticated)"
    tool = "openssl"
    encrypt = "openssl enc -aes-256-ctr -pbkdf2 -pass file:KEYS/passphrase"
    decrypt = "openssl enc -d -aes-256-ctr -pbkdf2 -pass file:KEYS/passphrase"


class Gpg(Archive):
    """Without gpg's own compression, which would make it much slower still."""

    name = "gpg"
    label = "criu, tar | gpg --symmetric --compress-algo none"
    tool = "gpg"
    _options = "--batch --pinentry-mode loopback --passphrase-file KEYS/passphrase"
    encrypt = f"gpg {_options} --quiet --cipher-algo AES256 --compress-algo none --symmetric"
    decrypt = f"gpg {_options} --quiet --decrypt"


_ALL: tuple[type[Variant], ...] = (
    Stock,
    StockUnsynced,
    Sealpoint,
    SealpointRaw,
    SealpointScan,
    SealpointPiped,
    DropIn,
    Criusec,
    Age,
    OpenSsl,
    Gpg,
)


NAMES = tuple(kind.name for kind in _ALL)


def usable(tools: Tools, wanted: list[str]) -> tuple[list[Variant], dict[str, str]]:
    """The variants that can be measured here (all, or the wanted ones and the two that every ratio is made of), and why
    the others cannot."""
    found: list[Variant] = []
    skipped: dict[str, str] = {}
    for kind in _ALL:
        variant = kind(tools)
        if wanted and kind.name not in {Stock.name, Sealpoint.name, *wanted}:
            continue
        if reason := variant.why_not():
            skipped[variant.label] = reason
        else:
            found.append(variant)
    return found, skipped

"""What is run: sealpoint, CRIU, other people's tools, and the keys for all of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import BenchError

ROOT = Path(__file__).resolve().parents[1]
# What it is compared with or run in: command -> Debian's package.
_FROM_APT = {"stress-ng": "stress-ng", "age": "age"}
SSH = {"ssh": "openssh-client", "scp": "openssh-client", "dropbear": "dropbear-bin"}
RUNC = {"runc": "runc", "busybox": "busybox-static"}


def find_criu() -> Path:
    """SEALPOINT_CRIU, else the checkout's own, else PATH's. Raises BenchError."""
    wanted = os.environ.get("SEALPOINT_CRIU")
    for candidate in [wanted] if wanted else [str(ROOT / ".criu/bin/criu"), "criu"]:
        if found := find(candidate):
            return Path(found)
    raise BenchError("there is no CRIU: run `make criu`, or set SEALPOINT_CRIU")


def find_sealpoint() -> Path:
    """The command of the environment that runs this. Raises BenchError."""
    path = Path(sys.executable).with_name("sealpoint")
    if not path.exists():
        raise BenchError(f"{path} is missing: run `make dev`")
    return path


def install_missing(wanted: Mapping[str, str] = _FROM_APT) -> None:
    """Install what the benchmark compares with from the distribution's packages, saying so. Failure is no error: the
    rows are then missing, with the reason. wanted: command -> package."""
    absent = sorted({package for name, package in wanted.items() if find(name) is None})
    if not absent or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    say(f"installing {', '.join(absent)} with apt-get, to compare with (--no-install skips this)")
    # Without what these recommend: Debian's own criu must not appear in PATH.
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        say(f"apt-get failed, going on without: {result.stderr.strip()[-300:]}")


def find(name: str) -> str | None:
    """A program that may be one of the system administrator's."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def missing(wanted: Mapping[str, str]) -> str:
    """Which of them are not there, and which packages have them; empty if none."""
    names = [name for name in wanted if find(name) is None]
    packages = sorted({wanted[name] for name in names})
    return (
        f"{', '.join(names)} not installed (apt-get install {' '.join(packages)})" if names else ""
    )


def say(text: str) -> None:
    """Progress; the result alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Tools:
    """Paths of programs and keys; all keys are made for this run and thrown away with `keys`."""

    criu: Path
    sealpoint: Path
    keys: Path
    criusec: Path | None
    environment: dict[str, str] = field(repr=False)

    @classmethod
    def prepare(cls, directory: Path) -> Tools:
        """Find the programs, make keys in `directory`. Raises BenchError."""
        if os.geteuid() != 0:
            raise BenchError("CRIU needs root")
        criusec = os.environ.get("CRIUSEC")
        if criusec and not shutil.which(criusec):
            raise BenchError(f"CRIUSEC={criusec}: there is no such program")
        directory.mkdir(mode=0o700)
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C.UTF-8",
            # Nobody's configuration: neither sealpoint's nor gpg's.
            "HOME": str(directory),
            "XDG_CONFIG_HOME": str(directory),
            "GNUPGHOME": str(directory),
        }
        tools = cls(
            find_criu(),
            find_sealpoint(),
            directory,
            Path(criusec).resolve() if criusec else None,
            environment,
        )
        tools._make_keys()
        tools._make_dropin()
        return tools

    @property
    def dropin(self) -> Path:
        """The drop-in, as `sealpoint install-criu` makes it, but with a configuration of the benchmark's own."""
        return self.keys / "criu"

    def _make_dropin(self) -> None:
        config = self.keys / "config.toml"
        config.write_text(
            f'recipients = ["{self.recipient}"]\nsigner = "{self.signer}"\n'
            f'identities = ["{self.identity}"]\ntrust = ["{self.trusted}"]\n'
            f'criu = "{self.criu}"\nstate = "{self.keys / "state"}"\n'
        )
        self.dropin.write_text(
            f"#!{sys.executable} -I\nfrom sealpoint import config\n\n"
            f"config.SYSTEM_PATH = {str(config)!r}\nfrom sealpoint.dropin import main\n\nmain()\n"
        )
        self.dropin.chmod(0o700)

    def _make_keys(self) -> None:
        keygen = [str(self.sealpoint), "keygen"]
        self.call([*keygen, str(self.keys / "recipient")])
        self.call([*keygen, str(self.keys / "colleague")])
        self.call([*keygen, str(self.keys / "signer"), "--signer"])
        (self.keys / "passphrase").write_text(os.urandom(24).hex() + "\n")
        if shutil.which("age-keygen"):
            self.call(["age-keygen", "-o", str(self.keys / "age.key")])
            public = self.call(["age-keygen", "-y", str(self.keys / "age.key")])
            (self.keys / "age.pub").write_text(public)
        if self.criusec:
            key, certificate = str(self.keys / "criusec.key"), str(self.keys / "criusec.pem")
            make = [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                "/CN=bench",
            ]
            self.call([*make, "-keyout", key, "-out", certificate])

    @property
    def identity(self) -> str:
        return str(self.keys / "recipient" / "identity.key")

    @property
    def recipient(self) -> str:
        return str(self.keys / "recipient" / "recipient.pub")

    @property
    def signer(self) -> str:
        return str(self.keys / "signer" / "signer.key")

    @property
    def trusted(self) -> str:
        return str(self.keys / "signer" / "signer.pub")

    def call(self, command: Sequence[str]) -> str:
        """Run something that is not measured; its standard output. Raises BenchError."""
        result = subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise BenchError(f"{' '.join(command)}: {result.stderr.strip()[-500:]}")
        return result.stdout

    def close(self) -> None:
        """gpg leaves an agent behind."""
        if shutil.which("gpgconf"):
            self.call(["gpgconf", "--kill", "gpg-agent"])

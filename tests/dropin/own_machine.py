"""A mount namespace with an /etc of its own, so that installing changes nothing of the machine that tests run on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SEALPOINT = (sys.executable, "-c", "from sealpoint.cli import main; main()")
TIMEOUT = 120


@dataclass
class Result:
    code: int
    out: str
    err: str


class OwnMachine:
    """etc: its /etc; prefix: where the drop-in shall go, first in root's and services' PATH; bin: a test's programs."""

    def __init__(self, directory: Path, criu: Path | None) -> None:
        self.etc = directory / "etc"
        self.prefix = directory / "sbin"
        self.bin = directory / "bin"
        self.config = self.etc / "sealpoint" / "config.toml"
        self.record = self.etc / "sealpoint" / "installed.json"
        self.executable = self.prefix / "criu"
        for made in (self.prefix, self.bin):
            made.mkdir(parents=True)
        subprocess.run(["cp", "-a", "--", "/etc", str(self.etc)], check=True)
        shutil.rmtree(self.etc / "sealpoint", ignore_errors=True)
        (self.etc / "environment").unlink(missing_ok=True)
        self.environment = os.environ | {"XDG_CONFIG_HOME": str(directory / "home")}
        self.environment.pop("SEALPOINT_CRIU", None)
        if criu is not None:
            self.environment["SEALPOINT_CRIU"] = str(criu)
        self.services_path = f"{self.prefix}:/usr/sbin:/usr/bin"
        self.units = ""
        self.put_first()
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c",
             'mount --bind "$0" /etc && echo ready && exec sleep infinity', str(self.etc)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.ready = self._holder.stdout.readline() == b"ready\n"
        self.problem = "" if self.ready else self._holder.stderr.read().decode()

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()

    def put_first(self, *, services: bool = True) -> None:
        """The prefix is first in the PATH of root's logins and of services, as /usr/local/sbin is."""
        (self.etc / "login.defs").write_text(f"ENV_SUPATH\tPATH={self.prefix}:/usr/sbin:/usr/bin\n")
        if not services:
            self.services_path = "/usr/sbin:/usr/bin"
        self.systemctl()

    def systemctl(self, **units: dict[str, str]) -> None:
        """What a systemd would say; names of units with _ for -, without .service."""
        known = {f"{name.replace('_', '-')}.service": values for name, values in units.items()}
        self.program(
            "systemctl",
            f"#!{sys.executable} -I\nimport sys\nknown = {known!r}\n"
            f"if 'show-environment' in sys.argv: print('PATH={self.services_path}')\n"
            "elif sys.argv[-1] in known:\n"
            "    for item in ({'LoadState': 'loaded'} | known[sys.argv[-1]]).items(): print('='.join(item))\n"
            "else: print('LoadState=not-found')\n",
        )

    def program(self, name: str, text: str) -> Path:
        """An executable of that name, in the PATH of what the test runs."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def command(self, *arguments: object) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", *map(str, arguments)]

    def start(self, *arguments: object, **options) -> subprocess.Popen:
        return subprocess.Popen(self.command(*arguments), **{"env": self.env()} | options)

    def env(self) -> dict[str, str]:
        return self.environment | {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    def run(self, *arguments: object, wrapper: tuple[str, ...] = ()) -> Result:
        """A program in it."""
        done = subprocess.run(
            self.command(*wrapper, *arguments),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, env=self.env(),
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert "internal error" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def sealpoint(self, *arguments: object, wrapper: tuple[str, ...] = ()) -> Result:
        return self.run(*SEALPOINT, *arguments, wrapper=wrapper)

    def install(self, *arguments: object) -> Result:
        return self.sealpoint(
            "install-criu", "--from-checkout", "--prefix", self.prefix, *arguments
        )

    def doctor(self, *arguments: object, wrapper: tuple[str, ...] = ()) -> list[dict[str, str]]:
        """Its findings; its exit code has to fit them."""
        done = self.sealpoint("doctor", "--json", *arguments, wrapper=wrapper)
        values = json.loads(done.out)
        failed = [f for f in values["findings"] if f["level"] == "fail"]
        assert done.code == (6 if failed else 0)
        assert values["ok"] == (not failed)
        return values["findings"]

    def snapshot(self) -> dict[str, tuple]:
        """All that an installation could change: names, contents, owners, modes, times of files."""
        found = {}
        for top in (self.etc / "sealpoint", self.prefix, self.prefix.parent / "deep"):
            for path in [top, *sorted(top.rglob("*"))]:
                if not os.path.lexists(path):
                    continue
                info = path.lstat()
                value = (info.st_mode, info.st_uid, info.st_gid)
                if path.is_symlink():
                    value += (os.readlink(path),)
                elif path.is_file():
                    value += (path.read_bytes(), info.st_mtime_ns, info.st_ino, info.st_nlink)
                found[str(path)] = value
        return found


def installed(machine: OwnMachine, keys, *more: object) -> None:
    done = machine.install(*keys.sealing, *keys.opening, *more)
    assert done.code == 0, done.err


def fails(done, code: int, *words: str) -> None:
    assert done.code == code, done.err
    for word in words:
        assert word in done.err, done.err


def existing(machine: OwnMachine, keys) -> None:
    machine.config.parent.mkdir()
    machine.config.write_text(
        f'# ours\n\nsigner="{keys.signer}"\nrecipients = ["{keys.recipient}"]   # me\ncompress = "none"\n'
    )
    machine.config.chmod(0o640)
    os.utime(machine.config, ns=(10**18, 10**18 + 123))


def lines(findings: list[dict[str, str]], topic: str, *words: str) -> list[dict[str, str]]:
    """The findings on a topic that have all these words."""
    return [
        f
        for f in findings
        if f["topic"] == topic and all(w in f"{f['text']} {f['hint']}" for w in words)
    ]


def line(findings: list[dict[str, str]], level: str, topic: str, *words: str) -> dict[str, str]:
    """The one finding on a topic that has all these words, which has to be of that level."""
    found = lines(findings, topic, *words)
    assert len(found) == 1, [f for f in findings if f["topic"] == topic]
    assert found[0]["level"] == level, found
    return found[0]

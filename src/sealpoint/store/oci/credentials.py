"""Credentials of registries, where Docker, podman, skopeo and oras keep them: `config.json` and its helpers.

A helper is a program that gets a registry's name on standard input and answers on standard output
(docker-credential-helpers).  Nothing secret is in arguments, messages or the environment of children.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from typing import Any, Final, NamedTuple

from sealpoint import ownership
from sealpoint.environment import environment
from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError
from sealpoint.names import printable
from sealpoint.store.oci.manifest import decode_json

_MAX_CONFIG: Final = 1024 * 1024
_HELPER_SECONDS: Final = 60.0
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_DOCKER_HUB: Final = "https://index.docker.io/v1/"
_NOT_FOUND: Final = b"credentials not found"


class Credentials(NamedTuple):
    """user and password; or token: an identity token, for which a token server gives others."""

    user: str
    password: str
    token: str = ""

    def __repr__(self) -> str:
        return "Credentials(...)"

    def basic(self) -> str:
        """The value of a header Authorization."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find(registry: str) -> Credentials | None:
    """Of a registry (host with port), as its helper or config.json has them; None: go there without.

    Raises PolicyError (root, and others could change the file), SystemEnvironmentError.
    """
    path = _config_path()
    config = _read(path)
    if config is None:
        return None
    names = [_DOCKER_HUB] if registry == "docker.io" else []
    names += [registry, f"https://{registry}", f"https://{registry}/"]
    names += [f"https://{registry}/v1/", f"https://{registry}/v2/", f"http://{registry}"]
    helper = _mapping(config, "credHelpers").get(registry) or config.get("credsStore")
    if helper:
        found = _ask(helper, names[0], path)
        if found is not None:
            return found
    entries = _mapping(config, "auths")
    for name in names:
        if name in entries:
            found = _decode(entries[name], f"{printable(path)}: the entry of {printable(registry)}")
            if found is not None:
                return found
    return None


def _config_path() -> str:
    directory = os.environ.get("DOCKER_CONFIG")
    return os.path.join(directory or os.path.expanduser("~/.docker"), "config.json")


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(ownership.open_owned(path, "the credentials file"), "rb") as file:
            data = file.read(_MAX_CONFIG + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read {printable(path)}: {error.strerror}") from None
    if len(data) > _MAX_CONFIG:
        raise SystemEnvironmentError(f"{printable(path)} is too large for a credentials file")
    try:
        return decode_json(data, printable(path))
    except FileError as error:
        raise _unusable(error.message) from None


def _unusable(message: str) -> SystemEnvironmentError:
    return SystemEnvironmentError(
        message, hint="repair the file, or name another directory with DOCKER_CONFIG"
    )


def _mapping(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if type(value) is dict else {}


def _decode(entry: Any, what: str) -> Credentials | None:
    """An entry of "auths"; None if a helper has what belongs into it."""
    if type(entry) is not dict:
        raise _unusable(f"{what} is malformed")
    if type(token := entry.get("identitytoken")) is str and token:
        return Credentials("", "", token)
    user, password = entry.get("username"), entry.get("password")
    if type(user) is str and type(password) is str and user:
        return Credentials(user, password)
    encoded = entry.get("auth")
    if not encoded:
        return None
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError, TypeError):
        raise _unusable(f"{what} is malformed") from None
    if not colon or not user:
        raise _unusable(f"{what} is malformed")
    return Credentials(user, password.rstrip("\0"))


def _ask(helper: Any, server: str, path: str) -> Credentials | None:
    """None: it has none."""
    if type(helper) is not str or not _HELPER.fullmatch(helper):
        raise _unusable(f"{printable(path)} names a helper that is not valid")
    name = f"docker-credential-{helper}"
    try:
        program = ownership.program(name)
        done = subprocess.run(
            [program, "get"],
            env=environment(),
            input=server.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_HELPER_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise _unusable(f"{printable(path)} names the helper {name}, which is not there") from None
    except subprocess.TimeoutExpired:
        raise SystemEnvironmentError(f"{name} does not answer", hint="unlock it first") from None
    except OSError as error:
        raise SystemEnvironmentError(f"cannot run {name}: {error.strerror}") from None
    if done.returncode != 0:
        if _NOT_FOUND in done.stdout[:4096]:
            return None
        raise SystemEnvironmentError(f"{name} failed", hint="run it by hand to see why")
    try:
        if len(done.stdout) > _MAX_CONFIG:
            raise FileError("too long")
        answer = decode_json(done.stdout, name)
        user, secret = answer["Username"], answer["Secret"]
    except (SealpointError, KeyError):
        raise SystemEnvironmentError(
            f"{name} did not answer as a credential helper should"
        ) from None
    if type(user) is not str or type(secret) is not str:
        raise SystemEnvironmentError(f"{name} did not answer as a credential helper should")
    return Credentials("", "", secret) if user == "<token>" else Credentials(user, secret)

"""What a request by RPC may hold, and the settings of CRIU's configuration files in it.

CRIU gets no name of a file in a request: settings that we must see become fields, the rest stands in a memfd that CRIU
inherited.  It is sealed before the request is sent, and CRIU reads it under its own `/proc/self/fd`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from typing import Any, Final

from sealpoint import names
from sealpoint.dropin import criu_config, request_table
from sealpoint.dropin.criu_config import RefusedError, Setting

_ALL_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# DUMP, RESTORE, CHECK, PRE_DUMP, PAGE_SERVER, CPUINFO_DUMP, CPUINFO_CHECK, PAGE_SERVER_CHLD, SINGLE_PRE_DUMP
WITH_OPTIONS: Final = (1, 2, 3, 4, 5, 7, 8, 12, 13)


def memory_file() -> int:
    """A descriptor for `Requests`, made before CRIU is: it inherits it under the same number."""
    return os.memfd_create("criu-configuration", os.MFD_ALLOW_SEALING)


class Requests:
    """The requests of one connection.

    memory: descriptor of `memory_file`; settings: those that CRIU would have read by itself; problem: why there are
    none of them; real: path of the real CRIU, for messages.
    """

    def __init__(
        self,
        memory: int = -1,
        settings: Sequence[Setting] = (),
        problem: str = "",
        real: str = "",
    ) -> None:
        self._memory = memory
        self._settings = settings
        self._problem = problem
        self._real = real
        self._content: bytes | None = None

    def prepare(self, data: bytes, kind: int) -> tuple[bytes, list[str]]:
        """The request of type `kind` as the rest of the drop-in and CRIU shall see it, and remarks for CRIU's log.

        Raises RefusedError.
        """
        remarks = self._check(data, kind)
        if kind not in WITH_OPTIONS:
            return data, remarks
        if self._problem:
            raise RefusedError(self._problem)
        from google.protobuf.message import DecodeError

        from sealpoint.criu import schema

        try:
            request = schema.message("criu_req").FromString(data)
            if not request.HasField("opts"):
                return data, remarks
            self._settle(request.opts)
            return bytes(request.SerializeToString()), remarks
        except (DecodeError, UnicodeError):
            raise RefusedError("the request cannot be understood") from None

    def _settle(self, options: Any) -> None:
        own: list[Setting] = []
        if path := names.text(options.config_file):
            if not os.path.isabs(path):
                raise RefusedError(f"config_file {path} is not an absolute path")
            own = criu_config.read(path)
        criu_config.fold(options, self._settings, overrides=False)
        criu_config.fold(options, own, overrides=True)
        criu_config.check_log(names.text(options.log_file), "the request")
        content = criu_config.written(criu_config.remaining(own))
        self._write(content)
        options.ClearField("config_file")
        if content:
            options.config_file = f"/proc/self/fd/{self._memory}"

    def _write(self, content: bytes) -> None:
        if self._content is not None:
            if content != self._content:
                raise RefusedError("the settings of config_file changed between two requests")
            return
        if self._memory < 0:
            if content:
                raise RefusedError("config_file cannot be handed on to CRIU here")
            return
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(self._memory, left) :]
            fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, _ALL_SEALS)
        except OSError as error:
            raise RefusedError(
                f"config_file cannot be handed on to CRIU: {error.strerror}"
            ) from None
        self._content = content

    def _check(self, data: bytes, kind: int) -> list[str]:
        if kind not in request_table.TYPES:
            raise RefusedError(
                f"request type {kind} is not known to sealpoint ({self._version()}): use a newer sealpoint"
            )
        try:
            request_table.check(data)
        except request_table.UnknownFieldError as error:
            return self._check_again(data, str(error))
        return []

    def _check_again(self, data: bytes, reason: str) -> list[str]:
        """With what the system's configuration allows."""
        from sealpoint import config
        from sealpoint.errors import SealpointError

        try:
            allowed = config.load_system().allow_criu_fields
            used = request_table.check(data, allowed)
        except SealpointError as error:
            raise RefusedError(f"{reason}; {error.message}") from None
        except request_table.UnknownFieldError as error:
            raise RefusedError(
                f"{error} ({self._version()}): use a newer sealpoint, or, if you know that no memory goes elsewhere "
                f"because of it, allow it in {config.SYSTEM_PATH}"
            ) from None
        return [
            f"field {path} of the request is not known to sealpoint: allow_criu_fields lets it through"
            for path in used
        ]

    def _version(self) -> str:
        from sealpoint.criu import binary
        from sealpoint.errors import SealpointError

        try:
            return "CRIU " + ".".join(map(str, binary.find(self._real).version))
        except SealpointError:
            return "CRIU of an unknown version"

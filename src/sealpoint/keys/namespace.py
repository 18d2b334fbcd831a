"""Who else can open the checkpoints of one Kubernetes namespace: a table of the system's configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

_LISTS: Final = ("recipients", "metadata_recipients")
NAME: Final = re.compile(
    r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
)  # RFC 1123, as the API server demands
CLUSTER: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


class NamespaceTable(NamedTuple):
    """Recipients besides those of everybody, as files or literals."""

    name: str
    recipients: tuple[str, ...] = ()
    metadata_recipients: tuple[str, ...] = ()

    def to_settings(self) -> dict[str, object]:
        """As `parse_namespace` reads it."""
        lists = {
            key: list(value) for key, value in self._asdict().items() if key in _LISTS and value
        }
        return {"name": self.name, **lists}


def parse_namespace(values: Mapping[str, object], resolve: Callable[[str], str]) -> NamespaceTable:
    """From TOML.  resolve: makes paths absolute.  Raises ValueError with what is wrong, for a sentence."""
    for key in values:
        if key not in NamespaceTable._fields:
            known = ", ".join(NamespaceTable._fields)
            raise ValueError(f"no such key: {key} (known: {known})")
    name = values.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError("name must be the name of a namespace")
    lists: dict[str, tuple[str, ...]] = {}
    for key in _LISTS:
        value = values.get(key, [])
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError(f"{key} must be a list of strings")
        if "passphrase" in items:
            raise ValueError(f"{key} cannot be a passphrase")
        lists[key] = tuple(resolve(item) for item in items)
    return NamespaceTable(name, **lists)

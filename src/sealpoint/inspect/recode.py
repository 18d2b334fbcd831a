"""Images decoded and encoded again, and images shown without the data behind their entries."""

from __future__ import annotations

from typing import Any, Final

from sealpoint.errors import FileError, left_out
from sealpoint.inspect.image import Image, Payload, Writer
from sealpoint.inspect.source import Source

_MAX_RECODED: Final = 256 * 1024 * 1024  # larger images are left as they are
_RAW: Final = (
    "pages-",
    "tmpfs-",
    "iptables-",
    "ip6tables-",
    "nftables-",
    "route",
    "rule-",
    "ifaddr-",
)
_UNITS: Final = ("", "K", "M", "G", "T", "P", "E", "Z")


class Recoder:
    """results: what became of each image: "same", "different", "damaged", or "raw" where it is none of messages."""

    def __init__(self) -> None:
        self.results: dict[str, str] = {}

    @property
    def different(self) -> int:
        """How many did not come out as they were."""
        return sum(result in ("different", "damaged") for result in self.results.values())

    def run(self, source: Source, only: str = "") -> dict[str, bytes]:
        """All images of a source, or one; returns those that are made of messages, as they came out."""
        found: dict[str, bytes] = {}
        for name in [only] if only else source.names():
            if not only and not _is_image(name):
                continue
            data = self._recode(source, name)
            if data is not None:
                found[name] = data
        return found

    def _recode(self, source: Source, name: str) -> bytes | None:
        base = name.rpartition("/")[2]
        large = source.size(name) > _MAX_RECODED and not base.startswith(_RAW)
        if large:
            left_out(
                f"{source.label}:{name} is larger than {_MAX_RECODED} bytes, and stays as it is"
            )
        if large or base.startswith(_RAW):
            self.results[name] = "raw"
            return None
        where = f"{source.label}:{name}"
        try:
            image = Image(lambda at, size: source.pread(name, at, size), source.size(name), where)
        except FileError:
            self.results[name] = "raw"
            return None
        try:
            data = _again(image)
        except FileError:
            self.results[name] = "damaged"
            return None
        self.results[name] = "same" if data == source.read(name) else "different"
        return data


def _is_image(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.endswith(".img") or base in ("stats-dump", "stats-restore", "irmap-cache")


def _again(image: Image) -> bytes:
    data = bytearray()
    writer = Writer(image.name, data.extend)
    for record in image.records():
        writer.add(record.to_json(), image.where)
    return bytes(data)


def without_payload(entry: dict[str, Any], message: str) -> dict[str, Any]:
    """An entry as `crit show --nopl` has it: in place of the data behind it its size."""
    if "extra" not in entry:
        return entry
    if message in ("ghost_file_entry", "ghost_chunk_entry"):
        return {key: value for key, value in entry.items() if key != "extra"}
    # Of a segment whose contents are in a pagemap crit tells the size all the same.
    size = entry.get("size", 0) if message == "ipc_shm_entry" else _size(entry["extra"])
    return {**entry, "extra": f"... <{_readable(size)}>"}


def _size(extra: Any) -> int:
    if isinstance(extra, Payload):
        return extra.size
    if isinstance(extra, dict):
        return sum(_size(part) for part in extra.values())
    if all(isinstance(item, int) for item in extra):
        return 2 * len(extra)  # semaphores
    return sum(_size(item) if isinstance(item, Payload) else _record_size(item) for item in extra)


def _record_size(message: dict[str, Any]) -> int:
    from sealpoint.inspect import display

    return int(display.from_json(message, "ipc_msg", "a message").ByteSize())


def _readable(size: float) -> str:
    for unit in _UNITS:
        if size < 1024:
            return f"{int(size)}{unit}B" if int(size) == size else f"{size:.1f}{unit}B"
        size /= 1024
    return f"{size:.1f}YB"

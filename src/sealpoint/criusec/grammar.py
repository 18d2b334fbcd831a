"""What follows what in an image: the one description from which both reading and writing of encrypted images work.

`layout_of` says by name and first bytes how a file is encrypted as a whole; `steps` walks through an image of records.
Sources: CRIU's image-desc.c, pipes.c, sk-queue.c, sk-tcp.c, ipc_ns.c, bpfmap.c, files-reg.c, net.c, magic.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

COMMON_MAGIC: Final = 0x54564319
INVENTORY_MAGIC: Final = 0x58313116  # takes the place of the first word in inventory.img
SERVICE_MAGIC: Final = (
    0x55105940  # the first word of statistics, which stay in the clear, and of irmap-cache
)
CIPHER_MAGIC: Final = 0x50034653
CIPHER_NAME: Final = "cipher.img"

MAX_RECORD: Final = 64 * 1024 * 1024  # bytes; the largest real ones have some hundred KiB
MAX_PAYLOAD: Final = 256 * 1024 * 1024  # of a pipe, a socket's queue, a BPF map: all in one message
RECORD_DATA: Final = 4096  # bytes of data in one piece of a tool's output, or of a ghost file


class FieldLayout(Enum):
    """How a file of a dump is encrypted.

    KEYS: cipher.img; CLEAR: not at all; RECORDS: CRIU's records, one message each, and data between them; PAGES:
    memory; OUTPUT: what a tool printed, in structures of 4136 bytes; NETLINK: head and body of netlink messages.
    """

    KEYS = "keys"
    CLEAR = "clear"
    RECORDS = "records"
    PAGES = "pages"
    OUTPUT = "output"
    NETLINK = "netlink"


_BY_NAME: Final = (
    (re.compile(r"cipher\.img", re.ASCII), FieldLayout.KEYS),
    (re.compile(r"pages-\d+\.img", re.ASCII), FieldLayout.PAGES),
    (
        re.compile(r"(?:ip6?tables-\d+|tmpfs-(?:dev-)?\d+\.tar\.gz)\.img", re.ASCII),
        FieldLayout.OUTPUT,
    ),
    (re.compile(r"netns-(?:ct|exp)-\d+\.img", re.ASCII), FieldLayout.NETLINK),
    (re.compile(r"(?:ifaddr|route6?|rule|nftables)-\d+\.img", re.ASCII), FieldLayout.CLEAR),
)


def layout_of(name: str, head: bytes) -> FieldLayout:
    """How the file `name` (without directories), which begins with `head` (4 bytes or more), is encrypted."""
    for pattern, layout in _BY_NAME:
        if pattern.fullmatch(name):
            return layout
    if len(head) >= 4:
        (magic,) = struct.unpack_from("<I", head)
        if name.endswith(".img") and magic in (COMMON_MAGIC, INVENTORY_MAGIC):
            return FieldLayout.RECORDS
        if name == "irmap-cache" and magic == SERVICE_MAGIC:
            return FieldLayout.RECORDS
    return FieldLayout.CLEAR


@dataclass(frozen=True, slots=True)
class DictionaryEntry:
    """A record.  kind: its message, if anything in it counts; the message parsed is the answer, else None."""

    kind: str = ""


@dataclass(frozen=True, slots=True)
class Data:
    """`size` bytes.  sealed: encrypted as one message, if there are any; what: for errors."""

    size: int
    what: str
    sealed: bool = True


@dataclass(frozen=True, slots=True)
class Map:
    """The keys and values of a BPF map, one message; the reference pads both to the map's capacity."""

    map_id: int
    keys: int
    values: int


@dataclass(frozen=True, slots=True)
class Dictionary:
    """A small unlinked file up to the end of the image, in pieces."""


Step = DictionaryEntry | Data | Map | Dictionary
Steps = Generator[Step, Any, None]


def steps(magic: int) -> Steps:
    """The image from behind its magic numbers on, `magic` being the last of them.

    Whoever walks sends the answer to each step and stops at an Entry where nothing is left.
    """
    return _SPECIAL.get(magic, _records)()


def _records() -> Steps:
    while True:
        yield DictionaryEntry()


def _pipes() -> Steps:
    while True:
        entry = yield DictionaryEntry("pipe_data_entry")
        yield Data(entry.bytes, "the data of a pipe")


def _queues() -> Steps:
    while True:
        entry = yield DictionaryEntry("sk_packet_entry")
        yield Data(entry.length, "a packet")


def _tcp() -> Steps:
    while True:
        entry = yield DictionaryEntry("tcp_stream_entry")
        yield Data(entry.inq_len, "the receive queue")
        yield Data(entry.outq_len, "the send queue")


def _semaphores() -> Steps:
    while True:
        entry = yield DictionaryEntry("ipc_sem_entry")
        yield Data(_up(2 * entry.nsems, 8), "semaphores")


def _messages() -> Steps:
    while True:
        queue = yield DictionaryEntry("ipc_msg_entry")
        for _ in range(queue.qnum):
            entry = yield DictionaryEntry("ipc_msg")
            yield Data(_up(entry.msize, 8), "a message")


def _segments() -> Steps:
    while True:
        entry = yield DictionaryEntry("ipc_shm_entry")
        if not entry.in_pagemaps:  # before CRIU 3.x, and never encrypted
            yield Data(_up(entry.size, 4), "a shared memory segment", sealed=False)


def _maps() -> Steps:
    while True:
        entry = yield DictionaryEntry("bpfmap_data_entry")
        yield Map(entry.map_id, entry.keys_bytes, entry.values_bytes)


def _ghost() -> Steps:
    entry = yield DictionaryEntry("ghost_file_entry")
    if not entry.chunks:
        yield Dictionary()
    while True:
        chunk = yield DictionaryEntry("ghost_chunk_entry")
        yield Data(chunk.len, "a piece of an unlinked file", sealed=False)


def _up(size: int, to: int) -> int:
    return size + -size % to


_SPECIAL: Final = {
    0x56453709: _pipes,  # PIPES_DATA
    0x59333054: _pipes,  # FIFO_DATA
    0x56264026: _queues,  # SK_QUEUES
    0x51465506: _tcp,  # TCP_STREAM
    0x59573019: _semaphores,  # IPCNS_SEM
    0x55453737: _messages,  # IPCNS_MSG
    0x46283044: _segments,  # IPCNS_SHM
    0x64324033: _maps,  # BPFMAP_DATA
    0x52583605: _ghost,  # GHOST_FILE
}

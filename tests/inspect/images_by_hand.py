"""Images of every type that the table knows, with values of every kind, made without CRIU."""

from __future__ import annotations

import json
import random
import struct

from sealpoint.inspect import messages
from sealpoint.inspect.image import Image, Record, Writer
from sealpoint.inspect.json_text import write_image
from sealpoint.inspect.recode import without_payload

LIMITS = {
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "sint32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "sint64": (-(2**63), 2**63 - 1),
    "fixed64": (0, 2**64 - 1),
}


NEW_FIELDS = {"allow_uprobes"}  # not known to every crit that these images are compared with
NEW_BITS = 0x20008  # MAP_DROPPABLE, VMA_AREA_UPROBES


def number(source: random.Random, field) -> int:
    low, high = LIMITS[field.kind]
    if field.flags:
        return source.randrange(2**18) & high & ~NEW_BITS
    if field.words:
        known = messages.words(field.words, field.name)
        return source.choice([*known.values(), 77]) if known else source.randrange(9)
    if field.dev or field.old_dev:
        return source.randrange(2**20 * 300)
    # pycriu cannot show a negative number in hexadecimal and read it again
    low = 0 if field.hex else low
    return source.choice([low, high, 0, 1, source.randint(low, high), source.randrange(300)])


def value(source: random.Random, field, depth: int):
    if field.is_message:
        return fill(source, field.kind, depth + 1)
    if field.kind == "bytes":
        return source.randbytes(source.choice([0, 1, 5, 57, 58, 200]))
    if field.kind == "string":
        return source.choice(["", "x", "/a/path", "späß", 'quo"te\\'])
    if field.kind == "bool":
        return source.random() < 0.5
    if field.enum is not None:
        return source.choice(list(field.enum.values()))
    return number(source, field)


def fill(source: random.Random, name: str, depth: int = 0):
    """A message with required fields and some of the others."""
    message = messages.message_class(name)()
    for field in messages.fields(name).values():
        if field.name in NEW_FIELDS:
            continue
        if not field.required and (depth > 4 or source.random() < 0.4):
            continue
        if not field.repeated:
            if field.is_message:
                getattr(message, field.name).SetInParent()
                getattr(message, field.name).CopyFrom(value(source, field, depth))
            else:
                set_plain(message, field, value(source, field, depth))
            continue
        count = source.choice([1, 4]) if field.ip else source.choice([1, 2, 3])
        for _ in range(count):
            item = value(source, field, depth)
            getattr(message, field.name).append(item.encode() if isinstance(item, str) else item)
    return message


def set_plain(message, field, item) -> None:
    setattr(message, field.name, item.encode() if isinstance(item, str) else item)


SIZED = {  # where the size of what follows is
    "pipe_data_entry": ("bytes",),
    "sk_packet_entry": ("length",),
    "tcp_stream_entry": ("inq_len", "outq_len"),
    "bpfmap_data_entry": ("keys_bytes", "values_bytes"),
    "ipc_sem_entry": ("nsems",),
    "ipc_msg_entry": ("qnum",),
    "ipc_shm_entry": ("size",),
    "ghost_chunk_entry": ("len",),
}


def raw_record(message) -> bytes:
    data = message.SerializeToString()
    return struct.pack("<I", len(data)) + data


def entry(source: random.Random, name: str) -> bytes:
    """A record with the data behind it."""
    message = fill(source, name)
    sizes = [source.randrange(200) for _ in SIZED.get(name, ())]
    for field, size in zip(SIZED.get(name, ()), sizes, strict=True):
        setattr(message, field, size)
    if name == "ipc_shm_entry":
        message.ClearField("in_pagemaps")
    if name == "ipc_msg_entry":
        message.qnum = 3
        parts = [fill(source, "ipc_msg") for _ in range(3)]
        data = b""
        for part in parts:
            part.msize = source.randrange(100)
            data += raw_record(part) + source.randbytes(part.msize) + bytes(-part.msize % 8)
        return raw_record(message) + data
    if name == "ipc_sem_entry":
        return raw_record(message) + source.randbytes(2 * sizes[0]) + bytes(-2 * sizes[0] % 8)
    padding = -sizes[0] % 4 if name == "ipc_shm_entry" else 0
    return raw_record(message) + source.randbytes(sum(sizes)) + bytes(padding)


def image(name: str, seed: int = 0) -> bytes:
    """A whole image of a type, of two records or more."""
    source = random.Random(f"{name} {seed}")
    out = bytearray()
    Writer(name, out.extend)  # the magic numbers
    message, handler = messages.table()["images"][name]
    if handler == "pagemap_handler":
        out += raw_record(fill(source, "pagemap_head"))
        for _ in range(3):
            part = fill(source, "pagemap_entry")
            part.nr_pages = source.randrange(2**40)
            out += raw_record(part)
    elif handler == "ghost_file_handler":
        head = fill(source, "ghost_file_entry")
        head.chunks = seed % 2 == 1
        out += raw_record(head)
        if not head.chunks:
            return bytes(out) + source.randbytes(300)
        for _ in range(2):
            out += entry(source, "ghost_chunk_entry")
    elif handler == "tcp_stream_extra_handler":
        out += entry(source, message)  # there is one in each image, and --nopl reads no further
    else:
        for _ in range(2):
            out += entry(source, message)
    return bytes(out)


def open_bytes(data: bytes, where: str = "image") -> Image:
    return Image(lambda at, size: data[at : at + size], len(data), where)


def records(data: bytes) -> list[Record]:
    return list(open_bytes(data).records())


def as_json(data: bytes, *, pretty: bool = False, nopl: bool = False) -> str:
    """What `sealpoint crit decode` or `show` prints."""
    out: list[str] = []
    opened = open_bytes(data)
    entries = (r.to_json(pretty=pretty) for r in opened.records())
    if nopl:
        entries = (without_payload(r.to_json(pretty=pretty), r.name) for r in opened.records())
    write_image(opened.name, entries, out.append, indent=4 if pretty else None)
    return "".join(out)


def reformat(text: str) -> str:
    return json.dumps(json.loads(text))

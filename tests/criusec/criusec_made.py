"""Encrypted dumps made by hand after docs/criusec.md, without sealpoint's own encoder: every byte is chosen here.

Deterministic: nonces are counted, PKCS#1 v1.5 pads with fixed bytes.  Records are built from the table of fields.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import struct
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sealpoint.inspect import messages

KEY = Path(__file__).resolve().parents[1] / "vectors" / "criusec" / "key.pem"
COMMON, SERVICE = 0x54564319, 0x55105940
PAGE = 4096


def seed(text: str, size: int) -> bytes:
    return hashlib.shake_256(text.encode()).digest(size)


def record(kind: str, **fields) -> bytes:
    """A message serialised.  A field that is a dictionary is a message in it."""
    message = messages.message_class(kind)()
    for name, value in fields.items():
        if isinstance(value, dict):
            inner = getattr(message, name)
            inner.SetInParent()
            for key, item in value.items():
                setattr(inner, key, item)
        else:
            setattr(message, name, value)
    return message.SerializePartialToString()


def magic(name: str) -> bytes:
    number = messages.table()["magics"][name]
    return struct.pack("<I", number) if name == "INVENTORY" else struct.pack("<II", COMMON, number)


@dataclass
class Image:
    """A file, as it is encrypted and as the plain image that it stands for."""

    encrypted: bytes = b""
    plain: bytes = b""

    def __add__(self, other: Image) -> Image:
        return Image(self.encrypted + other.encrypted, self.plain + other.plain)


def clear(data: bytes) -> Image:
    return Image(data, data)


@dataclass
class Maker:
    """Makes images of one dump."""

    token: bytes = field(default_factory=lambda: seed("token", 32))
    key: bytes = field(default_factory=lambda: seed("key", 64))
    iv: bytes = field(default_factory=lambda: seed("iv", 16))
    nonces: int = 0
    digest: int = 0

    def _seal(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        self.nonces += 1
        nonce = self.nonces.to_bytes(12, "big")
        sealed = ChaCha20Poly1305(self.token).encrypt(nonce, data, b"")
        return sealed[:-16], sealed[-16:], nonce

    def message(self, data: bytes) -> Image:
        """Data with its trailer; nothing for nothing."""
        return Image(b"".join(self._seal(data)) if data else b"", data)

    def entry(self, data: bytes, *, says: int | None = None) -> Image:
        """A record; `says`: another length than it has."""
        size = struct.pack("<I", len(data) if says is None else says)
        return clear(size) + self.message(data)

    def records(self, name: str, *entries: bytes) -> Image:
        """An image of records without data behind them."""
        image = clear(magic(name))
        for data in entries:
            image += self.entry(data)
        return image

    def ghost_piece(self, data: bytes, *, says: int | None = None) -> Image:
        body, tag, nonce = self._seal(data)
        size = struct.pack("<q", len(data) if says is None else says)
        return Image(tag + nonce + size + body, data)

    def output(self, data: bytes, *, says: int | None = None) -> Image:
        """One read of a tool's output; what is behind it is the reference's stack."""
        body, tag, nonce = self._seal(data)
        size = struct.pack("<q", len(data) if says is None else says)
        rest = seed("stack", PAGE - len(data))
        return Image(tag + nonce + b"\xfe\xed\xfa\xce" + size + body + rest, data)

    def netlink(self, data: bytes, *, says: int | None = None) -> Image:
        head = struct.pack("<I", 16 + len(data) if says is None else says) + seed("nlmsghdr", 12)
        return self.message(head) + self.message(data)

    def pages(self, address: int, data: bytes, *, counted: bool = True) -> Image:
        """Pages from `address` on; `counted`: whether the digest knows of them."""
        out = b""
        for at in range(0, len(data), PAGE):
            context = Cipher(algorithms.AES(self.key), modes.XTS(self.iv)).encryptor()
            page = context.update(data[at : at + PAGE])
            covered = page + struct.pack("<Qi", address + at, 0)
            if counted:
                one = hmac.new(self.token, covered, hashlib.sha256).digest()
                self.digest ^= int.from_bytes(one, "big")
            out += page
        return Image(out, data)

    def envelope(self, **instead) -> bytes:
        """cipher.img; `instead`: fields that are otherwise."""
        fields = {
            1: pkcs1(self.token),
            2: pkcs1(self.key),
            3: self.iv,
            4: self.digest.to_bytes(32, "big"),
        }
        fields |= {int(k[1:]): v for k, v in instead.items()}
        body = b"".join(
            bytes([number << 3 | 2]) + varint(len(value)) + value
            for number, value in fields.items()
            if value is not None
        )
        return struct.pack("<III", COMMON, 0x50034653, len(body)) + body


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


@functools.cache
def public_numbers():
    return load_pem_private_key(KEY.read_bytes(), None).public_key().public_numbers()


def pkcs1(secret: bytes, *, first: bytes = b"\0\2") -> bytes:
    """RSAES-PKCS1-v1_5 (RFC 8017) with padding that is the same each time."""
    numbers, size = public_numbers(), 256
    padding = bytes(b or 1 for b in seed("padding", size - 3 - len(secret)))
    block = first + padding + b"\0" + secret
    return pow(int.from_bytes(block, "big"), numbers.e, numbers.n).to_bytes(size, "big")


def pagemap(maker: Maker, number: int, *runs: tuple[int, int]) -> Image:
    """pagemap image: (address, pages) each."""
    entries = [
        record("pagemap_entry", vaddr=address, compat_nr_pages=pages, flags=4)
        for address, pages in runs
    ]
    head = record("pagemap_head", pages_id=number)
    return maker.records("PAGEMAP", head, *entries)


def a_dump(maker: Maker) -> dict[str, Image]:
    """A dump with every layout in it: two tasks, and what else CRIU writes."""
    page = lambda text: seed(text, PAGE)  # noqa: E731
    images: dict[str, Image] = {
        "inventory.img": maker.records("INVENTORY", record("inventory_entry", img_version=2)),
        "pstree.img": maker.records(
            "PSTREE",
            record("pstree_entry", pid=1, ppid=0, pgid=1, sid=1),
            record("pstree_entry", pid=2, ppid=1, pgid=1, sid=1),
        ),
        "core-1.img": maker.records("CORE", record("core_entry", mtype=1)),
        "core-2.img": maker.records("CORE", record("core_entry", mtype=1)),
        "fdinfo-2.img": maker.records(
            "FDINFO", record("fdinfo_entry", id=1, flags=0, type=1, fd=0)
        ),
        "fdinfo-3.img": maker.records(
            "FDINFO", record("fdinfo_entry", id=2, flags=0, type=1, fd=9)
        ),
        "seccomp.img": maker.records("SECCOMP", b""),
        "files.img": maker.records(
            "FILES",
            record(
                "file_entry",
                type=17,
                id=3,
                bpf={"key_size": 4, "value_size": 8, "map_id": 5, "max_entries": 10},
            ),
        ),
        "pagemap-1.img": pagemap(maker, 1, (0x10000, 2), (0x40000, 1)),
        "pages-1.img": maker.pages(0x10000, page("a") + page("b"))
        + maker.pages(0x40000, page("c")),
        "pagemap-2.img": pagemap(maker, 2, (0x10000, 1)),
        "pages-2.img": maker.pages(0x10000, page("d")),
        "pagemap-shmem-7.img": pagemap(maker, 3, (0, 1)),
        "pages-3.img": maker.pages(0, page("e"), counted=False),
        "ipcns-shm-9.img": maker.records(
            "IPCNS_SHM", record("ipc_shm_entry", desc={"id": 7}, size=PAGE, in_pagemaps=True)
        ),
        "stats-dump": clear(struct.pack("<II", SERVICE, 0x57093306) + b"\2\0\0\0\x08\1"),
        "ifaddr-5.img": clear(seed("addresses", 100)),
        "nftables-5.img": clear(b"table inet x {\n}\n"),
        "ip6tables-5.img": clear(b""),
        "iptables-5.img": maker.output(seed("rules", 200)),
        "tmpfs-dev-3.tar.gz.img": maker.output(seed("tar", PAGE)) + maker.output(b"end"),
        "netns-ct-5.img": maker.netlink(seed("ct", 60)) + maker.netlink(b""),
    }
    for name, size in (("PIPES_DATA", 70), ("FIFO_DATA", 0)):
        file = "pipes-data.img" if size else "fifo-data.img"
        head = record("pipe_data_entry", pipe_id=4, bytes=size)
        images[file] = clear(magic(name)) + maker.entry(head) + maker.message(seed(name, size))
    queue = [(1, 40), (1, 33)]
    images["sk-queues.img"] = clear(magic("SK_QUEUES"))
    for id_for, size in queue:
        images["sk-queues.img"] += maker.entry(
            record("sk_packet_entry", id_for=id_for, length=size)
        ) + maker.message(seed("packet", size))
    images["tcp-stream-6.img"] = (
        clear(magic("TCP_STREAM"))
        + maker.entry(record("tcp_stream_entry", inq_len=11, outq_len=22))
        + maker.message(seed("in", 11))
        + maker.message(seed("out", 22))
    )
    images["ipcns-sem-9.img"] = (
        clear(magic("IPCNS_SEM"))
        + maker.entry(record("ipc_sem_entry", nsems=3))
        + maker.message(struct.pack("<4H", 1, 2, 3, 0))
    )
    images["ipcns-msg-9.img"] = clear(magic("IPCNS_MSG")) + maker.entry(
        record("ipc_msg_entry", qbytes=100, qnum=2)
    )
    for size in (5, 16):
        images["ipcns-msg-9.img"] += maker.entry(
            record("ipc_msg", mtype=1, msize=size)
        ) + maker.message(seed("msg", size) + bytes(-size % 8))
    keys, values = seed("map keys", 3 * 4), seed("map values", 3 * 8)
    padded = maker.message(keys + bytes(7 * 4) + values + bytes(7 * 8))
    entry = record("bpfmap_data_entry", map_id=5, keys_bytes=12, values_bytes=24, count=3)
    images["bpfmap-data.img"] = (
        clear(magic("BPFMAP_DATA")) + maker.entry(entry) + Image(padded.encrypted, keys + values)
    )
    images["ghost-file-1.img"] = (
        clear(magic("GHOST_FILE"))
        + maker.entry(record("ghost_file_entry", uid=0, gid=0, mode=0o100600))
        + maker.ghost_piece(seed("ghost", PAGE))
        + maker.ghost_piece(b"rest")
    )
    images["ghost-file-2.img"] = (
        clear(magic("GHOST_FILE"))
        + maker.entry(record("ghost_file_entry", uid=0, gid=0, mode=0o100600, chunks=True))
        + maker.entry(record("ghost_chunk_entry", len=50, off=0))
        + clear(seed("chunk", 50))
        + maker.entry(record("ghost_chunk_entry", len=20, off=8192))
        + clear(seed("another", 20))
    )
    return images


def files(images: dict[str, Image], maker: Maker) -> dict[str, bytes]:
    """As they lie in the directory."""
    return {name: image.encrypted for name, image in images.items()} | {
        "cipher.img": maker.envelope()
    }

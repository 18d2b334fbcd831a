"""Makes the vectors of the CRIUsec format in this folder: `python -m tests.vectors.criusec.generate`.

`whole.json` holds a dump; all others are changes of its files, most of them harmful.  outcome: "plain" (it opens;
`plain` has the hash of every image), "file" or "identity" (refused with that error).  undetected: it opens although it
is not what was dumped, because the format cannot tell.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.criusec import criusec_made as made
from tests.criusec.criusec_made import (
    PAGE,
    Image,
    Maker,
    a_dump,
    clear,
    magic,
    pagemap,
    pkcs1,
    record,
    seed,
)

HERE = Path(__file__).resolve().parent

Images = dict[str, Image]
Change = Callable[[Maker, Images], dict[str, bytes] | None]
CHANGES: dict[str, tuple[str, str, Change]] = {}


def change(name: str, outcome: str, comment: str):
    def note(function: Change) -> Change:
        CHANGES[name] = (outcome, comment, function)
        return function

    return note


def patch(image: Image, at: int, new: bytes) -> Image:
    """Other bytes in the encrypted file; negative from its end."""
    at %= len(image.encrypted)
    data = image.encrypted
    return Image(data[:at] + new + data[at + len(new) :], image.plain)


def flip(image: Image, at: int) -> Image:
    return patch(image, at, bytes([image.encrypted[at % len(image.encrypted)] ^ 1]))


def cut(image: Image, end: int) -> Image:
    return Image(image.encrypted[:end], image.plain[:end])


def simple(
    name: str, outcome: str, comment: str, file: str, edit: Callable[[Image], Image]
) -> None:
    def apply(_: Maker, images: Images) -> None:
        images[file] = edit(images[file])

    CHANGES[name] = (outcome, comment, apply)


# --- Keys -------------------------------------------------------------------------------------


def envelope(name: str, outcome: str, comment: str, **fields) -> None:
    CHANGES[name] = (
        outcome,
        comment,
        lambda maker, _: {"cipher.img": maker.envelope(**fields)},
    )


TOKEN, KEY = seed("token", 32), seed("key", 64)
envelope("token-of-31-bytes", "identity", "the wrapped token is too short", f1=pkcs1(TOKEN[:31]))
envelope("token-of-33-bytes", "identity", "the wrapped token is too long", f1=pkcs1(TOKEN + b"x"))
envelope("token-another", "identity", "a token of the right length", f1=pkcs1(seed("x", 32)))
envelope("token-padding-wrong", "identity", "not PKCS#1 v1.5", f1=pkcs1(TOKEN, first=b"\0\1"))
envelope("token-of-another-modulus", "identity", "longer than the key", f1=b"\1" * 512)
envelope("token-empty", "file", "no wrapped token", f1=b"")
envelope("token-of-4-kib", "file", "a wrapped token longer than any key", f1=bytes(4096))
envelope("page-key-missing", "file", "optional in the message, not in a dump", f2=None)
envelope("iv-of-15-bytes", "file", "", f3=bytes(15))
envelope("iv-missing", "file", "", f3=None)
envelope("digest-of-31-bytes", "file", "", f4=bytes(31))
envelope("digest-changed", "file", "the sum over the pages is another", f4=bytes(32))
envelope("digest-missing", "file", "without it no change of a page would be noticed", f4=None)
envelope(
    "iv-changed", "plain", "memory decrypts to noise, and nothing tells", f3=seed("other iv", 16)
)
envelope("page-key-halves-equal", "file", "libraries refuse such a key", f2=pkcs1(KEY[:32] * 2))


@change("envelope-length-wrong", "file", "the record says one byte less")
def _(maker: Maker, _: Images) -> dict[str, bytes]:
    data = maker.envelope()
    return {"cipher.img": data[:8] + struct.pack("<I", len(data) - 13) + data[12:]}


@change("envelope-length-huge", "file", "the record says 4 GiB")
def _(maker: Maker, _: Images) -> dict[str, bytes]:
    data = maker.envelope()
    return {"cipher.img": data[:8] + b"\xff" * 4 + data[12:]}


@change("envelope-of-another-type", "file", "an image, but not of keys")
def _(maker: Maker, _: Images) -> dict[str, bytes]:
    return {"cipher.img": magic("PSTREE") + maker.envelope()[8:]}


@change("envelope-garbage", "file", "not protobuf")
def _(maker: Maker, _: Images) -> dict[str, bytes]:
    return {"cipher.img": maker.envelope()[:8] + struct.pack("<I", 9) + b"\xff" * 9}


CHANGES["envelope-empty"] = ("file", "", lambda _, __: {"cipher.img": b""})
CHANGES["envelope-of-20-kib"] = (
    "file",
    "",
    lambda maker, _: {"cipher.img": maker.envelope() + bytes(20_000)},
)

# --- Records ----------------------------------------------------------------------------------

simple("record-length-huge", "file", "4 GiB", "core-1.img", lambda i: patch(i, 8, b"\xff" * 4))
simple(
    "record-length-beyond-the-file", "file", "by one byte", "core-1.img",
    lambda i: patch(i, 8, bytes([i.encrypted[8] + 1])),
)  # fmt: skip
simple("record-changed", "file", "one bit", "core-1.img", lambda i: flip(i, 12))
simple("record-tag-changed", "file", "one bit", "core-1.img", lambda i: flip(i, -20))
simple("record-nonce-changed", "file", "one bit", "core-1.img", lambda i: flip(i, -1))
simple("record-trailer-short", "file", "one byte is missing", "core-1.img", lambda i: cut(i, -1))
simple("record-cut-in-its-length", "file", "", "pstree.img", lambda i: cut(i, 10))
simple(
    "record-in-the-clear", "file", "plaintext in its place", "core-1.img", lambda i: clear(i.plain)
)
simple("magic-cut", "file", "", "core-1.img", lambda i: cut(i, 6))
simple(
    "record-dropped", "plain", "the second process is gone", "pstree.img",
    lambda i: Image(i.encrypted[:8] + i.encrypted[8 + (len(i.encrypted) - 8) // 2 :], i.plain),
)  # fmt: skip
simple(
    "record-repeated", "plain", "", "pstree.img",
    lambda i: Image(i.encrypted + i.encrypted[8:], i.plain + i.plain[8:]),
)  # fmt: skip
simple(
    "record-empty-inserted", "plain", "it has no tag", "core-1.img",
    lambda i: i + clear(bytes(4)),
)  # fmt: skip


@change("images-exchanged", "plain", "the descriptors of one process are those of the other")
def _(_: Maker, images: Images) -> None:
    one, two = images["fdinfo-2.img"], images["fdinfo-3.img"]
    images["fdinfo-2.img"], images["fdinfo-3.img"] = two, one


@change("image-missing", "plain", "")
def _(_: Maker, images: Images) -> None:
    del images["core-1.img"]


# --- Data behind records ----------------------------------------------------------------------


@change("pipe-says-2-gib", "file", "an authentic record with an impossible length")
def _(maker: Maker, images: Images) -> None:
    head = record("pipe_data_entry", pipe_id=4, bytes=1 << 31)
    images["pipes-data.img"] = clear(magic("PIPES_DATA")) + maker.entry(head) + clear(bytes(90))


@change("pipe-data-missing", "file", "the file ends behind the record")
def _(maker: Maker, images: Images) -> None:
    head = record("pipe_data_entry", pipe_id=4, bytes=10)
    images["pipes-data.img"] = clear(magic("PIPES_DATA")) + maker.entry(head)


@change("semaphores-absurd", "file", "8 GiB of them")
def _(maker: Maker, images: Images) -> None:
    head = record("ipc_sem_entry", nsems=(1 << 32) - 1)
    images["ipcns-sem-9.img"] = clear(magic("IPCNS_SEM")) + maker.entry(head) + clear(bytes(40))


@change("queue-says-more-messages-than-there-are", "plain", "and ends at the end of the file")
def _(maker: Maker, images: Images) -> None:
    head = record("ipc_msg_entry", qbytes=1, qnum=(1 << 32) - 1)
    images["ipcns-msg-9.img"] = clear(magic("IPCNS_MSG")) + maker.entry(head)


@change("map-fuller-than-its-capacity", "file", "")
def _(maker: Maker, images: Images) -> None:
    entry = record("bpfmap_data_entry", map_id=5, keys_bytes=44, values_bytes=88, count=11)
    images["bpfmap-data.img"] = (
        clear(magic("BPFMAP_DATA")) + maker.entry(entry) + maker.message(bytes(120))
    )


@change("map-not-padded", "plain", "as the reference's own reader expects it")
def _(maker: Maker, images: Images) -> None:
    entry = record("bpfmap_data_entry", map_id=5, keys_bytes=4, values_bytes=8, count=1)
    images["bpfmap-data.img"] = (
        clear(magic("BPFMAP_DATA")) + maker.entry(entry) + maker.message(seed("one", 12))
    )


@change("ghost-chunk-says-8-eib", "file", "")
def _(maker: Maker, images: Images) -> None:
    images["ghost-file-2.img"] += maker.entry(record("ghost_chunk_entry", len=1 << 63, off=0))


GHOST = 8 + 4 + len(record("ghost_file_entry", uid=0, gid=0, mode=0o100600)) + 28 + 28
for number, text in ((64000, "64000"), (-1, "minus-1"), (4097, "4097")):
    simple(
        f"ghost-piece-says-{text}", "file", "the reference overruns its stack", "ghost-file-1.img",
        lambda i, n=number: patch(i, GHOST, struct.pack("<q", n)),
    )  # fmt: skip
    simple(
        f"output-says-{text}", "file", "", "iptables-5.img",
        lambda i, n=number: patch(i, 32, struct.pack("<q", n)),
    )  # fmt: skip
simple("ghost-piece-cut", "file", "", "ghost-file-1.img", lambda i: cut(i, -1))
simple("ghost-piece-head-cut", "file", "", "ghost-file-1.img", lambda i: cut(i, GHOST + 4))
simple("output-cut", "file", "one byte", "iptables-5.img", lambda i: cut(i, -1))
simple("output-changed", "file", "", "iptables-5.img", lambda i: flip(i, 45))
simple(
    "output-padding-changed", "plain", "the padding means nothing", "iptables-5.img",
    lambda i: flip(i, -1),
)  # fmt: skip
simple(
    "ghost-piece-dropped", "plain", "the second of two", "ghost-file-1.img",
    lambda i: Image(i.encrypted[:-40], i.plain[:-4]),
)  # fmt: skip


@change("netlink-message-of-15-bytes", "file", "shorter than its own head")
def _(maker: Maker, images: Images) -> None:
    images["netns-ct-5.img"] = maker.netlink(b"", says=15)


@change("netlink-message-of-4-gib", "file", "")
def _(maker: Maker, images: Images) -> None:
    images["netns-ct-5.img"] = maker.netlink(bytes(40), says=(1 << 32) - 1)


# --- Memory -----------------------------------------------------------------------------------

simple("page-changed", "file", "one bit", "pages-1.img", lambda i: flip(i, 5000))
simple("pages-cut-in-a-page", "file", "", "pages-1.img", lambda i: cut(i, -1))
simple("pages-one-missing", "file", "", "pages-1.img", lambda i: cut(i, -PAGE))
simple("pages-one-more", "file", "", "pages-1.img", lambda i: i + clear(bytes(PAGE)))
simple(
    "pages-exchanged-at-other-addresses", "file", "", "pages-1.img",
    lambda i: Image(
        i.encrypted[PAGE : 2 * PAGE] + i.encrypted[:PAGE] + i.encrypted[2 * PAGE :], i.plain
    ),
)  # fmt: skip


@change("pages-exchanged-between-processes", "plain", "they are at the same address")
def _(_: Maker, images: Images) -> None:
    one, two = images["pages-1.img"], images["pages-2.img"]
    images["pages-1.img"] = Image(two.encrypted + one.encrypted[PAGE:])
    images["pages-2.img"] = Image(one.encrypted[:PAGE])


@change("pages-of-shared-memory-changed", "plain", "the digest of a dump does not cover them")
def _(_: Maker, images: Images) -> None:
    images["pages-3.img"] = flip(images["pages-3.img"], 0)


@change("pagemap-says-2-to-the-52-pages", "file", "")
def _(maker: Maker, images: Images) -> None:
    head, entry = (
        record("pagemap_head", pages_id=1),
        record("pagemap_entry", vaddr=0, nr_pages=1 << 52, flags=4),
    )
    images["pagemap-1.img"] = maker.records("PAGEMAP", head, entry)


@change("pagemap-of-others-pages", "file", "two pagemaps name the same pages")
def _(maker: Maker, images: Images) -> None:
    images["pagemap-2.img"] = pagemap(maker, 1, (0x10000, 3))


@change("pagemap-missing", "file", "pages of which nothing says where they belong")
def _(_: Maker, images: Images) -> None:
    del images["pagemap-2.img"]


@change("pagemap-empty", "file", "it does not even name its pages")
def _(_: Maker, images: Images) -> None:
    images["pagemap-2.img"] = clear(magic("PAGEMAP"))


# --- Output -----------------------------------------------------------------------------------

UNDETECTED = {
    "iv-changed",
    "record-dropped",
    "record-repeated",
    "record-empty-inserted",
    "images-exchanged",
    "image-missing",
    "queue-says-more-messages-than-there-are",
    "ghost-piece-dropped",
    "pages-exchanged-between-processes",
    "pages-of-shared-memory-changed",
}


def build(change: Change | None) -> dict[str, bytes]:
    maker = Maker()
    images = a_dump(maker)
    instead = change(maker, images) if change else None
    return made.files(images, maker) | (instead or {})


def edits(old: bytes, new: bytes) -> list:
    """One edit: what differs between a common beginning and a common end."""
    begin = next((n for n, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))  # noqa: B905
    end = 0
    while end < min(len(old), len(new)) - begin and old[-1 - end] == new[-1 - end]:
        end += 1
    return [[begin, len(old) - begin - end, new[begin : len(new) - end].hex()]]


def generate() -> dict[str, dict]:
    whole = build(None)
    maker = Maker()
    plain = {
        name: hashlib.sha256(image.plain).hexdigest()
        for name, image in sorted(a_dump(maker).items())
    }
    packed = {n: base64.b64encode(zlib.compress(d, 9)).decode() for n, d in sorted(whole.items())}
    vectors = {
        "whole": {
            "comment": "every layout that there is",
            "outcome": "plain",
            "plain": plain,
            "files": packed,
        }
    }
    for name, (outcome, comment, function) in CHANGES.items():
        files = build(function)
        vector = {"comment": comment, "outcome": outcome, "base": "whole"}
        if name in UNDETECTED:
            vector["undetected"] = True
        vector["removed"] = sorted(whole.keys() - files.keys())
        vector["edits"] = {n: edits(whole[n], d) for n, d in sorted(files.items()) if d != whole[n]}
        vectors[name] = vector
    return vectors


def main() -> None:
    for old in HERE.glob("*.json"):
        old.unlink()
    for name, vector in generate().items():
        (HERE / f"{name}.json").write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    main()

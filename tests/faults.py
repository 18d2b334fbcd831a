"""Faults that a trusted sealer could sign: of manifests (as edits of their JSON) and of the origin statement.

An edit changes the table in place, or returns the whole plaintext.  `tests/format` and `tests/vectors` use them.
"""

from __future__ import annotations

import base64

from tests.forge import SIGNER


def objects(t):
    return {o["name"]: o for o in t["objects"]}


def first(key, value):
    return lambda t: t["objects"][0].update({key: value})


def stream(key, value, n=1):
    return lambda t: t["streams"][n].update({key: value})


MEMORY = {
    "name absolute": first("name", "/etc/passwd"),
    "name leads out": first("name", "../core-1.img"),
    "name empty": first("name", ""),
    "name with a zero": first("name", "a\0b"),
    "name twice": first("name", "empty.img"),
    "name of a metadata object": first("name", "inventory.img"),
    "name below a file": first("name", "pages-1.img/x"),
    "number of a manifest": first("number", "1"),
    "number too large": first("number", str(1 << 32)),
    "number of another object": first("number", "12"),
    "size beyond the stream": first("size", "257"),
    "size beyond 64 bits": first("size", str(1 << 64)),
    "size and offset wrap around": lambda t: t["objects"][0].update(size="2", offset=str((1 << 64) - 1)),
    "offset beyond the stream": first("offset", "250"),
    "stream unknown": first("stream", "99"),
    "overlap": lambda t: objects(t)["empty.img"].update(size="5", offset="20"),
    "same bytes twice": lambda t: objects(t)["empty.img"].update(size="22", offset="0"),
    "unused stream": lambda t: t["objects"].pop(),
    "chunk size 0": stream("chunk", "0"),
    "chunk size odd": stream("chunk", "4097"),
    "chunk size huge": stream("chunk", str(1 << 62)),
    "chunk size of two": stream("chunk", "8192"),
    "codecs missing": stream("codecs", ""),
    "codecs too many": stream("codecs", base64.b64encode(bytes(9)).decode()),
    "codecs unknown": stream("codecs", base64.b64encode(b"\0\1\2\4").decode()),
    "codecs no base64": stream("codecs", "AAEC"),
    "raw for compressed": stream("codecs", base64.b64encode(b"\0\1\0\0").decode()),
    "zero for raw": stream("codecs", base64.b64encode(b"\1\1\2\0").decode()),
    "zstd for lz4": stream("codecs", base64.b64encode(b"\0\1\3\0").decode()),
    "length too small": stream("padded", "12288"),
    "length huge": stream("padded", str((1 << 64) - 1)),
    "stream of the manifest": stream("number", "2"),
    "stream twice": lambda t: t["streams"].append(t["streams"][0]),
    "stream of the other role": stream("number", "6"),
    "unknown member": lambda t: t.update(more=""),
    "unknown member of an object": first("more", ""),
    "attributes malformed": first("attributes", {"type": "file"}),
    "role of the other": lambda t: t.update(role="metadata"),
    "object lacks a member": lambda t: t["objects"][0].pop("size"),
    "objects no array": lambda t: t.update(objects={}),
    "object no object": lambda t: t.update(objects=[[]]),
    "properties no object": lambda t: t.update(properties=[]),
    "properties no text": lambda t: t.update(properties={"a": None}),
    "memory list": lambda t: t.update(memory=[]),
    "an object fewer than the metadata manifest says": lambda t: t["objects"].remove(objects(t)["empty.img"]),
    "size other than the metadata manifest says": lambda t: objects(t)["core-1.img"].update(size="21"),
    "no JSON": lambda t: (5).to_bytes(8, "little") + b"{" * 5 + bytes(4096 - 13),
    "length beyond the manifest": lambda t: (4089).to_bytes(8, "little") + bytes(4088),
    "length of 64 bits": lambda t: b"\xff" * 8 + bytes(4088),
    "padding not zero": lambda t: (2).to_bytes(8, "little") + b"{}" + bytes(4085) + b"\1",
    "not a multiple of the padding": lambda t: (2).to_bytes(8, "little") + b"{}",
    "nothing": lambda t: b"",
    "deep": lambda t: (4000).to_bytes(8, "little") + b"[" * 4000 + bytes(88),
}  # fmt: skip

METADATA = {
    "memory object twice": lambda t: t["memory"].append(t["memory"][0]),
    "memory object of the same number": lambda t: t["memory"].append([t["objects"][0]["number"], "0"]),
    "memory entry of three": lambda t: t["memory"].append(["9", "9", "9"]),
    "memory entry no pair": lambda t: t["memory"].append("99"),
    "memory missing": lambda t: t.pop("memory") and None,
    "memory object more": lambda t: t["memory"].append(["99", "0"]),
    "memory object fewer": lambda t: t["memory"].pop() and None,
}  # fmt: skip

ORIGIN = {
    "version 2": {"version": "2"},
    "unknown suite": {"suite": "rot13"},
    "the other suite": {"suite": "chacha20-poly1305"},
    "another id": {"checkpoint": "00" * 16},
    "unknown kind": {"kind": "other"},
    "increment without a parent": {"kind": "increment"},
    "derived from nothing": {"kind": "derived"},
    "full with a parent": {"parent": {"checkpoint": "00" * 16, "origin": "00" * 32}},
    "a place in no chain": {"chain": {"root": "00" * 16, "sequence": "0"}},
    "a sequence without a parent": {"chain": {"root": "00" * 16, "sequence": "3"}},
    "one role": {"roles": ["metadata"]},
    "roles turned": {"roles": ["memory", "metadata"]},
    "capture in the year 10000": {"captured": "253402300800"},
    "other commitments": {"commitments": {"metadata": "00" * 32, "memory": "00" * 32}},
    "commitment of one": {"commitments": {"metadata": "00" * 32}},
    "frames wrong": {"index": {"root": "00" * 32, "frames": "1", "size": "1"}},
    "nobody signs": {"signers": []},
    "another signs, too": {"signers": [SIGNER.key_id, "00" * 32]},
    "the signer twice": {"signers": [SIGNER.key_id] * 2},
    "more": {"more": None},
    "tool too long": {"tool": "x" * 257},
}

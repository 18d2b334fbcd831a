"""Makes the test vectors in this folder: `python -m tests.vectors.generate` (docs/spec.md, Test vectors).

Base vectors hold a whole file.  HPKE, OAEP, PSS and ECDSA draw random numbers that cannot be fixed, so a base that
exists is kept (delete it to have a new one).  All other vectors are edits of a base and come out the same each time; a
test compares them with what is on disk.
"""

from __future__ import annotations

import base64
import datetime as dt
import difflib
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sealpoint.format import dsse
from sealpoint.format.constants import Role, Roots, StanzaKind, Suite
from sealpoint.format.derive import RootKeys
from sealpoint.format.stanza import WrapContext
from sealpoint.format.statement import ParentRef
from sealpoint.keys import signature
from sealpoint.keys.scrypt import PassphraseRecipient
from tests import adversary, faults, prune_forge, stored_forge
from tests.forge import SIGNER, STRANGER, Forge, Sealed, Signatory, build_sample, rekeyed
from tests.vectors_reader import apply, chunks_of, identity_of, load, read, unpack

HERE = Path(__file__).resolve().parent

Vector = dict[str, Any]
MAIN = "aes-256-gcm"  # the base of nearly all broken vectors
STORED = "stored-chunks"  # of those that refer to a chunk store
SMALL = {"inventory.img": b"inventory", "core-1.img": b"a register"}


def seed(text: str, size: int = 32) -> bytes:
    return hashlib.shake_256(text.encode()).digest(size)


def key(kind: str) -> Vector:
    """A private key that is for these vectors only."""
    if kind == "passphrase":
        return {"kind": kind, "text": "correct horse battery staple"}
    if kind == "rsa":
        private = rsa.generate_private_key(65537, 2048)
        der = private.private_bytes(ser.Encoding.DER, ser.PrivateFormat.PKCS8, ser.NoEncryption())
        return {"kind": kind, "pkcs8": der.hex()}
    sizes = {"hybrid": 96, "x25519": 32, "p256": 32, "p384": 48}
    return {"kind": kind, "private": seed("test key " + kind, sizes[kind]).hex()}


def wrap_to(both: list[Vector], metadata: list[Vector] = []) -> Callable:  # noqa: B006
    def wrap(preamble, roots: RootKeys) -> list:
        pairs = [(k, Roots.BOTH) for k in both] + [(k, Roots.METADATA) for k in metadata]
        stanzas = []
        for k, which in pairs:
            recipient = identity_of(k).recipient()
            if recipient.kind is StanzaKind.SCRYPT:
                recipient = PassphraseRecipient(k["text"].encode(), 10)
            context = WrapContext(preamble.suite, preamble.checkpoint_id, which)
            stanzas.append(recipient.wrap(roots.wrappable(which), context))
        return stanzas

    return wrap


class OtherSigner(Signatory):
    """ECDSA and RSA-PSS, bare or with a certificate that it issued itself."""

    def __init__(self, private: Any, certificate: bytes = b"") -> None:
        self._key, self._certificate = private, certificate
        self.spki = signature.spki(private.public_key())
        self.key_id = signature.key_id(self.spki)

    def sign(self, pae: bytes) -> tuple[dsse.Signature, ...]:
        sig = signature.sign(self._key, pae)
        if self._certificate:
            return (dsse.Signature(self.key_id, sig, certificates=(self._certificate,)),)
        return (dsse.Signature(self.key_id, sig, self.spki),)


def certificate(private: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test signer")])
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    ) | dict.fromkeys(("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False)
    start, end = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in (2020, 2040))
    builder = x509.CertificateBuilder(name, name, private.public_key(), 1, start, end)
    builder = builder.add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
    return builder.sign(private, hashes.SHA256()).public_bytes(ser.Encoding.DER)


def everything() -> dict[str, bytes]:
    noise = seed("noise", 600)
    return {
        "inventory.img": b"inventory",
        "sealpoint-summary.json": b'{"tasks":[],"container":{}}',
        "core-1.img": b"a secret in a register",
        "empty.img": b"",
        "pages-1.img": bytes(4096) + b"text " * 819 + b"." + noise,
        "pages-2.img": b"zstd " * 819 + b"." + bytes(4096),
        "pages-3.img": b"",
    }


def bases() -> Iterator[tuple[str, str, Callable[[], tuple[Sealed, Vector]]]]:
    """Name, what it is, and how to make the file and the identity that opens it."""

    def made(identity: Vector, metadata: list[Vector] | None = None, **options: Any) -> Callable:
        options = {"suite": Suite.AES_256_GCM, "objects": SMALL} | options
        return lambda: (
            build_sample(wrap=wrap_to([identity], metadata or []), **options),
            identity,
        )

    both = ("hybrid", "x25519")
    for suite in Suite:
        text = f"every codec, interleaved streams, packs, empty objects; {suite.label}"
        options = {"suite": suite, "objects": everything()}
        yield suite.label, text, made(key(both[0]), [key(both[1])], **options)
    for kind in ("x25519", "p256", "p384", "rsa", "passphrase"):
        yield f"recipient-{kind}", f"sealed to a {kind} recipient", made(key(kind))
    unsigned = {"signer": None}
    yield (
        "unsigned",
        "without a signature, which the reader allows",
        made(key("x25519"), **unsigned),
    )
    p256 = ec.derive_private_key(int.from_bytes(seed("p256"), "big"), ec.SECP256R1())
    holder = {"signer": OtherSigner(p256, certificate(p256))}
    yield "signer-certificate", "signed with a certificate", made(key("x25519"), **holder)
    for name, private in (
        ("ecdsa-p256", p256),
        ("ecdsa-p384", ec.derive_private_key(int.from_bytes(seed("p384"), "big"), ec.SECP384R1())),
        ("rsa-pss", None),
    ):
        private = private or rsa.generate_private_key(65537, 2048)  # noqa: PLW2901
        signer = OtherSigner(private)
        yield f"signer-{name}", f"signed by {name}", made(key("x25519"), signer=signer)
    ref = ParentRef(seed("parent", 16), seed("origin"))
    step = {"kind": "increment", "parent": ref, "chain": (seed("root", 16), 2)}
    yield "increment", "an increment of another file", made(key("x25519"), **step)
    derived = {"kind": "derived", "derived_from": ref}
    yield "derived", "derived from another file", made(key("x25519"), **derived)
    yield "no-objects", "no objects at all", made(key("x25519"), objects={})

    def stored() -> tuple[Sealed, Vector]:
        sealed, chunks = stored_forge.sample(wrap=wrap_to([key("x25519")]))
        sealed.chunks = encoded(chunks)
        return sealed, key("x25519")

    yield STORED, "pages that lie in a chunk store", stored


def base_vector(name: str, what: str, make: Callable[[], tuple[Sealed, Vector]]) -> Vector:
    sealed, identity = make()
    packed = base64.b64encode(zlib.compress(sealed.data, 9)).decode()
    trust = [] if name == "unsigned" else [sealed.signer.spki.hex()]
    vector = {"name": name, "what": what, "outcome": "success", "file": packed}
    vector |= {"trust": trust, "identity": identity}
    if sealed.chunks:
        vector["chunks"] = sealed.chunks
    found = read(vector, sealed.data)
    assert found == sealed.contents, name
    return vector | {"objects": digests(found)}


def encoded(chunks: stored_forge.Chunks) -> Vector:
    return {
        identifier.hex(): None if data is None else base64.b64encode(data).decode()
        for identifier, data in chunks.items()
    }


def digests(objects: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(objects.items())}


def roots_of(vector: Vector) -> RootKeys:
    roots: list[RootKeys] = []
    read(vector, unpack(vector), spy=roots.append)
    return roots[0]


# The adversary's mutations that are kept as vectors.
ATTACKS = {
    "preamble at 0": "magic-damaged", "preamble at 16": "checkpoint-id-damaged", "preamble at 63": "salt-damaged",
    "idle slot 0 at 128": "idle-slot-damaged", "version 0": "version-0", "version 2": "version-unknown",
    "suite 3": "suite-unknown", "suite 2": "suite-exchanged", "slots of 8191": "slot-size-odd",
    "slots of 8192": "slot-size-other", "truncated to 0": "truncated-empty", "truncated to 64": "truncated-to-preamble",
    "extended by a byte": "extended-by-a-byte", "extended by a trailer": "extended-by-a-trailer",
    "a byte before it": "prefixed-by-a-byte", "chunks of one object swapped; index kept": "chunks-swapped",
    "chunks of one object swapped; index fixed": "chunks-swapped-index-fixed",
    "chunks of one object swapped; re-derived, signature kept": "chunks-swapped-old-signature",
    "last chunk dropped; index fixed": "last-chunk-dropped", "objects 3 and 4 swapped; index fixed": "objects-swapped",
    "index entry repeated": "index-entry-repeated",
    "origin: a space in the origin": "origin-with-a-space",
    "origin: a newline after the origin": "origin-with-a-newline",
    "origin: an escape in the origin": "origin-with-an-escape", "origin: a member twice": "origin-member-twice",
    "origin: half a surrogate in the origin": "origin-half-surrogate", "origin: a member more": "origin-member-unknown",
    "origin: origin of another type": "origin-of-envelope-type",
    "origin: a stranger's signature added": "origin-signature-added",
    "origin: a signature repeated": "origin-signature-repeated",
    "origin: the signer's key under a stranger's name": "origin-keyid-exchanged",
    "origin without signers, signature kept": "origin-changed-after-signing",
    "header: removed": "header-removed", "header: twice": "header-twice", "header: half written": "header-half-written",
    "header: sequence raised": "header-sequence-raised", "header: MAC of zeros": "header-mac-zero",
    "header: no statement": "header-without-statement", "header: origin for a statement": "header-with-origin",
    "header: no recipients": "header-without-recipients",
    "header: recipients and MAC of the older one": "header-recipients-of-older",
    "header: the older one, its sequence raised": "header-older-sequence-raised",
    "metadata manifest: memory objects hidden; index fixed": "memory-list-hidden",
    "memory stripped, role gone, signature kept": "memory-stripped",
    "header by a recipient, its old statement, slot 0": "header-by-a-recipient",
    "chunk 0 of memory stream 3 encrypted again by a recipient; index kept": "chunk-by-a-recipient",
    "chunk 0 of memory stream 3 encrypted again by a recipient; index fixed": "chunk-by-a-recipient-index-fixed",
    "chunk 0 of memory stream 3 encrypted again by a recipient; re-derived, signature kept":
        "chunk-by-a-recipient-old-signature",
}  # fmt: skip
POLICY = {
    "chunk 0 of memory stream 3 encrypted again by a recipient; re-derived, a stranger's altogether":
        "resigned-by-a-stranger",
    "chunk 0 of memory stream 3 encrypted again by a recipient; re-derived, unsigned": "signature-removed",
}  # fmt: skip
MEMORY = (
    "name absolute", "name leads out", "name twice", "name of a metadata object", "name below a file",
    "number of a manifest", "size beyond the stream", "size and offset wrap around", "overlap", "same bytes twice",
    "unused stream", "chunk size 0", "chunk size huge", "codecs unknown", "zero for raw", "zstd for lz4",
    "length huge", "stream of the other role", "unknown member", "attributes malformed", "length of 64 bits",
    "padding not zero", "deep", "an object fewer than the metadata manifest says",
)  # fmt: skip
METADATA = ("memory object of the same number", "memory object more", "memory missing")
ORIGIN = (
    "version 2", "unknown suite", "the other suite", "another id", "increment without a parent", "a place in no chain",
    "one role", "other commitments", "frames wrong", "another signs, too", "capture in the year 10000",
)  # fmt: skip


def derived(stored: dict[str, Vector]) -> Iterator[Vector]:
    """All vectors that are edits of a base."""
    main = stored[MAIN]
    data, roots = unpack(main), roots_of(main)
    sealed = Sealed(data, roots, {})
    with mock.patch("time.time", return_value=1_700_000_000):
        after, both = rekeyed(sealed), rekeyed(sealed, finish=False)

    def vector(name: str, what: str, new: bytes, outcome: str = "file", **more: Any) -> Vector:
        made = {"name": name, "what": what, "outcome": outcome, "base": more.pop("base", MAIN)}
        made["edits"] = edits(unpack(stored[made["base"]]), new)
        made |= {k: stored[made["base"]][k] for k in ("trust", "identity")} | more
        if outcome == "success":
            made["objects"] = digests(read(made, new))
        return made

    yield vector("rekeyed", "the second header, after a rekey", after, "success")
    yield vector("rekey-interrupted", "both headers valid: the newer counts", both, "success")
    half = Forge(both)
    half.slots[1] = half.slots[1][:500].ljust(len(half.slots[1]), b"\0")
    yield vector("rekey-half-written", "the new header half written", half.build())
    what = "the same, and the user asked to repair"
    yield vector("rekey-half-written-repair", what, half.build(), "success", repair=True)
    yield vector("header-put-back", "an older header than the reader has seen", data, newest=2)
    yield vector(
        "header-as-seen", "the header that the reader has seen", after, "success", newest=2
    )
    analyst = {"identity": key("x25519")}
    yield vector("metadata-recipient", "opened by a metadata recipient", data, "success", **analyst)
    wrong = {"identity": {"kind": "x25519", "private": seed("wrong").hex()}}
    yield vector("identity-wrong", "sealed to somebody else", data, "identity", **wrong)
    for text, name, outcome in (("wrong", "wrong", "identity"), ("", "empty", "usage")):
        options = {"base": "recipient-passphrase", "identity": {"kind": "passphrase", "text": text}}
        there = unpack(stored["recipient-passphrase"])
        yield vector(
            f"passphrase-{name}", f"a passphrase that is {name}", there, outcome, **options
        )
    stranger = {"trust": [STRANGER.spki.hex()]}
    yield vector("signer-not-trusted", "the reader trusts another", data, "policy", **stranger)
    there = unpack(stored["unsigned"])
    options = {"base": "unsigned", "trust": [SIGNER.spki.hex()]}
    yield vector(
        "unsigned-not-allowed", "unsigned where that is not allowed", there, "policy", **options
    )

    forge = Forge(unpack(stored["signer-certificate"]))
    (signed,) = forge.envelope().signatures
    damaged = adversary.flip(signed.certificates[0], len(signed.certificates[0]) - 1, 0)
    signed = signed._replace(certificates=(damaged,))
    forge.origin = dsse.encode(forge.envelope()._replace(signatures=(signed,)))
    what = "a certificate beside a signature damaged, which no signature covers"
    file = forge.build(trailer=forge.data[-64:])
    yield vector("certificate-damaged", what, file, base="signer-certificate")

    wanted = ATTACKS | POLICY
    for mutation in adversary.mutations(after, roots=roots, before=data):
        name = wanted.pop(mutation.name.removeprefix("bit flipped in "), None)
        if name is not None:
            outcome = "policy" if mutation.name in POLICY else "file"
            yield vector(name, mutation.name, mutation.data, outcome, base="rekeyed")
    assert not wanted, wanted

    yield from pruned_vectors(vector, data)
    yield from stored_vectors(vector, stored[STORED])

    for role, names, table in (
        (Role.MEMORY, MEMORY, faults.MEMORY),
        (Role.METADATA, METADATA, faults.METADATA),
    ):
        for fault in names:
            forge = Forge(data, roots)
            value = forge.manifest(role)
            made = table[fault](value)
            forge.set_manifest(role, made if isinstance(made, bytes) else value)
            name = f"{role.value}-manifest-{fault.replace(' ', '-').replace(',', '')}"
            what = f"a properly signed {role.value} manifest: {fault}"
            yield vector(name, what, forge.resign(SIGNER).build())
    for fault in ORIGIN:
        forge = Forge(data)
        forge.set_payload(forge.payload() | faults.ORIGIN[fault], SIGNER)
        name = f"origin-{fault.replace(' ', '-').replace(',', '')}"
        yield vector(name, f"a properly signed origin statement: {fault}", forge.build())


def stored_vectors(vector: Callable[..., Vector], base: Vector) -> Iterator[Vector]:
    """Of a file that refers to a chunk store."""
    data, chunks, roots = unpack(base), chunks_of(base), roots_of(base)

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]+", "-", text.lower())

    for name, changed in stored_forge.store_faults(chunks):
        more = {"base": STORED, "chunks": encoded(changed)}
        yield vector(f"{STORED}-{plain(name)}", f"a chunk in the store: {name}", data, **more)
    for name, file in stored_forge.index_faults(data):
        yield vector(f"{STORED}-{plain(name)}", name, file, base=STORED)
    for name, file, changed in stored_forge.signed_faults(data, roots, chunks):
        more = {"chunks": encoded(changed)} if changed else {}
        what = f"properly signed: {name}"
        yield vector(f"{STORED}-signed-{plain(name)}", what, file, base=STORED, **more)


PRUNE = {
    "records gone": "prune-record-gone", "record gone, the first stays": "prune-record-put-back",
    "record twice": "prune-record-twice", "record extended": "prune-record-extended",
    "a byte before the record": "prune-record-with-a-gap",
    "the statement without the first record": "prune-record-without-the-earlier",
    "another's record": "prune-record-of-other-frames",
    "child exchanged, signature kept": "prune-child-exchanged",
    "all frames freed, signature kept": "prune-frames-exchanged",
    "statement: the origin": "prune-statement-is-the-origin",
    "statement: a space": "prune-statement-with-a-space", "a frame of object 5 emptied, too": "prune-frame-emptied-too",
}  # fmt: skip
PRUNE_POLICY = {
    "a stranger's altogether": "prune-by-a-stranger", "unsigned": "prune-unsigned",
}  # fmt: skip


def pruned_vectors(vector: Callable[..., Vector], data: bytes) -> Iterator[Vector]:
    """Frames of pages-1.img, then of pages-2.img, freed for a child."""
    first, second = (
        prune_forge.memory_frames(data, [3])[:2],
        prune_forge.memory_frames(data, [4])[:1],
    )
    once = prune_forge.pruned(data, first)
    twice = prune_forge.pruned(once, second)
    yield vector("pruned", "chunks of one object freed", once, "success")
    yield vector("pruned-twice", "of another, too: a second record", twice, "success")
    early = prune_forge.pruned(data, first, empty=False)
    yield vector("pruned-not-emptied", "a kill before the frames were emptied", early, "success")
    for size in (1, 64, 200):
        cut = once[: len(data) + size]
        yield vector(
            f"pruned-record-cut-to-{size}",
            "a record that was not written whole",
            cut,
            base="pruned",
        )
    (begin, end) = prune_forge.frame_range(once, first[0])
    filled = adversary.flip(once, (begin + end) // 2)
    yield vector(
        "pruned-frame-not-empty",
        "a freed frame that is neither empty nor as it was",
        filled,
        base="pruned",
    )
    other = prune_forge.pruned(data, second, child=prune_forge.OTHER_CHILD)
    wanted = PRUNE | PRUNE_POLICY
    for mutation in prune_forge.mutations(twice, once, data, other):
        name = wanted.pop(mutation.name, None)
        if name is not None:
            outcome = "policy" if mutation.name in PRUNE_POLICY else "file"
            yield vector(
                name, f"a pruned file: {mutation.name}", mutation.data, outcome, base="pruned-twice"
            )
    assert not wanted, wanted
    for fault in prune_forge.SIGNED_FAULTS:
        name = f"prune-statement-{fault.replace(' ', '-').replace(',', '')}"
        what = f"a properly signed prune statement: {fault}"
        yield vector(name, what, prune_forge.signed_fault(data, first, fault), base="pruned")


def edits(old: bytes, new: bytes) -> list[list]:
    """[[offset, length, hex], …], small where the two files have parts in common."""
    found: list[list] = []
    before, after = parts(old), parts(new)
    at = 0
    codes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    if len(before) == len(after):  # nothing moved
        codes = [("replace", 0, len(before), 0, len(after))]
    for kind, a, b, c, d in codes:
        pairs = list(zip(before[a:b], after[c:d], strict=False))
        if kind == "equal":
            at += sum(map(len, before[a:b]))
            continue
        if b - a != d - c:
            pairs = [(b"".join(before[a:b]), b"".join(after[c:d]))]
        for x, y in pairs:
            found += [[at + o, n, part.hex()] for o, n, part in difference(x, y)]
            at += len(x)
    assert apply(old, found) == new
    return found


def parts(data: bytes) -> list[bytes]:
    try:
        data, records = prune_forge.split(data)
        if records:
            return [*parts(data), records]
        forge = Forge(data)
    except Exception:  # not a sealed file any more
        return [data]
    offsets = [0, 64, *adversary.frame_offsets(forge)]
    offsets[2:2] = [forge.preamble.slot_offset(1)]
    start, end = forge.trailer.index_offset, forge.trailer.origin_offset
    offsets = sorted({*offsets, *range(start, end, 40), end, len(data) - 64, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(offsets)]


def difference(old: bytes, new: bytes) -> Iterator[tuple[int, int, bytes]]:
    if len(old) != len(new):
        start = next(
            (n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
            min(len(old), len(new)),
        )
        end = 0
        while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
            end += 1
        yield start, len(old) - start - end, new[start : len(new) - end]
        return
    at = 0
    while at < len(old):
        if old[at] == new[at]:
            at += 1
            continue
        end = last = at + 1
        while end < len(old) and end - last < 12:
            if old[end] != new[end]:
                last = end + 1
            end += 1
        yield at, last - at, new[at:last]
        at = last


def text_of(vector: Vector) -> str:
    text = json.dumps(vector, indent=1)
    return re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\"[0-9a-f]*\")\s+\]", r"[\1, \2, \3]", text) + "\n"


def main() -> None:
    for name, what, make in bases():
        path = HERE / f"{name}.json"
        if not path.exists():
            path.write_text(text_of(base_vector(name, what, make)))
    stored = load()
    for vector in derived(stored):
        (HERE / f"{vector['name']}.json").write_text(text_of(vector))
        stored[vector["name"]] = vector
    print(f"{len(stored)} vectors")


if __name__ == "__main__":
    main()

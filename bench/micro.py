"""Throughput of sealing and reading without CRIU, in GB of plaintext per second, and of the steps that they consist of.

To see where the time goes while tuning, and whether a change made it worse. Like the rest of the benchmark it is
interleaved: every round runs every case once.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.tools import say
from sealpoint.checkpoint.opening.access import authenticate, unwrap_with, wrap_for
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.criusec.cipher import PageDigest, Pages
from sealpoint.format.codec import Coder
from sealpoint.format.constants import CHUNK_SIZE, TAG_SIZE, Suite
from sealpoint.format.opened import OpenFile
from sealpoint.format.raw import Descriptor
from sealpoint.format.writer import UNSIGNED, SealedWriter
from sealpoint.keys import Identity, Recipient, TrustPolicy, load_identity, load_recipient
from sealpoint.keys.generate import generate
from sealpoint.store.output import OutputFile

MIB = 1 << 20
POLICIES = ("auto", "none", "lz4", "zstd")
DATA = ("random", "compressible", "zero")


@dataclass(frozen=True)
class Keys:
    recipient: Recipient
    identity: Identity

    @classmethod
    def make(cls, directory: str) -> Keys:
        made = generate("hybrid", directory)
        return cls(load_recipient(made.public), load_identity(made.private))


class Nowhere:
    """An output that costs nothing."""

    def write(self, *buffers: bytes | bytearray | memoryview) -> None:
        pass


def sample(kind: str, size: int) -> memoryview:
    """`size` bytes: incompressible, like the memory of a program (words and pointers, about 3:1), or zero."""
    area = memoryview(mmap.mmap(-1, size))
    if kind == "random":
        for at in range(0, size, MIB):
            area[at : at + MIB] = os.urandom(min(MIB, size - at))
    elif kind == "compressible":
        # Chunks are compressed one by one, so a few different ones are as good as many.
        pieces = [_records(number) for number in range(4)]
        for at in range(0, size, MIB):
            area[at : at + MIB] = pieces[at // MIB % 4][: min(MIB, size - at)]
    return area


def _records(seed: int) -> bytes:
    dice = random.Random(seed)
    text = bytearray()
    while len(text) < MIB:
        state = dice.choice((b"ready", b"waiting", b"failed"))
        text += b"item-%04d state=%s owner=%d " % (dice.randrange(9999), state, dice.randrange(64))
        text += dice.randbytes(16)
    return bytes(text)


def seal(data: memoryview, out: Nowhere | OutputFile, keys: Keys, policy: str) -> None:
    """As a dump does with one image of pages: copied into the pipeline's buffers, where CRIU's pipe is read into."""
    wrap = wrap_for([keys.recipient])
    writer = SealedWriter(out, suite=Suite.AES_256_GCM, wrap=wrap, signing=UNSIGNED)
    builder = CheckpointBuilder(writer, compression=policy)
    image = builder.large("pages-1.img")
    image.write(data)
    image.finish()
    builder.finish()


def read(path: Path, keys: Keys) -> None:
    """Open and verify everything, decrypted and decompressed, in one thread."""
    fd = os.open(path, os.O_RDONLY)
    try:
        authentic, _ = authenticate(Descriptor(fd), TrustPolicy(allow_unsigned=True))
        OpenFile.unlock(authentic, unwrap_with([keys.identity])).verify_all()
    finally:
        os.close(fd)


Case = Callable[[], object]


def steps(data: memoryview) -> dict[str, Case]:
    """What each chunk goes through, alone and in one thread."""
    cipher, nonce = AESGCM(os.urandom(32)), bytes(12)
    out = memoryview(bytearray(CHUNK_SIZE + TAG_SIZE))
    chunks = [data[at : at + CHUNK_SIZE] for at in range(0, len(data), CHUNK_SIZE)]

    def encrypt() -> None:
        for chunk in chunks:
            cipher.encrypt_into(nonce, chunk, b"", out[: len(chunk) + TAG_SIZE])

    def digest() -> None:
        for chunk in chunks:
            blake3.blake3(chunk).digest()

    def copy() -> None:
        for chunk in chunks:
            out[: len(chunk)] = chunk

    def through_pipe() -> None:
        _through_pipe(data)

    pages, token = Pages(os.urandom(64), bytes(16)), os.urandom(32)

    def encrypt_pages() -> None:
        for chunk in chunks:
            pages.encrypt(chunk, out[: len(chunk)])

    def decrypt_pages() -> None:
        for chunk in chunks:
            pages.decrypt(chunk, out[: len(chunk)])

    def digest_pages() -> None:
        sums = PageDigest(token)
        for chunk in chunks:
            sums.add(chunk, 0)

    cases: dict[str, Case] = {
        "step: AES-256-GCM": encrypt,
        "step: BLAKE3": digest,
        "step: copy": copy,
        "step: pipe, written and read": through_pipe,
        "CRIUsec: pages encrypted": encrypt_pages,
        "CRIUsec: pages decrypted": decrypt_pages,
        "CRIUsec: digest over pages": digest_pages,
    }
    for policy in POLICIES:
        cases[f"step: coder {policy}"] = lambda policy=policy: _encode(Coder(policy), chunks)  # type: ignore[misc]
    return cases


def _encode(coder: Coder, chunks: Sequence[memoryview]) -> None:
    for chunk in chunks:
        coder.encode(chunk)


def _through_pipe(data: memoryview) -> None:
    """As between CRIU and sealpoint: another process writes, this one reads into a reused buffer."""
    import fcntl

    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, MIB)
    child = os.fork()
    if child == 0:
        os.close(reader)
        at = 0
        while at < len(data):
            at += os.write(writer, data[at:])
        os._exit(0)
    os.close(writer)
    buffer = bytearray(CHUNK_SIZE)
    while os.readv(reader, [buffer]):
        pass
    os.close(reader)
    os.waitpid(child, 0)


def cases_for(kind: str, size: int, directory: Path, keys: Keys) -> dict[str, Case]:
    """All cases of one kind of data, by name."""
    data = sample(kind, size)
    cases: dict[str, Case] = {}

    def to_file(path: Path, policy: str) -> None:
        path.unlink(missing_ok=True)
        with OutputFile(str(path)) as out:
            seal(data, out, keys, policy)
            out.commit()

    for policy in POLICIES:
        path = directory / f"{kind}-{policy}"
        to_file(path, policy)
        cases[f"seal {policy}"] = lambda p=policy: seal(data, Nowhere(), keys, p)  # type: ignore[misc]
        cases[f"read {policy}"] = lambda path=path: read(path, keys)  # type: ignore[misc]
    target = directory / "target"
    cases["seal auto, to tmpfs"] = lambda: to_file(target, "auto")
    return cases | steps(data)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench micro", description=__doc__)
    parser.add_argument("--size", type=int, default=256, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", action="append", choices=DATA, help="only this; repeatable")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name has it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    size = options.size * MIB
    speeds: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="sealpoint-bench-", dir="/dev/shm") as name:
        keys = Keys.make(f"{name}/keys")
        for kind in options.data or DATA:
            say(f"{kind}, {options.size} MiB, {options.rounds} rounds")
            cases = cases_for(kind, size, Path(name), keys)
            cases = {n: case for n, case in cases.items() if options.only in n}
            for case, speed in measure(cases, size, options.rounds).items():
                speeds.setdefault(case, {})[kind] = speed
    if options.json:
        print(json.dumps(speeds, indent=1))
        return 0
    kinds = options.data or DATA
    print(f"{'GB/s of plaintext, medians':32}" + "".join(f"{kind:>14}" for kind in kinds))
    for case in sorted(speeds):
        print(f"{case:32}" + "".join(f"{speeds[case][kind]:14.2f}" for kind in kinds))
    return 0


def measure(cases: dict[str, Case], size: int, rounds: int) -> dict[str, float]:
    """GB/s of each; the first round is discarded."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            started = time.perf_counter()
            case()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: size / 1e9 / statistics.median(values) for name, values in times.items()}
